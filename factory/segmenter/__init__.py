"""Segmenters: standard segmentation models, trained on datasets to measure their quality."""
