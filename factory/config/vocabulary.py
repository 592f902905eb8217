"""Class lists with fixed ids, aliases and seen/unseen splits, and captions for their classes."""

import difflib
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from factory.errors import UserError

_COCO_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag tie "
    "suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket "
    "bottle - wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut "
    "cake chair couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone "
    "microwave oven toaster sink refrigerator - book clock vase scissors teddy_bear hair_drier toothbrush"
)
"""COCO's thing classes in order of their official ids, starting at 1; a dash is an unused id."""

_COCO_ALIASES = {
    "airplane": ("aeroplane", "plane"),
    "motorcycle": ("motorbike",),
    "couch": ("sofa",),
    "tv": ("tvmonitor", "television"),
    "dining table": ("diningtable",),
    "potted plant": ("pottedplant",),
    "cell phone": ("mobile phone",),
    "hair drier": ("hair dryer",),
    "donut": ("doughnut",),
}

_VOC_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)

_VOC_UNSEEN: dict[str, tuple[str, ...]] = {
    "1": ("tvmonitor", "car", "dog", "sofa", "train"),
    "2": ("horse", "motorbike", "person", "pottedplant", "sheep"),
    "3": ("bus", "cat", "chair", "cow", "diningtable"),
    "zs3": ("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
}
_COCO_UNSEEN_1 = (
    "airplane", "train", "parking meter", "cat", "bear", "suitcase", "frisbee", "snowboard", "fork", "sandwich",
    "hot dog", "toilet", "mouse", "toaster", "hair drier",
)  # fmt: skip

CUSTOM = "custom"
"""The name of all vocabularies other than those of COCO and VOC."""

_PLURAL = frozenset({"skis", "scissors"})

_CONTROLS = ("Cc", "Cs", "Co", "Zl", "Zp")
"""Unicode categories of control characters, surrogates, private-use characters and line separators."""
_NOT_IN_XML = "\ufffe\uffff"
"""Other characters that XML, as in exports to PASCAL VOC, cannot contain."""
_IGNORABLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
"""Soft hyphens, zero-width characters and direction marks; names that differ only in these look the same."""


@dataclass(frozen=True)
class ClassEntry:
    """A class: its official id, official name and aliases."""

    id: int
    name: str
    aliases: tuple[str, ...] = ()

    @property
    def display(self) -> str:
        """The name used in prompts: COCO's name for a VOC class ("dining table", not "diningtable").

        Text encoders know everyday words better, and the embedded model knows only COCO's names.
        """
        for alias in self.aliases:
            if alias in _coco_name_set():
                return alias
        return self.name


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of classes with fixed ids."""

    name: str
    classes: tuple[ClassEntry, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The official names, in order."""
        return tuple(entry.name for entry in self.classes)

    @property
    def label(self) -> str:
        """What messages call the vocabulary."""
        return "your list of classes" if self.name == CUSTOM else self.name

    def find(self, name: str) -> ClassEntry | None:
        """Look up a class by name or alias, ignoring case, whitespace and underscores; None if there is none."""
        return self._by_spelling.get(plain_name(name))

    @functools.cached_property
    def _by_spelling(self) -> dict[str, ClassEntry]:
        """The first class with each name or alias."""
        found: dict[str, ClassEntry] = {}
        for entry in self.classes:
            for spelling in (entry.name, *entry.aliases):
                found.setdefault(plain_name(spelling), entry)
        return found

    def resolve(self, name: str, where: str | None = None) -> ClassEntry:
        """Like `find`, but raises UserError with suggestions if there is no such class.

        `where` is the file and line that contain the name, for the message.
        """
        entry = self.find(name)
        if entry is not None:
            return entry
        problem = f"there is no class {name!r} in {self.label}{_nearest(name, self.classes)}"
        raise UserError(problem if where is None else f"{where}: {problem}")

    def label_of(self, name: str) -> int:
        """The value of a class in label images that count classes from 1; `name` is an official name."""
        return self.names.index(name) + 1

    def unseen(self, split: str) -> tuple[str, ...]:
        """The unseen class names of a split.

        VOC has the 15/5 splits "1", "2" and "3" of the paper, and "zs3" of its Protocol II. COCO has 65/15 splits: "1"
        is that of the paper; "2" and "3" were not published, so they are drawn here by a hash from the other classes.
        """
        all_splits: dict[str, dict[str, tuple[str, ...]]] = {"voc": _VOC_UNSEEN, "coco": _coco_unseen()}
        splits = all_splits.get(self.name, {})
        if split not in splits:
            names = f"{', '.join(splits)}, or " if splits else ""
            raise UserError(
                f"there is no split {split!r} for {self.label}; give {names}a file with one unseen class per line."
            )
        return splits[split]


@functools.cache
def coco() -> Vocabulary:
    """COCO's 80 thing classes with their official ids, 1 to 90 with gaps."""
    numbered = enumerate(_COCO_NAMES.split(), 1)
    named = ((number, name.replace("_", " ")) for number, name in numbered if name != "-")
    return Vocabulary("coco", tuple(ClassEntry(n, name, _COCO_ALIASES.get(name, ())) for n, name in named))


@functools.cache
def voc() -> Vocabulary:
    """PASCAL VOC's 20 classes, ids 1 to 20, with COCO's names as aliases."""
    coco_name = {alias: name for name, aliases in _COCO_ALIASES.items() for alias in aliases}
    return Vocabulary(
        "voc",
        tuple(
            ClassEntry(number, name, (coco_name[name],) if name in coco_name else ())
            for number, name in enumerate(_VOC_NAMES.split(), 1)
        ),
    )


def from_names(names: Sequence[str], label: str = "the class list") -> Vocabulary:
    """Build a vocabulary of the given names in order.

    If all names are COCO classes, it uses COCO's names, aliases and official ids; otherwise ids start at 1. Raises
    UserError for an empty list, an invalid name (see `check_name`), and repeated names, including names that differ
    only in case, whitespace or Unicode form.
    """
    cleaned = [" ".join(check_name(name, label).split()) for name in names if name.strip()]
    if not cleaned:
        raise UserError(f"there is no class name in {label}; give at least one, for example --classes dog,cat.")
    entries = tuple(entry for name in cleaned if (entry := coco().find(name)) is not None)
    if len(entries) < len(cleaned):
        entries = tuple(ClassEntry(number, name) for number, name in enumerate(cleaned, 1))
    first: dict[str, str] = {}
    for entry, spelling in zip(entries, cleaned, strict=True):
        plain = plain_name(entry.name)
        if plain in first:
            spellings = "" if first[plain] == spelling else f" as {first[plain]!a} and {spelling!a}"
            raise UserError(f"the class {plain!r} is repeated in {label}{spellings}; name each class once.")
        first[plain] = spelling
    return Vocabulary(CUSTOM, entries)


def check_name(name: str, label: str) -> str:
    """Return the name; raises UserError if it is "background" or contains a control character such as a newline."""
    problem = None
    control = next((c for c in name if unicodedata.category(c) in _CONTROLS or c in _NOT_IN_XML), None)
    if control is not None:
        problem = f"contains the character U+{ord(control):04X}, which is not allowed; give names such as dog,cat"
    elif plain_name(name) == "background":
        problem = "is implicit and must not be listed; remove it"
    if problem is not None:
        raise UserError(f"the class {name[:60]!r} in {label} {problem}.")
    return name


@functools.lru_cache(4096)
def plain_name(name: str) -> str:
    """Normalise a name for comparison: Unicode compatibility form, case-folded, single spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(_IGNORABLE.sub("", folded).replace("_", " ").split())


def shared_name(name: str) -> str:
    """One text for all names of a class: the COCO name of a COCO class, otherwise the normalised name.

    Vocabularies use different names; for example, the "sofa" of VOC is the "couch" of COCO.
    """
    entry = coco().find(name)
    return plain_name(name) if entry is None else entry.name


def article(name: str) -> str:
    """The article before a name: "a ", "an ", or nothing for a plural."""
    if name in _PLURAL:
        return ""
    return "an " if name[:1].lower() in "aeiou" else "a "


def caption(names: Sequence[str]) -> str:
    """The paper's caption: "a photograph of a dog and a traffic light"."""
    return "a photograph of " + " and ".join(article(name) + name for name in names)


def _nearest(name: str, classes: tuple[ClassEntry, ...]) -> str:
    spellings = [text for entry in classes for text in (entry.name, *entry.aliases)]
    similar = difflib.get_close_matches(plain_name(name), spellings, n=3, cutoff=0.5)
    if similar:
        return f"; did you mean {' or '.join(similar)}?"
    return f"; it has {', '.join(entry.name for entry in classes[:5])}{' and others' if len(classes) > 5 else ''}."


@functools.cache
def _coco_name_set() -> frozenset[str]:
    return frozenset(coco().names)


@functools.cache
def _coco_unseen() -> dict[str, tuple[str, ...]]:
    rest = [name for name in coco().names if name not in _COCO_UNSEEN_1]
    order = sorted(rest, key=lambda name: hashlib.sha256(f"coco split {name}".encode()).digest())
    chosen = {"2": set(order[:15]), "3": set(order[15:30])}
    return {"1": _COCO_UNSEEN_1} | {
        split: tuple(name for name in rest if name in names) for split, names in chosen.items()
    }
