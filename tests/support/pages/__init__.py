"""Pages of the manual as tests read them."""
