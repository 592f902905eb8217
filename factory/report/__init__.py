"""The report of a dataset: a page, and the same numbers as JSON."""
