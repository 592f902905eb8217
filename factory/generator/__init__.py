"""Generators, which turn a prompt and a seed into an image with the attention and features of the model."""
