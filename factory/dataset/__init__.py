"""Datasets on disk or in a bucket: files, formats and state."""
