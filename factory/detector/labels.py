"""A detector's labels in the words of a vocabulary, and pictures in its order of colours."""

from collections.abc import Collection, Sequence

import numpy as np

from factory.config.vocabulary import Vocabulary
from factory.dataset.records import Image
from factory.errors import UserError

NO_CLASSES = frozenset({"N/A", "__background__", "background"})
"""Labels of some lists that stand for no class."""


def translation(vocabulary: Vocabulary, known: Sequence[str], wanted: Collection[str] | None = None) -> dict[str, str]:
    """The vocabulary's name of each label that a detector knows by one of the class's names or aliases.

    UserError where one of the `wanted` classes, by default all, is not among them: what cannot be seen can neither be
    masked nor judged.
    """
    result = {}
    for entry in vocabulary.classes:
        names = {_plain(name) for name in (entry.name, entry.display, *entry.aliases)}
        match = next((name for name in known if name not in NO_CLASSES and _plain(name) in names), None)
        if match is not None:
            result[match] = entry.name
    missing = unseen_by(vocabulary, known, wanted)
    if missing:
        told = f"{', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}"
        examples = ", ".join([name for name in known if name not in NO_CLASSES][:5])
        raise UserError(
            f"the detector does not know {len(missing)} of the classes: {told}; it knows {len(known)} classes such as "
            f"{examples}. Take --masks attention, another detector, or other classes."
        )
    return result


def unseen_by(vocabulary: Vocabulary, known: Sequence[str], wanted: Collection[str] | None = None) -> list[str]:
    """The `wanted` classes, by default all, that a detector with the labels `known` cannot see."""
    labels = {_plain(name) for name in known if name not in NO_CLASSES}
    return [
        entry.name
        for entry in vocabulary.classes
        if (wanted is None or entry.name in wanted)
        and not labels & {_plain(name) for name in (entry.name, entry.display, *entry.aliases)}
    ]


def in_order(image: Image, order: str) -> Image:
    """RGB uint8 (H, W, 3) in the order of colours that a model was trained with: "RGB" or "BGR"."""
    assert order in ("RGB", "BGR")
    return image if order == "RGB" else np.ascontiguousarray(image[:, :, ::-1])


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
