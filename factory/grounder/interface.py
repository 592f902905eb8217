"""The grounder interface."""

from collections.abc import Sequence
from typing import Protocol

from factory.config.prompts import Prompt
from factory.dataset.records import Grounded
from factory.generator.interface import Generated


class Grounder(Protocol):
    """Finds masks of the classes in the prompts of images. `needs` names what the generator must capture."""

    needs: frozenset[str]

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """One result per image of the micro-batch, in order; the images do not affect each other."""
        ...
