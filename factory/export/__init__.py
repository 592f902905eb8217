"""A set in the forms of other libraries: COCO, PASCAL VOC, YOLO, Hugging Face parquet."""
