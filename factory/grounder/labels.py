"""Masks from the labels of real images."""

from collections.abc import Sequence

from factory.config.prompts import Prompt
from factory.dataset.masks import IGNORE
from factory.dataset.records import Grounded, Instance
from factory.generator.interface import Generated


class LabelGrounder:
    """Uses the labels that come with an inverted image; pixels of 255 are ignored."""

    needs: frozenset[str] = frozenset()

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """One mask per class, with a score of 1."""
        return [self._ground(g, prompt) for g, prompt in zip(generated, prompts, strict=True)]

    @staticmethod
    def _ground(generated: Generated, prompt: Prompt) -> Grounded:
        assert generated.labels is not None
        masks = [(name, generated.labels == k) for k, name in enumerate(prompt.classes, 1)]
        ignore = generated.labels == IGNORE
        return Grounded(
            tuple(Instance(name, 1.0, mask) for name, mask in masks if mask.any()), ignore if ignore.any() else None
        )
