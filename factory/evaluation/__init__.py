"""The protocols of the paper, and the tables of their results."""
