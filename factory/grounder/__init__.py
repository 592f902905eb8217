"""Grounders: what was generated and the classes of its prompt in, one mask per class out."""
