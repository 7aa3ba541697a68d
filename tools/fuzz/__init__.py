"""Search for inputs that break the compiler: random graphs, damaged files, and laws that must hold for all of them."""
