"""Grounding modules: networks that predict one logit map per class from a denoiser's features and attention."""
