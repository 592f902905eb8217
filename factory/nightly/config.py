"""The configuration of `factory nightly`: its fields, and one clear sentence for everything that is wrong with it."""

import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails

from factory.config.named_or import named_or
from factory.config.problems import field_name, invalid_field, sections_in, shown
from factory.config.recipe import Recipe, load_recipe, make_recipe
from factory.config.sections import Section
from factory.dataset.storage import is_remote
from factory.errors import UserError
from factory.files.http import is_http_url
from factory.files.paths import expanded, in_home, without_file_scheme
from factory.files.strict_yaml import parse_plain_yaml, parse_yaml
from factory.files.text import read_text
from factory.nightly.clock import parse_clock, zone_of
from factory.nightly.webhooks import variable_of

Mode = Literal["fresh", "grow"]
ExportFormat = Literal["coco", "voc", "yolo", "hf"]


def _clock(text: str) -> str:
    parse_clock(text)
    return text


def _zone(name: str) -> str:
    zone_of(name)
    return name


ClockTime = Annotated[str, AfterValidator(_clock), Field(examples=["06:00"])]


def _kind(allowed: str, **names: type | tuple[type, ...]) -> Discriminator:
    """Chooses a union's member by the type of the value, so that an error message is about this member alone.

    `allowed` describes all members, for the message about a value of another type.
    """

    def choose(value: Any) -> str | None:
        return next((name for name, types in names.items() if isinstance(value, types)), None)

    return Discriminator(choose, custom_error_type="kind", custom_error_message=f"must be {allowed}")


Command = Annotated[
    Annotated[str, Tag("text")] | Annotated[tuple[str, ...], Tag("list")],
    _kind("a command line, or a list of the program and its arguments", list=(list, tuple), text=str),
]
RecipeSource = Annotated[
    Annotated[str, Tag("path")] | Annotated[dict[str, Any], Tag("fields")],
    _kind("the fields of a recipe, or the path of a recipe file", fields=dict, path=str),
]


class Budget(Section):
    """The limits of the generation of a night; the first one that is reached ends it."""

    hours: float | None = Field(default=None, gt=0, le=10_000, description="Hours since the night first started.")
    until: ClockTime | None = Field(
        default=None, description="Time of day in `timezone`, when it is first reached after the night first started."
    )
    gpu_hours: float | None = Field(
        default=None,
        gt=0,
        description="Hours for which workers ran, multiplied by the GPUs that each of them reserved.",
    )
    grace: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        description="Seconds that shards in progress may take to finish after the limit; others are discarded.",
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.hours is None and self.until is None and self.gpu_hours is None:
            raise ValueError(
                "a budget requires hours, until or gpu_hours; omit it to generate until the dataset is complete"
            )
        return self


class VerifySample(Section):
    """Verify some of the shards, selected by the date, so that a repeated run checks the same ones."""

    shards: int = Field(ge=1, description="Number of shards to verify.")


Verification = Annotated[
    Annotated[Literal["all"], Tag("all")] | Annotated[VerifySample, Tag("sample")],
    _kind("all or a number of shards such as {shards: 50}", sample=(dict, VerifySample), all=str),
    named_or("a number of shards such as {shards: 50}", "all"),
]


class Keep(Section):
    """Which nights are kept. Others are deleted, except the newest successful one."""

    nights: int = Field(ge=1, description="Number of nights to keep, the newest by date.")


class Notification(Section):
    """A message about a night. If it cannot be sent, a warning is printed and the night does not fail."""

    on: Literal["success", "failure", "always"] = Field(
        default="failure", description="When to send the message; `always` includes interrupted nights."
    )
    webhook: str | None = Field(
        default=None,
        description='URL that accepts {"text": ...}, as Slack does; or $NAME, to read it from an environment variable.',
    )
    command: Command | None = Field(
        default=None,
        description="Program with arguments, run without a shell. It receives the message on standard input, and the "
        "record as JSON in the environment variable FACTORY_NIGHT, with at most 1,000 damaged and 1,000 quarantined "
        "shards.",
    )

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("a notification requires either a webhook or a command")
        if self.webhook is not None and variable_of(self.webhook) is None and not is_http_url(self.webhook):
            raise ValueError(
                "a webhook must be a URL such as https://host/path without user, password and spaces, or only $NAME, "
                "where NAME consists of letters, digits and _"
            )
        if self.command is not None and not _arguments(self.command):
            raise ValueError("the command of a notification is empty")
        return self


def _arguments(command: str | tuple[str, ...]) -> list[str]:
    """The program and its arguments; raises ValueError for an unclosed quotation mark."""
    return shlex.split(command) if isinstance(command, str) else list(command)


class NightlyConfig(Section):
    """The configuration of `factory nightly`."""

    root: str = Field(min_length=1, description="Folder or URL (s3://, gs://, az://) of the nights.")
    timezone: Annotated[str, AfterValidator(_zone)] = Field(
        default="UTC", description="IANA time zone of dates and times of day, such as Europe/Berlin."
    )
    starts: ClockTime = Field(
        default="00:00",
        description="Scheduled start. Without --date, the date of a night is that of the last scheduled start.",
    )
    recipe: RecipeSource = Field(description="Fields of a recipe (schemas/recipe.json), or the path of a recipe file.")
    mode: Mode = Field(
        default="fresh",
        description="`fresh` makes a new dataset of n samples every night; `grow` adds samples to one dataset.",
    )
    target: int | None = Field(default=None, ge=1, le=10**9, description="Final size of the dataset in mode `grow`.")
    budget: Budget | None = None
    exports: tuple[ExportFormat, ...] = Field(default=(), description="Formats to export every night.")
    verify: Verification = "all"
    keep: Keep | None = Field(default=None, description="Nights to keep; by default all.")
    price_per_gpu_hour: float | None = Field(
        default=None, ge=0, description="Price from which the cost of a night is computed, in any currency."
    )
    notify: tuple[Notification, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mode == "grow") != (self.target is not None):
            raise ValueError(
                f"`target` is required by mode grow and not allowed in mode fresh; the mode is {self.mode}"
            )
        if len(set(self.exports)) < len(self.exports):
            raise ValueError(f"exports names a format twice: {', '.join(self.exports)}")
        return self

    def recipe_of(self, date: datetime.date, where: str = "the recipe of the night") -> Recipe:
        """The recipe of a night; raises UserError, which calls the recipe `where`, if it is invalid.

        In mode `fresh`, the seed is the date, such as 20261125, unless the recipe sets one. In mode `grow`, `n` is the
        target.
        """
        assert isinstance(self.recipe, dict), "load_config reads a recipe file"
        data = dict(self.recipe)
        if self.target is not None:
            data["n"] = self.target
        else:
            data.setdefault("seed", int(date.strftime("%Y%m%d")))
        return make_recipe(data, where)

    def samples_per_night(self, where: str = "the recipe of the night") -> int | None:
        """The number of samples that a night adds in mode `grow`: `n` of the recipe, or None without a limit."""
        assert isinstance(self.recipe, dict)
        n = self.recipe.get("n")
        return None if self.target is None or n is None else make_recipe({"n": n}, where).n


def load_config(path: str | Path) -> NightlyConfig:
    """Read a configuration file; raises UserError if anything is invalid.

    A relative `root` or path of a recipe file is relative to the folder of the configuration. Paths in the recipe are
    not changed.
    """
    text = read_text(path, "configuration")
    data = parse_plain_yaml(text, f"the configuration {path}")
    if not isinstance(data, dict):
        raise UserError(f"the configuration {path} must be a mapping with `root:` and `recipe:`; see docs/nightly.md.")
    if isinstance(data.get("recipe"), dict):
        data["recipe"] = _recipe_fields(text, path)
    try:
        config = NightlyConfig.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: {_problems(error.errors())}. See docs/nightly.md for all keys.") from error
    folder = Path(path).absolute().parent
    recipe, where = config.recipe, f"the recipe in {path}"
    if isinstance(recipe, str):
        where = str(folder / expanded(recipe))
        recipe = load_recipe(where)
    root = config.root
    if not is_remote(root):
        root = str(folder / in_home(without_file_scheme(root), f"{path}: root: "))
    config = config.model_copy(update={"recipe": recipe, "root": root})
    if config.target is not None and recipe.get("earlier"):
        raise UserError(
            f"{path}: recipe.earlier: the dataset of mode grow records its own sizes; remove `earlier`"
            f"{shown(recipe['earlier'])}."
        )
    config.recipe_of(datetime.date(2000, 1, 1), where)
    config.samples_per_night(where)
    return config


def _recipe_fields(text: str, path: str | Path) -> Any:
    """The `recipe` of a configuration, with numbers and dates as in a recipe file."""
    return parse_yaml(text, f"the recipe in {path}")["recipe"]


def _problems(errors: list[ErrorDetails]) -> str:
    """Everything that is wrong, as "field: what is wrong (got ...); ...", with one list of keys per section."""
    unknown: dict[str, list[str]] = {}
    sections: dict[str, type[BaseModel]] = {}
    sentences = []
    for error in errors:
        location = [part for part in error["loc"] if part not in ("text", "list", "path", "fields", "all", "sample")]
        if error["type"] == "extra_forbidden":
            section = field_name(location[:-1])
            sections[section] = _model_at(location[:-1])
            unknown.setdefault(section, []).append(field_name(location))
        else:
            sentences.append(_sentence(field_name(location), error))
    for section, names in unknown.items():
        owner = f" of {section}" if section else ""
        keys = ", ".join(sections[section].model_fields)
        sentences.append(f"there is no key {', '.join(names)}; the keys{owner} are {keys}")
    return "; ".join(dict.fromkeys(sentences))


def _sentence(name: str, error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return f"{name} is missing"
    if not name:
        return error["msg"].removeprefix("Value error, ")
    # The URL of a webhook is a secret, also where it was put by mistake.
    hidden = name.startswith("notify") and not name.endswith(".on")
    return invalid_field(name, error["msg"], "" if hidden else shown(error["input"]))


def _model_at(location: Sequence[int | str]) -> type[BaseModel]:
    """The model of the section at a location such as ["notify", 0]."""
    model: type[BaseModel] = NightlyConfig
    for part in location:
        if isinstance(part, str):
            model = sections_in(model.model_fields[part].annotation)[0]
    return model
