"""Grounding modules: networks that predict a logit map per class from the features and attention of a denoiser."""
