"""Grounders, which compute a mask for each class of the prompt of a generated image."""
