"""Choice of storages by measurement under a limit."""
