"""Grounding modules: networks that predict one logit map per class from a U-Net's features and attention."""
