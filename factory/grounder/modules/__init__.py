"""Grounding modules: networks that turn a U-Net's features and attention into one logit map per class."""
