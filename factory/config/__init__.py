"""What to make: the recipe, its classes and prompts, and the plan that follows from them."""
