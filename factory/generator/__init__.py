"""Generators: a prompt and a seed in, an image with the model's attention and features out."""
