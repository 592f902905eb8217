"""Real labelled images: PASCAL VOC and COCO on disk, in the words of a vocabulary."""
