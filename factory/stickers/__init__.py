"""The embedded models: sprites, rendered scenes, and the small models that are trained on them."""
