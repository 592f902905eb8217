"""`python -m factory` is the command `factory`."""

from factory.cli.main import run

run()
