"""Labelled image folders in the formats of PASCAL VOC and COCO."""
