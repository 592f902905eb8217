"""Words that name classes: names, aliases, plurals and synonyms, and where they occur in a text."""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from factory.config.vocabulary import ClassEntry, Vocabulary, coco, plain_name

_SYNONYMS = {
    "person": "people human man men woman women boy girl child children kid baby toddler lady gentleman guy teenager "
    "adult crowd pedestrian passerby player athlete rider cyclist driver skier surfer skateboarder tourist farmer "
    "worker someone somebody he she him her his",
    "bicycle": "bike bicycles tricycle",
    "car": "automobile vehicle sedan taxi cab suv minivan van jeep convertible hatchback",
    "motorcycle": "bike moped scooter motor_scooter motor_cycle",
    "airplane": "aircraft airliner jet jetliner biplane seaplane",
    "bus": "minibus double_decker vehicle",
    "train": "locomotive tram subway railcar metro",
    "truck": "lorry pickup van vehicle trailer",
    "boat": "ship ferry yacht canoe kayak sailboat rowboat vessel dinghy barge",
    "traffic light": "traffic_signal stoplight street_light",
    "fire hydrant": "hydrant",
    "stop sign": "road_sign traffic_sign street_sign",
    "bench": "pew",
    "bird": "seagull gull pigeon parrot owl duck goose geese swan eagle hawk sparrow chicken hen rooster crow penguin "
    "pelican flamingo peacock turkey",
    "cat": "kitten kitty tabby feline",
    "dog": "puppy pup hound canine terrier poodle retriever labrador bulldog dachshund collie beagle",
    "horse": "pony foal mare stallion colt",
    "sheep": "lamb ram ewe",
    "cow": "cattle calf calves bull ox oxen",
    "elephant": "mammoth",
    "bear": "grizzly panda polar_bear cub",
    "backpack": "rucksack knapsack school_bag bag",
    "umbrella": "parasol",
    "handbag": "purse bag tote tote_bag shoulder_bag",
    "tie": "necktie bow_tie bowtie cravat",
    "suitcase": "luggage baggage briefcase bag",
    "frisbee": "flying_disc",
    "skis": "ski",
    "sports ball": "ball basketball football baseball volleyball soccer_ball tennis_ball golf_ball rugby_ball",
    "baseball bat": "bat",
    "baseball glove": "baseball_mitt mitt glove",
    "skateboard": "longboard",
    "surfboard": "surf_board bodyboard",
    "tennis racket": "tennis_racquet racket racquet",
    "bottle": "flask",
    "wine glass": "glass goblet champagne_flute",
    "cup": "mug teacup coffee_cup tumbler beaker",
    "fork": "cutlery silverware",
    "knife": "cutlery silverware dagger cleaver",
    "spoon": "cutlery silverware ladle teaspoon",
    "bowl": "basin",
    "sandwich": "burger hamburger cheeseburger panini",
    "orange": "tangerine mandarin clementine citrus",
    "hot dog": "hotdog frankfurter",
    "cake": "cupcake cheesecake gateau tart",
    "chair": "armchair stool seat rocking_chair deck_chair",
    "couch": "settee loveseat divan",
    "potted plant": "plant house_plant houseplant flowerpot flower_pot bonsai succulent",
    "bed": "bunk mattress cot crib bedding",
    "dining table": "table desk",
    "toilet": "lavatory urinal bidet loo",
    "tv": "tv_set tv_monitor monitor screen flat_screen",
    "laptop": "computer notebook notebook_computer",
    "mouse": "computer_mouse mice",
    "remote": "remote_control controller",
    "keyboard": "piano",
    "cell phone": "phone smartphone telephone mobile",
    "microwave": "microwave_oven",
    "oven": "stove cooker",
    "sink": "washbasin wash_basin basin washbowl",
    "refrigerator": "fridge freezer icebox",
    "book": "novel notebook textbook magazine",
    "clock": "wristwatch alarm_clock",
    "vase": "urn flowerpot flower_pot",
    "scissors": "shears",
    "teddy bear": "teddy stuffed_animal stuffed_toy stuffed_bear plush",
    "hair drier": "blow_dryer blow_drier",
    "toothbrush": "tooth_brush",
}
"""Words besides name and aliases that show or imply a COCO class; an underscore stands for a space."""

_PLURALS = {
    "person": "people", "sheep": "sheep", "mouse": "mice", "knife": "knives", "fish": "fish", "deer": "deer",
    "man": "men", "woman": "women", "child": "children", "foot": "feet", "goose": "geese", "wolf": "wolves",
    "leaf": "leaves", "shelf": "shelves", "loaf": "loaves", "half": "halves", "ox": "oxen", "tooth": "teeth",
    "skis": "skis", "scissors": "scissors", "tv": "tvs",
    "broccoli": "broccoli",
}  # fmt: skip


_TOKEN = re.compile(r"""[^\s_\-.,;:!?()\[\]{}"'\u2018\u2019\u201c\u201d«»…/&+]+""")
"""A word, defined by the characters that separate words, because letters of some scripts are not alphanumeric."""
_GAP = re.compile(r"[\s_\-.'\u2019/&+]*")
"""What may separate the words of a name."""
_SENTENCE_END = re.compile(r"\w{3,}\.\s")
"""A full stop after a shorter word marks an abbreviation, as in "St. Bernard"."""


def plural(name: str) -> str:
    """The English plural of a name, formed from its last word: "traffic lights", "wine glasses"."""
    head, space, last = name.rpartition(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = f"{last[:-1]}ies"
    else:
        last += "s"
    return head + space + last


@dataclass(frozen=True)
class Mention:
    """A place in a text that names a class: text[start:end].

    `exact` is true for a name, an alias or its plural, and false for a synonym such as "puppy".
    """

    start: int
    end: int
    class_name: str
    exact: bool


class ClassWords:
    """Finds every mention of the classes of a vocabulary in a text.

    With `others`, COCO classes that the vocabulary does not contain are found as well (also by their VOC names); their
    class name is that of COCO with the prefix "coco:". Case, hyphens and spaces within a name are ignored. Other
    characters within a name, as in "bow (weapon)", must be written as in the name.
    """

    def __init__(self, vocabulary: Vocabulary, others: bool = False) -> None:
        entries = {entry.name: entry for entry in vocabulary.classes}
        if others:
            known = {match.name for entry in vocabulary.classes if (match := _coco_entry(entry)) is not None}
            entries |= {f"coco:{entry.name}": entry for entry in coco().classes if entry.name not in known}
        self._classes: dict[str, tuple[str, bool]] = {}
        """(class, whether it is its own name) by spelling."""
        self._literal: set[str] | None = None if others else set()
        """Spellings with all characters between their words. None with `others`: rich prompts must not change."""
        self._max_tokens = 1
        """Tokens of the longest spelling."""
        for name, entry in entries.items():
            self._add(name, True, (entry.name, entry.display, *entry.aliases))
        for name, entry in entries.items():
            self._add(name, True, [plural(text) for text in (entry.name, entry.display, *entry.aliases)])
        for name, entry in entries.items():
            words = synonyms(entry)
            self._add(name, False, [*words, *(plural(word) for word in words)])

    def mentions(self, text: str) -> list[Mention]:
        """The mentions in order. Longer names are preferred: "a hot dog" mentions no dog."""
        tokens, found, index = list(_TOKEN.finditer(text)), [], 0
        while index < len(tokens):
            mention, count = self._longest(text, tokens[index : index + self._max_tokens])
            if mention is not None:
                found.append(mention)
            index += count
        return found

    def _longest(self, text: str, tokens: Sequence[re.Match[str]]) -> tuple[Mention | None, int]:
        """(the longest name that the tokens begin with, its number of tokens); (None, 1) if there is none."""
        longest, spelling, joined = None, "", True
        for count, token in enumerate(tokens, 1):
            joined = joined and (count == 1 or self._joined(text, tokens[count - 2], token))
            if not (joined or self._literal):
                break
            spelling += _folded(token[0])
            literal = self._literal and plain_name(text[tokens[0].start() : token.end()]) in self._literal
            if spelling in self._classes and (joined or literal):
                name, exact = self._classes[spelling]
                longest = Mention(tokens[0].start(), token.end(), name, exact), count
        return longest or (None, 1)

    @staticmethod
    def _joined(text: str, before: re.Match[str], token: re.Match[str]) -> bool:
        """Whether two successive tokens may belong to one name."""
        gap = _GAP.fullmatch(text, before.end(), token.start())
        return gap is not None and _SENTENCE_END.match(text, before.start(), token.start()) is None

    def _add(self, name: str, exact: bool, texts: Iterable[str]) -> None:
        """Add spellings of a class; a spelling that already belongs to another class stays there."""
        for text in texts:
            tokens = list(_TOKEN.finditer(text))
            self._max_tokens = max(self._max_tokens, len(tokens))
            self._classes.setdefault("".join(_folded(token[0]) for token in tokens), (name, exact))
            gaps = [pair for pair in itertools.pairwise(tokens) if not self._joined(text, *pair)]
            if self._literal is not None and gaps:
                self._literal.add(plain_name(text[tokens[0].start() : tokens[-1].end()]))


def synonyms(entry: ClassEntry) -> list[str]:
    """The synonyms of a class that is also a COCO class; empty for any other."""
    match = _coco_entry(entry)
    return [] if match is None else [word.replace("_", " ") for word in _SYNONYMS.get(match.name, "").split()]


def _coco_entry(entry: ClassEntry) -> ClassEntry | None:
    return coco().find(entry.display)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text.casefold())
