"""The paper's evaluation protocols and their result tables."""
