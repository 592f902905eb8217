"""The segmenter: a standard segmentation model trained on a generated dataset, to measure its quality."""
