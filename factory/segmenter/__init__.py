"""The segmenter: an ordinary segmentation model, trained on a finished set, whose worth proves the set's."""
