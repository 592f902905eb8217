"""The prompt style `rich`: a deterministic grammar of attributes, counts, places, light, weather, viewpoint and camera.

A prompt depends on the recipe's seed, the sample's index and its classes. The sequence of classes is that of the style
`simple`, so classes are balanced in the same way.
"""

import hashlib
from collections.abc import Sequence

from factory.config import prompt_words as words
from factory.config.class_words import ClassWords, plural
from factory.config.prompts import Prompt, captioned
from factory.config.vocabulary import Vocabulary, article, coco

_TRIES = 8
"""Attempts to compose a prompt for a sample in which no word names another class."""

_MAX_LENGTH = 70
"""Maximum number of estimated tokens (see `_length`); CLIP's text encoders read 77, with the start and end tokens."""

_KINDS = {"person": range(1, 2), "animal": range(16, 26), "food": range(52, 62), "outdoors": range(2, 16)}
"""COCO's ids by kind; `outdoors` are vehicles and street furniture."""
_EITHER = (*range(1, 2), *range(27, 44))
"""COCO's ids of persons, accessories and sports equipment, which occur indoors and outdoors."""


class RichPrompts:
    """Composes prompts for the classes of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        self._vocabulary, self._seed = vocabulary, seed
        self._known = ClassWords(vocabulary, others=True)
        self._displays = {entry.name: entry.display for entry in vocabulary.classes}
        self._usable: dict[tuple[str, ...], tuple[str, ...]] = {}

    def prompt(self, index: int, classes: Sequence[str]) -> Prompt:
        """The prompt of the sample at `index`.

        It names each of `classes` once, and no other class of the vocabulary, COCO or VOC. If every attempt combines a
        class name and its neighbouring words into the name of another class, the result is the caption of the style
        `simple`.
        """
        for attempt in range(_TRIES):
            prompt = self._compose(_Draws(f"{self._seed}/rich/{index}/{attempt}"), classes)
            if self.names_exactly(prompt):
                return prompt
        return captioned(self._vocabulary, classes)

    def names_exactly(self, prompt: Prompt) -> bool:
        """Whether the prompt names each of its classes once, at its phrase, and no other class."""
        found = [(mention.class_name, mention.start, mention.end) for mention in self._known.mentions(prompt.text)]
        spans = prompt.spans()
        expected = [(name, *span) for name, span in zip(prompt.classes, spans, strict=True) if span is not None]
        return len(expected) == len(spans) and sorted(found) == sorted(expected)

    def _compose(self, draws: "_Draws", classes: Sequence[str]) -> Prompt:
        displays = [self._displays[name] for name in classes]
        setting = _setting(draws, displays)
        opening = draws.pick("opening", self._without_names(words.OPENINGS))
        objects, phrases = self._objects(draws, displays)
        tail = self._tail(draws, setting)
        length = _length(f"{opening} {objects}")
        kept = []
        for part in tail:
            length += _length(part) + 1
            if length <= _MAX_LENGTH:
                kept.append(part)
        # A place follows the objects without a comma: "a dog in a meadow, at dawn".
        location = f" {kept.pop(0)}" if kept and kept[0] in words.PLACES[setting] else ""
        return Prompt(", ".join([f"{opening} {objects}{location}", *kept]), tuple(classes), phrases)

    def _objects(self, draws: "_Draws", displays: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """(the objects joined to a text, the phrase of each)."""
        texts, phrases = [], []
        plain = sum(_length(name) + 2 for name in displays) > _MAX_LENGTH // 2
        for number, name in enumerate(displays):
            text, phrase = self._object(draws, f"object {number}", name, plain)
            texts.append(text)
            phrases.append(phrase)
        if len(texts) == 2:
            return f" {draws.pick('relation', self._without_names(words.RELATIONS))} ".join(texts), tuple(phrases)
        return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1]))), tuple(phrases)

    def _object(self, draws: "_Draws", slot: str, name: str, plain: bool) -> tuple[str, str]:
        """(the object with article or count and attribute, the phrase that names its class)."""
        chosen, phrase = "", name
        if not plain and draws.chance(f"{slot}/has attribute", 0.5):
            chosen = draws.pick(f"{slot}/attribute", self._without_names(words.ATTRIBUTES[_kind(name)]))
        # Plurals are formed only of names that are known to be English and countable.
        if coco().find(name) is not None and article(name) and draws.chance(f"{slot}/has count", 0.2):
            count = draws.pick(f"{slot}/count", self._without_names(words.COUNTS))
            phrase = plural(name)
            return " ".join(filter(None, (count, chosen, phrase))), phrase
        # "skis" has no article, with or without an attribute.
        before = article(chosen or name) if article(name) else ""
        return before + " ".join(filter(None, (chosen, phrase))), phrase

    def _tail(self, draws: "_Draws", setting: str) -> list[str]:
        """The parts after the objects, in order."""
        lists = [("place", 0.9, words.PLACES[setting]), ("light", 0.55, words.LIGHT[setting])]
        if setting == "outdoors":
            lists.append(("weather", 0.4, words.WEATHER))
        lists += [("viewpoint", 0.45, words.VIEWPOINTS), ("camera", 0.35, words.CAMERA)]
        return [
            draws.pick(slot, usable)
            for slot, share, entries in lists
            if draws.chance(f"has {slot}", share) and (usable := self._without_names(entries))
        ]

    def _without_names(self, entries: tuple[str, ...]) -> tuple[str, ...]:
        """The entries that name no class; the first one if all do, which `prompt` then rejects."""
        if entries not in self._usable:
            self._usable[entries] = tuple(entry for entry in entries if not self._known.mentions(entry)) or entries[:1]
        return self._usable[entries]


def longest(vocabulary: Vocabulary, classes: Sequence[str]) -> Prompt:
    """A prompt of the style `rich` in which the classes occur as late as possible, to check the length."""
    displays = [vocabulary.resolve(name).display for name in classes]
    attributes = [max(words.ATTRIBUTES[_kind(name)], key=len) for name in displays]
    objects = [f"a group of {attribute} {name}" for attribute, name in zip(attributes, displays, strict=True)]
    return Prompt(f"{max(words.OPENINGS, key=len)} {', '.join(objects)}", tuple(classes), tuple(displays))


def vocabulary_words() -> list[str]:
    """Every word of the grammar, to check whether a text encoder knows them."""
    lists = [
        words.OPENINGS, words.COUNTS, words.RELATIONS, words.WEATHER, words.VIEWPOINTS, words.CAMERA,
        *words.ATTRIBUTES.values(), *words.PLACES.values(), *words.LIGHT.values(),
    ]  # fmt: skip
    return sorted({word for entries in lists for entry in entries for word in entry.replace("-", " ").split()})


class _Draws:
    """Choices that depend only on a key and a slot, not on other choices."""

    def __init__(self, key: str) -> None:
        self._key = key

    def pick(self, slot: str, entries: Sequence[str]) -> str:
        return entries[self._number(slot) % len(entries)]

    def chance(self, slot: str, share: float) -> bool:
        return self._number(slot) < share * 2**64

    def _number(self, slot: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._key}/{slot}".encode()).digest()[:8])


def _kind(name: str) -> str:
    entry = coco().find(name)
    if entry is None:
        return "other"
    return next((kind for kind in ("person", "animal", "food") if entry.id in _KINDS[kind]), "thing")


def _setting(draws: _Draws, displays: Sequence[str]) -> str:
    """`outdoors` or `indoors`, whichever is usual for more of the classes; drawn if there are as many of both."""
    entries = [entry for name in displays if (entry := coco().find(name)) is not None and entry.id not in _EITHER]
    outdoors = sum(entry.id in (*_KINDS["outdoors"], *_KINDS["animal"]) for entry in entries)
    if 2 * outdoors == len(entries):
        return "outdoors" if draws.chance("setting", 0.5) else "indoors"
    return "outdoors" if 2 * outdoors > len(entries) else "indoors"


def _length(text: str) -> int:
    """An estimate of the number of tokens: one for a word or comma, and one for every four letters of a long word."""
    return text.count(",") + sum(
        -(-len(word) // 4) if len(word) > 12 else 1 for word in text.replace("-", " - ").split()
    )
