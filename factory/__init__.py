"""A distributed synthetic-dataset factory: class names in, segmentation datasets out."""

from factory.hf_logging import guard_against_torchvision

__version__ = "0.2.0"

guard_against_torchvision()
