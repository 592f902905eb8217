"""What a grounder gives."""

from collections.abc import Sequence
from typing import Protocol

from factory.config.prompts import Prompt
from factory.dataset.records import Grounded
from factory.generator.interface import Generated


class Grounder(Protocol):
    """Finds the prompt's classes in what was generated. `needs` tells the generator what to capture."""

    needs: frozenset[str]

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """One result per image of the micro-batch, in order; images do not influence each other."""
        ...
