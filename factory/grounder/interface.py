"""The grounder interface."""

from collections.abc import Sequence
from typing import Protocol

from factory.config.prompts import Prompt
from factory.dataset.records import Grounded
from factory.generator.interface import Generated


class Grounder(Protocol):
    """Finds masks of the prompt's classes in generated images. `needs` names what the generator has to capture."""

    needs: frozenset[str]

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """One result per image of the micro-batch, in order; the images do not influence each other."""
        ...
