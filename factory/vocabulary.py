"""Class lists with fixed ids, aliases and seen/unseen splits, and the captions that name their classes."""

import csv
import difflib
import functools
import hashlib
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

    def resolve(self, name: str) -> ClassEntry:
        """The class of this name or alias, whatever its case; UserError with the nearest names otherwise."""
        wanted = _plain(name)
        for entry in self.classes:
            if wanted in (_plain(known) for known in (entry.name, *entry.aliases)):
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
    UserError for an empty list and for a name that comes twice.
    """
    cleaned = [" ".join(name.split()) for name in names if name.strip()]
    if not cleaned:
        raise UserError(f"There is no class name in {label}; give at least one, as in --classes dog,cat.")
    by_name = {_plain(known): entry for entry in coco().classes for known in (entry.name, *entry.aliases)}
    known = [by_name.get(_plain(name)) for name in cleaned]
    if all(known):
        entries = tuple(entry for entry in known if entry is not None)
    else:
        entries = tuple(ClassEntry(number, name) for number, name in enumerate(cleaned, 1))
    final = [_plain(entry.name) for entry in entries]
    twice = next((name for position, name in enumerate(final) if name in final[:position]), None)
    if twice is not None:
        raise UserError(f"The class {twice!r} comes twice in {label}; name each class once.")
    return Vocabulary("custom", entries)


def parse_classes(text: str) -> Vocabulary:
    """What `--classes` takes: `coco`, `voc`, a file with a name per line, or names with commas between them."""
    if text in ("coco", "voc"):
        return coco() if text == "coco" else voc()
    path = Path(text)
    try:
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return from_names([line for line in lines if not line.lstrip().startswith("#")], f"the file {text}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The class file {text} cannot be read ({error}); it should hold one name per line.") from error
    if text.endswith((".txt", ".csv", ".names")) or "/" in text:
        raise UserError(f"There is no class file {text}; give coco, voc, an existing file, or names like dog,cat.")
    row = next(csv.reader([text], skipinitialspace=True), [])
    return from_names(row, f"--classes {text!r}")


def article(name: str) -> str:
    """ "a " or "an " as the name wants, nothing before a plural."""
    if name in _PLURAL:
        return ""
    return "an " if name[:1].lower() in "aeiou" else "a "


def caption(names: Sequence[str]) -> str:
    """The paper's caption: "a photograph of a dog and a traffic light"."""
    return "a photograph of " + " and ".join(article(name) + name for name in names)


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


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
