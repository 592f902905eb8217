"""Maps labels of a detector to classes of a vocabulary, and images to the channel order of the detector."""

from collections.abc import Collection, Sequence

import numpy as np

from factory.config.vocabulary import Vocabulary, plain_name
from factory.dataset.records import Image
from factory.errors import UserError

NO_CLASSES = frozenset({"N/A", "__background__", "background"})
"""Labels of ids without a class in some lists."""


def translation(
    vocabulary: Vocabulary, labels: Sequence[str], required: Collection[str] | None = None
) -> dict[str, str]:
    """The class name of the vocabulary for each label of the detector, matched by name and alias.

    Raises UserError if one of the `required` classes, by default all, has no label: the detector cannot find it.
    """
    result: dict[str, str] = {}
    for entry in vocabulary.classes:
        spellings = {plain_name(name) for name in (entry.name, entry.display, *entry.aliases)}
        match = next((name for name in labels if name not in NO_CLASSES and plain_name(name) in spellings), None)
        match = match or next((name for name in labels if spellings & _synonyms(name)), None)
        if match is None:
            continue
        other, is_required = result.get(match), required is None or entry.name in required
        if other is not None and is_required and (required is None or other in required):
            raise UserError(
                f"the detector has one label, {match!r}, for the classes {other} and {entry.name}, so it cannot tell "
                f"them apart; leave one of them out."
            )
        if other is None or is_required:
            result[match] = entry.name
    missing = unseen_by(vocabulary, labels, required)
    if missing:
        names = f"{', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}"
        examples = ", ".join([name for name in labels if name not in NO_CLASSES][:5])
        raise UserError(
            f"the detector does not know {len(missing)} of the classes: {names}; it knows {len(labels)} classes such "
            f"as {examples}. Give another --detector, such as sam3:MODEL, which finds any class, or other classes; "
            f"`factory generate` also has --masks attention."
        )
    return result


def unseen_by(vocabulary: Vocabulary, labels: Sequence[str], required: Collection[str] | None) -> list[str]:
    """The `required` classes, by default all, that a detector with these labels does not know."""
    known = set().union(*(_synonyms(name) for name in labels))
    return [
        entry.name
        for entry in vocabulary.classes
        if (required is None or entry.name in required)
        and not known & {plain_name(name) for name in (entry.name, entry.display, *entry.aliases)}
    ]


def in_order(image: Image, order: str) -> Image:
    """RGB uint8 (H, W, 3) in the channel order that a model was trained with, "RGB" or "BGR"."""
    assert order in ("RGB", "BGR")
    return image if order == "RGB" else np.ascontiguousarray(image[:, :, ::-1])


def _synonyms(label: str) -> set[str]:
    """A label and the names in it that commas separate, as in "refrigerator, icebox" of ADE20K; none for background."""
    return set() if label in NO_CLASSES else {plain_name(label), *map(plain_name, label.split(","))} - {""}
