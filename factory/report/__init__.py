"""The report of a dataset: a page to look at and the same numbers as JSON."""
