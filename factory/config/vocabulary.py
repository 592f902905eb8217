"""Class lists with fixed ids, aliases and seen/unseen splits, and the captions that name their classes."""

import csv
import difflib
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.errors import UserError

_COCO_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag tie "
    "suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket "
    "bottle - wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut "
    "cake chair couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone "
    "microwave oven toaster sink refrigerator - book clock vase scissors teddy_bear hair_drier toothbrush"
)
"""COCO's things in the order of their official ids from 1; a dash is an id that was never used."""

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

_PLURAL = frozenset({"skis", "scissors"})

_CONTROLS = ("Cc", "Cs", "Co", "Zl", "Zp")
"""Unicode's controls (a newline, a tab), halves of characters, private characters and line separators."""
_IGNORABLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
"""Soft hyphens, zero-width characters and direction marks: two names that differ in these look the same."""
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
"""Those of them that no script needs; U+200C and U+200D stand inside words of Persian and Hindi."""
_LONGEST = 100


@dataclass(frozen=True)
class ClassEntry:
    """One class: its official id, its official name, and what else it is called."""

    id: int
    name: str
    aliases: tuple[str, ...] = ()

    @property
    def display(self) -> str:
        """The name that prompts use: COCO's words for VOC's classes ("dining table", not "diningtable").

        Text encoders know spaced everyday words; the embedded model knows COCO's names only.
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

    def find(self, name: str) -> ClassEntry | None:
        """The class of this name or alias, whatever its case, blanks and underscores; None where there is none."""
        wanted = _plain(name)
        for entry in self.classes:
            if wanted in (_plain(known) for known in (entry.name, *entry.aliases)):
                return entry
        return None

    def resolve(self, name: str) -> ClassEntry:
        """The class of this name or alias, as `find` does; UserError with the nearest names otherwise."""
        entry = self.find(name)
        if entry is not None:
            return entry
        raise UserError(f"There is no class {name!r} in {self.name}{_nearest(name, self.classes)}")

    def by_id(self, class_id: int) -> ClassEntry:
        """The class with this id; UserError where the id is not used."""
        for entry in self.classes:
            if entry.id == class_id:
                return entry
        ids = [entry.id for entry in self.classes]
        raise UserError(
            f"No class of {self.name} has the id {class_id}; its ids lie between {min(ids)} and {max(ids)}."
        )

    def unseen(self, split: str) -> tuple[str, ...]:
        """The names that a split leaves unseen.

        VOC: 15/5 splits "1", "2", "3" of the paper, and "zs3" of its Protocol II. COCO: 65/15, where "1" is the
        paper's; "2" and "3" were never published and are this project's own, drawn by hash from the other classes.
        """
        all_splits: dict[str, dict[str, tuple[str, ...]]] = {"voc": _VOC_UNSEEN, "coco": _coco_unseen()}
        splits = all_splits.get(self.name, {})
        if split not in splits:
            allowed = ", ".join(splits) or "none"
            raise UserError(f"There is no split {split!r} of {self.name}; its splits are: {allowed}.")
        return splits[split]

    def seen(self, split: str) -> tuple[str, ...]:
        """The names that a split may train on, in the vocabulary's order."""
        unseen = self.unseen(split)
        return tuple(name for name in self.names if name not in unseen)


@functools.cache
def coco() -> Vocabulary:
    """COCO's 80 things with their official ids, 1 to 90 with gaps."""
    rows = enumerate(_COCO_NAMES.split(), 1)
    named = ((number, word.replace("_", " ")) for number, word in rows if word != "-")
    return Vocabulary("coco", tuple(ClassEntry(n, name, _COCO_ALIASES.get(name, ())) for n, name in named))


@functools.cache
def voc() -> Vocabulary:
    """PASCAL VOC's 20 classes, ids 1 to 20, with COCO's names as aliases."""
    coco_name = {alias: name for name, aliases in _COCO_ALIASES.items() for alias in aliases}
    rows = enumerate(_VOC_NAMES.split(), 1)
    return Vocabulary("voc", tuple(ClassEntry(n, w, (coco_name[w],) if w in coco_name else ()) for n, w in rows))


def from_names(names: Sequence[str], label: str = "the class list") -> Vocabulary:
    """A vocabulary of the given names in their order.

    If COCO knows every one of them it lends its names, aliases and official ids; otherwise ids count from 1. Raises
    UserError for an empty list, a name that cannot be one (see `_check_name`), and a name that comes twice, also where
    the two differ in case, blanks or Unicode form only.
    """
    cleaned = [" ".join(_check_name(name, label).split()) for name in names if name.strip()]
    if not cleaned:
        raise UserError(f"There is no class name in {label}; give at least one, as in --classes dog,cat.")
    by_name = {_plain(known): entry for entry in coco().classes for known in (entry.name, *entry.aliases)}
    known = [by_name.get(_plain(name)) for name in cleaned]
    if all(known):
        entries = tuple(entry for entry in known if entry is not None)
    else:
        entries = tuple(ClassEntry(number, name) for number, name in enumerate(cleaned, 1))
    first: dict[str, str] = {}
    for entry, given in zip(entries, cleaned, strict=True):
        plain = _plain(entry.name)
        if plain in first:
            told = "" if first[plain] == given else f" as {first[plain]!a} and {given!a}"
            raise UserError(f"The class {plain!r} comes twice in {label}{told}; name each class once.")
        first[plain] = given
    return Vocabulary("custom", entries)


def parse_classes(text: str) -> Vocabulary:
    """What `--classes` takes: `coco`, `voc`, a file of names, or names with commas between them."""
    from factory.config.class_file import SUFFIXES, read_class_file

    if text in ("coco", "voc"):
        return coco() if text == "coco" else voc()
    label = f"--classes {text[:80]!r}"
    try:
        if Path(text).is_file():
            return _checked(read_class_file(Path(text)), f"the file {text}")
    except (OSError, ValueError) as error:  # a path that is too long, or holds a NUL
        if isinstance(error, UserError):
            raise
    if text.lower().endswith(SUFFIXES) or "/" in text:
        raise UserError(f"There is no class file {text}; give coco, voc, an existing file, or names like dog,cat.")
    _check_name(text, "--classes")
    try:
        row = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise UserError(f"{label} cannot be read ({error}); give names with commas between them: dog,cat.") from error
    return _checked(row, label)


def _checked(names: Sequence[str], label: str) -> Vocabulary:
    """`from_names` for what a person gives now; a recipe that holds such a name keeps it."""
    for name in (name for name in names if name.strip()):
        told = None
        if not any(letter.isalpha() for letter in name):
            told = "has no letter; give names, not ids"
        elif _UNSEEN.search(name):
            told = f"holds an invisible character ({name[:60]!a}); type the name again"
        elif len(name) > _LONGEST:
            told = f"is longer than {_LONGEST} characters; give one name per class"
        if told is not None:
            raise UserError(f"The class {name.strip()[:60]!r} in {label} {told}.")
    return from_names(names, label)


def _check_name(name: str, label: str) -> str:
    """The name; UserError where it is background or holds a control character, as a newline."""
    told = None
    strange = next((letter for letter in name if unicodedata.category(letter) in _CONTROLS), None)
    if strange is not None:
        told = f"holds the character U+{ord(strange):04X}, which is no letter of a name; give names like dog,cat"
    elif _plain(name) == "background":
        told = "is what all pixels of no class are, and is never listed; leave it out"
    if told is not None:
        raise UserError(f"The class {name[:60]!r} in {label} {told}.")
    return name


def article(name: str) -> str:
    """ "a " or "an " as the name wants, nothing before a plural."""
    if name in _PLURAL:
        return ""
    return "an " if name[:1].lower() in "aeiou" else "a "


def caption(names: Sequence[str]) -> str:
    """The paper's caption: "a photograph of a dog and a traffic light"."""
    return "a photograph of " + " and ".join(article(name) + name for name in names)


@functools.lru_cache(4096)
def _plain(name: str) -> str:
    """What two spellings of one class have in common: Unicode's compatibility form, small letters, single blanks."""
    form = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(_IGNORABLE.sub("", form).replace("_", " ").split())


def _nearest(name: str, classes: tuple[ClassEntry, ...]) -> str:
    known = [text for entry in classes for text in (entry.name, *entry.aliases)]
    near = difflib.get_close_matches(_plain(name), known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
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
