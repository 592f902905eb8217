"""The sticker world: sprites, rendered scenes, and the small models that the project trains on them and ships."""
