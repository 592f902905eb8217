"""Generates a dataset: from a recipe to committed shards."""
