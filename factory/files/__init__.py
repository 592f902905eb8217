"""Files that other programs or people wrote: text, YAML, JSON and pictures, read within limits; paths and locks."""
