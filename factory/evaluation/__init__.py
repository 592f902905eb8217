"""The evaluation protocols of the paper and their result tables."""
