"""A distributed synthetic-dataset factory: class names in, segmentation datasets out."""

__version__ = "0.1.0"
