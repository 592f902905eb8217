"""Generators: they turn a prompt and a seed into an image, with the model's attention and features."""
