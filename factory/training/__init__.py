"""Training: the loop that all of the project's own models share."""
