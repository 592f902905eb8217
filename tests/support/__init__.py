"""Small real models, datasets and servers for tests."""
