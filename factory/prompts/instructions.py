"""The instructions for the language model, and how the prompt is found in its answer."""

import hashlib
import re
from collections.abc import Sequence

from factory.config import prompt_words as words
from factory.config.vocabulary import article
from factory.prompts.interface import Instruction

_TASK = (
    "Write one prompt for a text-to-image model: a single sentence of at most 35 words that describes a photograph.\n"
    "Show these objects: {objects}.\n"
    "Name each of these objects exactly once, with exactly these words, and mention no other animals, people, "
    "vehicles, furniture, food or tools.\n"
    "Setting: {setting}.\n"
    "Answer with the sentence alone."
)
_EXAMPLES = (
    ("a lighthouse", "on a rocky shore, at dawn", "A white lighthouse above grey waves on a rocky shore at dawn."),
    (
        "a wheelbarrow and a lantern",
        "in a courtyard, after the rain",
        "A rusty wheelbarrow beside a glowing lantern in a wet courtyard, seen from a low angle after the rain.",
    ),
    (
        "a drum, a ladder and a scarf",
        "in an attic, in dim light",
        "An old drum under a leaning ladder with a red scarf over its rungs, in the dim light of an attic.",
    ),
)
"""Objects, setting and description; the objects are not classes of COCO or VOC."""
_LABEL = re.compile(r"^(?:[-*•]\s*|\d+[.)]\s+)?(?:\W*(?:prompt|description|sentence|answer)\W*:\s*)?", re.IGNORECASE)
THINKING, _THOUGHT = "<think>", "</think>"
"""Around the reasoning of a model."""
_QUOTES = "\"'`*\u2018\u2019\u201c\u201d"


def instruction(names: Sequence[str], key: str) -> Instruction:
    """The instruction for a prompt that shows the classes `names`; its setting is drawn by `key`."""
    objects = [article(name) + name for name in names]
    objects_text = " and ".join(filter(None, (", ".join(objects[:-1]), objects[-1])))
    place = _drawn([*words.PLACES["outdoors"], *words.PLACES["indoors"]], f"{key}/place")
    setting = f"{place}, {_drawn((*words.WEATHER, *words.VIEWPOINTS, *words.CAMERA), f'{key}/detail')}"
    examples = [*_EXAMPLES, (objects_text, setting, "")]
    lines = [f"Objects: {names}\nSetting: {where}\nDescription: {text}" for names, where, text in examples]
    completion = "Descriptions of photographs. Each names its objects once and shows nothing else.\n\n"
    return Instruction(_TASK.format(objects=objects_text, setting=setting), completion + "\n\n".join(lines).rstrip())


def prompt_in(answer: str) -> str:
    """The prompt in an answer: its first line that is not empty, without label and quotes.

    Empty if the answer ends before its reasoning does.
    """
    _, thought, text = answer.rpartition(_THOUGHT)
    if not thought and THINKING in answer:
        return ""
    for line in text.splitlines():
        line = _LABEL.sub("", " ".join(line.split())).strip(_QUOTES + " ")
        if line:
            return line
    return ""


def _drawn(entries: Sequence[str], key: str) -> str:
    return entries[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(entries)]
