"""Read untrusted and handwritten files within limits (text, YAML, JSON, images); paths, listings, locks, requests."""
