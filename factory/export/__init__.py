"""Export datasets to COCO, PASCAL VOC, YOLO and Hugging Face parquet."""
