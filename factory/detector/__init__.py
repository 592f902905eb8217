"""Detectors: off-the-shelf instance segmentation models."""
