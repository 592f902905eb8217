"""The recipe of a dataset: its validated settings and their fingerprint."""

import hashlib
from collections.abc import Mapping
from os import PathLike
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from factory.config.batch_size import BatchSize
from factory.config.cooccurrence import pair_weights
from factory.config.guidance import CONSTANT
from factory.config.named_or import named_or
from factory.config.object_counts import ObjectShares, check_objects
from factory.config.problems import recipe_problems
from factory.config.prompts import Prompt, make_prompt
from factory.config.sections import (
    EARLIER_FORMATS,
    READ_BY_ATTENTION,
    EngineRecipe,
    FilterRecipe,
    GeneratorRecipe,
    MaskRecipe,
    OracleRecipe,
    PromptEntry,
    RealRecipe,
    Section,
    StoreRecipe,
    model_in,
    plain_fields,
)
from factory.config.stickers import EMBEDDED_MODELS
from factory.config.vocabulary import Vocabulary, coco, from_names, voc
from factory.errors import UserError, first_few
from factory.files.paths import local_path, path_text
from factory.files.strict_json import canonical
from factory.files.strict_yaml import parse_yaml
from factory.files.text import read_text

FORMAT = 3
"""The format of new datasets."""

_KINDS: dict[type[object], str] = {list: "list", str: "text"}
_NEXT_LINE = "\x85"

LATER_FIELDS = {
    "masks": ("noise_level", "noise_seed", "blocks"),
    "generator": ("lora", "lora_revision", "lora_scale", "quantize"),
}
"""Fields that formats 1 and 2 do not have."""


class Recipe(Section):
    """The settings of a dataset; build one with `make_recipe`.

    Recipes are immutable. The page "Recipe fields" and schemas/recipe.json describe the fields.
    """

    # `format` is incremented when the same recipe would give different bytes. Datasets of older formats can be read.
    format: Literal[1, 2, 3] = Field(
        default=3,
        description="Version of the rules by which samples are generated; datasets of 1 and 2 can be read, but not "
        "generated.",
    )
    classes: Annotated[
        Literal["coco", "voc"] | tuple[str, ...], named_or("a list of names such as [dog, cat]", "coco", "voc")
    ] = Field(default="coco", description="Name of a vocabulary, or a list of class names.")
    n: int = Field(ge=1, le=10**9, description="Number of accepted samples to generate.")
    earlier: tuple[int, ...] = Field(default=(), description="Sizes of the dataset before each extension, ascending.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed from which the seed of each sample is derived.")
    objects: ObjectShares = Field(default={1: 1.0}, description="Share of samples by number of objects.")
    cooccurrence: Annotated[
        Literal["coco"] | dict[str, dict[str, Annotated[float, Field(strict=True, ge=0)]]] | None,
        named_or("a table of weights such as {dog: {cat: 3}}", "coco"),
    ] = Field(
        default=None,
        description="How often classes occur together: `coco`, as in the images of COCO, or a weight for each pair; if "
        "null, all pairs are equally likely.",
    )
    prompt_style: Literal["simple", "rich"] = Field(
        default="simple",
        description="Style of generated prompts: `simple` is a caption of the class names; `rich` adds attributes, "
        "places, light, weather, viewpoints and camera.",
    )
    prompts: tuple[PromptEntry, ...] | None = Field(
        default=None,
        description="Custom prompts, used instead of generated ones: a list of entries with `text` and `classes`, a "
        "list of classes or a mapping of each class to its phrase in the text.",
    )
    prompts_digest: str | None = Field(
        default=None,
        description="SHA-256 of the prompts file, for the record; not part of the fingerprint, which covers the "
        "prompts themselves.",
    )
    shard_size: int = Field(default=100, ge=1, le=100_000, description="Samples per shard.")
    batch: BatchSize = Field(
        default=8,
        ge=0,
        le=1024,
        description="Images that are generated together; `auto` measures how many fit into GPU memory when the "
        "dataset is created, and is 8 on CPUs.",
    )
    attempts: int = Field(default=16, ge=1, le=1000, description="Seeds to try for a sample before it is skipped.")
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="JPEG quality of the images.")
    generator: GeneratorRecipe = GeneratorRecipe()
    masks: MaskRecipe = MaskRecipe()
    filters: FilterRecipe = FilterRecipe()
    engine: EngineRecipe = EngineRecipe()
    store: StoreRecipe = StoreRecipe()
    oracle: OracleRecipe | None = Field(default=None, description="Null unless this is an oracle dataset.")
    real: RealRecipe | None = Field(default=None, description="Null unless the images are real.")

    @model_validator(mode="before")
    @classmethod
    def _embedded_model_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        model, masks = model_in(data.get("generator", {})), data.get("masks", {})
        if model not in EMBEDDED_MODELS or not isinstance(masks, dict):
            return data
        given = {name for name in ("source", *READ_BY_ATTENTION, *EARLIER_FORMATS) if masks.get(name) is not None}
        chosen = given or data.get("oracle") or data.get("real")
        source = {} if chosen else {"source": model}
        return data | {"masks": {"levels": (1, 2), **source, **masks}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = (*self.earlier, self.n)
        if list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
            raise ValueError(
                f"earlier must contain ascending sizes from 1 to n - 1, got {list(self.earlier)} with n = {self.n}"
            )
        if self.format >= FORMAT and (self.masks.capture or self.masks.timesteps):
            raise ValueError(
                "masks.capture and masks.timesteps belong to formats 1 and 2; masks.noise_level replaces them: "
                "timestep 100 of Stable Diffusion is 0.256"
            )
        vocabulary = self.vocabulary()
        if len({entry.id for entry in vocabulary.classes} & set(range(1, 255))) < len(vocabulary.classes):
            raise ValueError(f"a label image can hold at most 254 classes, got {len(vocabulary.classes)}")
        if self.oracle is not None and (unknown := set(self.oracle.seen) - set(vocabulary.names)):
            known = first_few(vocabulary.names)
            raise ValueError(f"the seen classes {sorted(unknown)} are not classes of the dataset: {known}")
        prompts = self.user_prompts()
        if prompts is None:
            check_objects(self.objects, len(self.planned_names()))
            _check_cooccurrence(self)
            if self.prompts_digest is not None:
                raise ValueError("prompts_digest is the digest of a prompts file; leave it out if there are no prompts")
        elif self.cooccurrence is not None:
            raise ValueError("cooccurrence applies to generated prompts; leave it out, or leave out the prompts")
        elif self.prompt_style != "simple":
            raise ValueError("prompt_style applies to generated prompts; leave it out, or leave out the prompts")
        if self.real is not None and self.oracle is None:
            raise ValueError("inverted images (`real`) require the section `oracle`, whose split may be `all`")
        if self.oracle is not None:
            _check_oracle(self, {name for prompt in prompts or () for name in prompt.classes})
        return self

    def planned_names(self) -> tuple[str, ...]:
        """The classes that prompts may name: all of them, or the seen classes of an oracle dataset."""
        names = self.vocabulary().names
        return names if self.oracle is None else tuple(name for name in names if name in self.oracle.seen)

    def vocabulary(self) -> Vocabulary:
        """The classes and their ids."""
        if isinstance(self.classes, tuple):
            return from_names(self.classes, "the recipe")
        return coco() if self.classes == "coco" else voc()

    def uses_detector(self) -> bool:
        """Whether the detector is used, for masks or for a filter."""
        return self.masks.source == "detector" or self.filters.min_detector_iou is not None

    def user_prompts(self) -> list[Prompt] | None:
        """The custom prompts, checked against the classes; None if prompts are generated."""
        if self.prompts is None:
            return None
        if not self.prompts:
            raise ValueError("prompts must be null or a list of at least one prompt")
        vocabulary = self.vocabulary()
        return [
            make_prompt(entry.text, entry.classes, f"prompt {number}", vocabulary)
            for number, entry in enumerate(self.prompts, 1)
        ]

    def content(self) -> dict[str, Any]:
        """Everything that affects the bytes of a shard, as plain data.

        `n`, `earlier`, `prompts_digest`, `engine` and `store` are left out. So that older datasets keep their
        fingerprint, fields that a format does not have are left out as well, and fields that were added to a format
        later are left out at their defaults.
        """
        data = self.model_dump(mode="json", exclude={"n", "earlier", "prompts_digest", "engine", "store"})
        for name in ("oracle", "real", "cooccurrence"):
            if data[name] is None:
                del data[name]
        if data["prompt_style"] == "simple":
            del data["prompt_style"]
        if data["generator"]["guidance_schedule"] == CONSTANT:
            del data["generator"]["guidance_schedule"]
        if data["masks"]["grounder_revision"] is None:
            del data["masks"]["grounder_revision"]
        if data["filters"]["min_largest_region"] is None:
            del data["filters"]["min_largest_region"]
        absent = {"masks": EARLIER_FORMATS} if self.format >= FORMAT else LATER_FIELDS
        for section, names in absent.items():
            for name in names:
                del data[section][name]
        return data

    def fingerprint(self) -> str:
        """The SHA-256 of `content()`, 64 hex digits: equal fingerprints mean equal bytes."""
        return hashlib.sha256(canonical(self.content())).hexdigest()

    def to_yaml(self) -> str:
        """The recipe as YAML, which `load_recipe` can read.

        `store` is left out, because it describes how one user accesses the bucket and is not part of the dataset.
        """
        head = f"# factory generate --recipe recipe.yaml --shards DIR\n# fingerprint: {self.fingerprint()}\n"
        data = self.model_dump(mode="json", exclude={"store"})
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
        if _NEXT_LINE in text:  # unless it is escaped, YAML reads it as a space
            text = yaml.safe_dump(data, sort_keys=False, width=110)
        return head + text


def make_recipe(data: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """Build a recipe from plain data.

    Args:
        data: The fields of the recipe, such as {"classes": ["dog", "cat"], "n": 100}; only `n` is required.
        where: The source of the data, for error messages.

    Returns:
        The validated recipe.

    Raises:
        UserError: Fields are invalid; the message names up to ten of them.
    """
    if not isinstance(data, Mapping):
        raise UserError(
            f'{where} must be a mapping such as {{"classes": ["dog", "cat"], "n": 100}}, got a {type(data).__name__}.'
        )
    try:
        return Recipe.model_validate(plain_fields(data))
    except ValidationError as error:
        problems = recipe_problems(error.errors(), Recipe)
        end = "" if problems.endswith("?") else "."
        hint = "See `factory generate --help` and schemas/recipe.json for allowed values."
        raise UserError(f"{where}: {problems}{end} {hint}") from error


def load_recipe(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a recipe file as plain data, which is not validated yet, so that options can override it.

    Args:
        path: The YAML file.

    Returns:
        The fields of the recipe, for `make_recipe`.

    Raises:
        UserError: The file cannot be read or is not a YAML mapping.
    """
    file = local_path(path_text(path, "a recipe file must be a path"), "the path of the recipe")
    return parse_recipe(read_text(file, "recipe"), str(path))


def parse_recipe(text: str, where: str) -> dict[str, Any]:
    """Parse a recipe as plain data; raises UserError if it is not a YAML mapping. `where` is used in messages."""
    data = parse_yaml(text, where)
    if not isinstance(data, dict):
        content = "is empty" if data is None else f"contains a {_KINDS.get(type(data), 'single value')}"
        raise UserError(f"{where} is not a recipe: it {content}; write fields such as `classes:` and `n:`.")
    return data


def _check_cooccurrence(recipe: Recipe) -> None:
    if recipe.cooccurrence is None:
        return
    if not any(count > 1 and share for count, share in recipe.objects.items()):
        raise ValueError('cooccurrence requires images of two or more objects, such as objects "1:0.5,2:0.5"')
    pair_weights(recipe.cooccurrence, recipe.vocabulary(), recipe.planned_names())


def _check_oracle(recipe: Recipe, prompted: set[str]) -> None:
    assert recipe.oracle is not None
    leaked = prompted - set(recipe.oracle.seen)
    if leaked:
        raise ValueError(
            f"a prompt of an oracle dataset names {', '.join(sorted(leaked))}, unseen classes of its split"
        )
    if recipe.format < FORMAT and len(recipe.masks.timesteps or ()) != 1:
        raise ValueError("an oracle dataset of format 1 or 2 requires exactly one entry in masks.timesteps")
    if recipe.masks.source != ("detector" if recipe.real is None else "labels"):
        raise ValueError("masks.source of an oracle dataset must be `detector`, or `labels` for inverted images")
    if recipe.real is not None and len(recipe.real.keys) != len(recipe.prompts or ()):
        raise ValueError(
            f"each image requires a prompt, got {len(recipe.real.keys)} images, {len(recipe.prompts or ())} prompts"
        )
    if recipe.real is not None and recipe.n != len(recipe.real.keys):
        raise ValueError(f"n must be the number of images, {len(recipe.real.keys)}, got {recipe.n}")
