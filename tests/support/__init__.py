"""Small real parts for tests, the project's own and those of code built on it."""
