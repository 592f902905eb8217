"""The recipe of a dataset, its classes and prompts, and the plan that follows from them."""
