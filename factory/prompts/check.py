"""Checks the lines that a language model wrote."""

from collections.abc import Callable, Sequence

from factory.config.class_words import ClassWords
from factory.config.prompts import Prompt
from factory.config.vocabulary import Vocabulary

EMPTY, MISSING, REPEATED, OTHER, LONG, DUPLICATE = (
    "empty", "class_missing", "class_repeated", "other_class", "too_long", "duplicate",
)  # fmt: skip
"""The reasons for which a line is rejected, in the order of the checks."""

MAX_WORDS = 45
"""Word limit without a text encoder: English prompts up to this length fit into the 77 tokens of CLIP."""

Fits = Callable[[str], bool]


class LineCheck:
    """Decides whether a line is a prompt for given classes. Remembers accepted lines, to find duplicates."""

    def __init__(self, vocabulary: Vocabulary, fits: Fits) -> None:
        self._words, self._fits = ClassWords(vocabulary), fits
        self._accepted: set[str] = set()

    def check(self, text: str, classes: Sequence[str]) -> Prompt | str:
        """The prompt, or the reason why the line is rejected.

        A prompt names each of `classes` once, by a name, an alias or its plural, and no other class of the vocabulary.
        Synonyms such as "puppy" count as further mentions: a prompt must not name a class by two words.
        """
        if not text:
            return EMPTY
        mentions = self._words.mentions(text)
        if any(mention.class_name not in classes for mention in mentions):
            return OTHER
        found = {mention.class_name: mention for mention in mentions if mention.exact}
        if set(found) != set(classes):
            return MISSING
        if len(mentions) > len(classes):
            return REPEATED
        prompt = Prompt(text, tuple(classes), tuple(text[found[name].start : found[name].end] for name in classes))
        if None in prompt.spans():
            return MISSING
        if not self._fits(text):
            return LONG
        return DUPLICATE if _plain(text) in self._accepted else prompt

    def accept(self, text: str) -> None:
        """Remember a line, so that it is not accepted again."""
        self._accepted.add(_plain(text))


def few_words(text: str) -> bool:
    """Whether a text has at most MAX_WORDS words."""
    return len(text.split()) <= MAX_WORDS


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
