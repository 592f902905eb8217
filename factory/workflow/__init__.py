"""Jobs: chains of this program's commands, read from one file."""
