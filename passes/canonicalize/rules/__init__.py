"""Rules of canonicalization by subject."""
