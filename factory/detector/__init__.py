"""Detectors: off-the-shelf models that find instances of known classes in an image."""
