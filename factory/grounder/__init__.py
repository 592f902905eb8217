"""Grounders: they turn generated images and the classes of their prompts into masks."""
