"""Choice of a storage for every weight, and its insertion."""
