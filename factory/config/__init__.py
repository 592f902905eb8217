"""The recipe of a dataset, its classes and prompts, and the plan derived from them."""
