"""Detectors: pretrained models that find instances of classes in images."""
