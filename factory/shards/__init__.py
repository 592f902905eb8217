"""Shards on disk: samples encoded, packed in a tar, read back."""
