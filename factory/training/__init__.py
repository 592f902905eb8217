"""The training loop that all models of the project share."""
