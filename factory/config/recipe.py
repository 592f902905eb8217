"""The recipe: everything that a set is made from, validated, with a fingerprint over what changes the bytes."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from factory.config.class_balance import MAX_OBJECTS
from factory.config.prompts import Prompt, make_prompt
from factory.config.sections import (
    READ_BY_ATTENTION,
    EngineRecipe,
    FilterRecipe,
    GeneratorRecipe,
    MaskRecipe,
    OracleRecipe,
    PromptRow,
    RealRecipe,
    Section,
    StoreRecipe,
)
from factory.config.vocabulary import Vocabulary, coco, from_names, voc
from factory.errors import UserError
from factory.files.text import read_text


class Recipe(Section):
    """What to make.

    `fingerprint()` covers what changes a shard's bytes; `n`, `earlier`, `engine` and `store` are not in it.
    """

    # `format` goes up when the same recipe would give other bytes. Older formats are still made as they were.
    format: Literal[1, 2] = Field(
        default=2, description="The version of the recipe's meaning; 1 is that of datasets begun before."
    )
    classes: Literal["coco", "voc"] | tuple[str, ...] = Field(
        default="coco", description="A vocabulary's name, or the class names in order."
    )
    n: int = Field(ge=1, le=10**9, description="Accepted samples wanted.")
    earlier: tuple[int, ...] = Field(
        default=(), description="The sizes that the set had before it was extended, ascending."
    )
    seed: int = Field(default=0, ge=0, lt=2**63)
    objects: dict[int, float] = Field(default={1: 1.0}, description="Share of samples by number of objects.")
    prompts: tuple[PromptRow, ...] | None = Field(
        default=None, description="Prompts of the user's own, instead of captions."
    )
    shard_size: int = Field(default=100, ge=1, le=100_000, description="Samples of a shard.")
    batch: int = Field(default=8, ge=1, le=1024, description="Images generated together.")
    attempts: int = Field(
        default=16, ge=1, le=1000, description="Seeds tried for a sample before its place stays empty."
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    generator: GeneratorRecipe = GeneratorRecipe()
    masks: MaskRecipe = MaskRecipe()
    filters: FilterRecipe = FilterRecipe()
    engine: EngineRecipe = EngineRecipe()
    store: StoreRecipe = StoreRecipe()
    oracle: OracleRecipe | None = Field(default=None, description="Null for a set of images with masks.")
    real: RealRecipe | None = Field(default=None, description="Null where images are generated.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_embedded(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        generator, masks = data.get("generator", {}), data.get("masks", {})
        if (
            not isinstance(generator, dict)
            or not isinstance(masks, dict)
            or generator.get("model", "stickers") != "stickers"
        ):
            return data
        chosen = {"source", *READ_BY_ATTENTION} & masks.keys() or data.get("oracle") or data.get("real")
        source = {} if chosen else {"source": "stickers"}
        return data | {"masks": {"levels": (1, 2), **source, **masks}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = (*self.earlier, self.n)
        if list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
            raise ValueError(f"earlier sizes grow from 1 up to n, got {list(self.earlier)} before n = {self.n}")
        vocabulary = self.vocabulary()
        if len({entry.id for entry in vocabulary.classes} & set(range(1, 255))) < len(vocabulary.classes):
            raise ValueError(f"a label picture has room for 254 classes, got {len(vocabulary.classes)}")
        prompts = self.user_prompts()
        if prompts is None:
            _check_objects(self.objects, len(self.planned_names()))
        if self.real is not None and self.oracle is None:
            raise ValueError("a set of real images is an oracle: it has a split, or `all`")
        if self.oracle is not None:
            _check_oracle(self, {name for prompt in prompts or () for name in prompt.classes})
        return self

    def planned_names(self) -> tuple[str, ...]:
        """The classes that prompts name: all, or the seen ones of an oracle."""
        names = self.vocabulary().names
        return names if self.oracle is None else tuple(name for name in names if name in self.oracle.seen)

    def vocabulary(self) -> Vocabulary:
        """The classes with their ids."""
        if isinstance(self.classes, tuple):
            return from_names(self.classes, "the recipe")
        return coco() if self.classes == "coco" else voc()

    def user_prompts(self) -> list[Prompt] | None:
        """The recipe's own prompts, checked against its classes; None where captions are used."""
        if self.prompts is None:
            return None
        if not self.prompts:
            raise ValueError("prompts are null or at least one")
        vocabulary = self.vocabulary()
        rows = enumerate(self.prompts, 1)
        return [make_prompt(row.text, row.classes, f"prompt {number}", vocabulary) for number, row in rows]

    def content(self) -> dict[str, Any]:
        """What changes a shard's bytes, as plain data.

        Fields that came after the first release of the format are left out where they are null, so that a set that
        was begun before them keeps its fingerprint.
        """
        data = self.model_dump(mode="json", exclude={"n", "earlier", "engine", "store"})
        for name in ("oracle", "real"):
            if data[name] is None:
                del data[name]
        if data["masks"]["grounder_revision"] is None:
            del data["masks"]["grounder_revision"]
        return data

    def fingerprint(self) -> str:
        """64 hex digits over `content()`."""
        return hashlib.sha256(canonical(self.content())).hexdigest()

    def to_yaml(self) -> str:
        """A file that `load_recipe` reads back to an equal recipe.

        But for `store`, which says how one user reaches the bucket and is not written into the dataset.
        """
        head = f"# factory generate --recipe recipe.yaml --shards DIR\n# fingerprint: {self.fingerprint()}\n"
        return head + yaml.safe_dump(
            self.model_dump(mode="json", exclude={"store"}), sort_keys=False, allow_unicode=True, width=110
        )


def canonical(data: object) -> bytes:
    """The one JSON text of some plain data: sorted, without spaces, UTF-8."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 60) : error.end + 20]
        raise UserError(
            f"a name cannot be written as UTF-8, near {near!r}: it is that of a file or folder in another encoding, or "
            f"half a character; rename it."
        ) from error


def make_recipe(data: Mapping[str, Any], where: str = "the options") -> Recipe:
    """Validate plain data; UserError with a sentence that names every field that is wrong."""
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        wrong = [
            (
                ".".join(str(part) for part in row["loc"]) or "the recipe",
                row["msg"].removeprefix("Value error, "),
                row["input"],
            )
            for row in error.errors()
        ]
        told = "; ".join(
            message
            if name == "the recipe"
            # A key that was put into `store` by mistake must not end up in a log.
            else f"{name}: {message}{'' if value is data or name.startswith('store') else f' (got {value!r})'[:80]}"
            for name, message, value in wrong
        )
        told += ". `factory generate --help` and schemas/recipe.json tell what is allowed."
        raise UserError(f"{where}: {told}") from error


def load_recipe(path: str | Path) -> dict[str, Any]:
    """The plain data of a recipe file, not yet validated, so that options can override it."""
    return parse_recipe(read_text(path, "recipe"), str(path))


def parse_recipe(text: str, where: str) -> dict[str, Any]:
    """Plain data of a recipe's text; UserError where it is no YAML mapping, as after a write that was cut off."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{where} is no recipe, its YAML breaks off: {said}.") from error
    if not isinstance(data, dict):
        raise UserError(f"{where} is no recipe: it holds a {type(data).__name__}, not fields like `classes:` and `n:`.")
    return data


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Each field of the content that differs, as "generator.steps: 20 -> 30"."""
    return _differences(old.content(), new.content(), "")


def _differences(old: Any, new: Any, name: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line for key in keys for line in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_objects(objects: Mapping[int, float], classes: int) -> None:
    shares = {count: share for count, share in objects.items() if share}
    if not shares or any(not (1 <= count <= MAX_OBJECTS and 0 < share < math.inf) for count, share in shares.items()):
        raise ValueError(f'objects are 1 to {MAX_OBJECTS} with shares over 0, as in "1:0.5,2:0.5", got {dict(objects)}')
    needed = {count: count if count < 3 else 3 * (count - 1) for count in shares}
    for count, least in needed.items():
        if classes < least:
            raise ValueError(f"{count} objects in a prompt need at least {least} classes, got {classes}")


def _check_oracle(recipe: Recipe, prompted: set[str]) -> None:
    assert recipe.oracle is not None
    strange = set(recipe.oracle.seen) - set(recipe.vocabulary().names)
    if strange:
        raise ValueError(f"the seen classes {sorted(strange)} are not among the set's classes")
    leaked = prompted - set(recipe.oracle.seen)
    if leaked:
        raise ValueError(f"a prompt of the oracle names {sorted(leaked)}, which its split leaves unseen")
    if len(recipe.masks.timesteps) != 1:
        raise ValueError("an oracle takes features from one timestep")
    if recipe.masks.source != ("detector" if recipe.real is None else "labels"):
        raise ValueError("an oracle takes masks from the detector, and those of real images from their labels")
    if recipe.real is not None and len(recipe.real.keys) != len(recipe.prompts or ()):
        raise ValueError(f"{len(recipe.real.keys)} images have {len(recipe.prompts or ())} prompts")
    if recipe.real is not None and recipe.n != len(recipe.real.keys):
        raise ValueError(f"n is the number of images, {len(recipe.real.keys)}")


def parse_objects(text: str) -> dict[int, float]:
    """ "1:0.5,2:0.5" as shares by number of objects; "2" alone is "2:1"."""
    form = '--objects is number:share pairs such as "1:0.5,2:0.5"'
    shares: dict[int, float] = {}
    for part in text.split(","):
        count, colon, share = part.partition(":")
        try:
            number, value = int(count), float(share) if colon else 1.0
        except ValueError as error:
            raise UserError(f"{form}, got {text!r}.") from error
        if not math.isfinite(value) or value < 0:
            raise UserError(f"{form}; a share is a number from 0 up, got {share.strip()!r} in {text!r}.")
        if number in shares:
            raise UserError(f"{form}; give each number of objects once, got {number} twice in {text!r}.")
        shares[number] = value
    return shares
