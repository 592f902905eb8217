"""Jobs: chains of factory commands, read from one file."""
