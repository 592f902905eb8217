"""The labels of real images as masks."""

from collections.abc import Sequence

from factory.config.prompts import Prompt
from factory.dataset.masks import IGNORE
from factory.dataset.records import Grounded, Instance
from factory.generator.interface import Generated


class LabelGrounder:
    """Takes the labels that an image was brought with; pixels of 255 stay to be ignored."""

    needs: frozenset[str] = frozenset()

    def ground(self, generated: Sequence[Generated], prompts: Sequence[Prompt]) -> list[Grounded]:
        """One mask per class, with a score of 1."""
        return [self._of(one, prompt) for one, prompt in zip(generated, prompts, strict=True)]

    @staticmethod
    def _of(one: Generated, prompt: Prompt) -> Grounded:
        assert one.labels is not None
        masks = [(name, one.labels == place) for place, name in enumerate(prompt.classes, 1)]
        ignore = one.labels == IGNORE
        return Grounded(
            tuple(Instance(name, 1.0, mask) for name, mask in masks if mask.any()), ignore if ignore.any() else None
        )
