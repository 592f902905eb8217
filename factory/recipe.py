"""The recipe: everything that a set is made from, validated, with a fingerprint over what changes the bytes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from factory.balance import MAX_OBJECTS
from factory.errors import UserError
from factory.prompts import Prompt, make_prompt
from factory.vocabulary import Vocabulary, coco, from_names, voc


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GeneratorRecipe(_Part):
    """The text-to-image model and how it samples."""

    model: str = Field(default="stickers", description="`stickers`, a folder of a diffusers pipeline, or a hub id.")
    revision: str | None = Field(default=None, description="Pinned when a set is begun.")
    steps: int = Field(default=20, ge=1, le=1000, description="Steps of the solver; 12 by default for `stickers`.")
    guidance: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Classifier-free guidance; 1 or less calls the U-Net once a step; 3 by default for `stickers`.",
    )
    solver: Literal["dpm++", "ddim", "euler", "model"] = Field(
        default="dpm++", description="`model` is the pipeline's own scheduler."
    )
    width: int | None = Field(default=None, ge=8, multiple_of=8, description="Pixels; the model's own size by default.")
    height: int | None = Field(
        default=None, ge=8, multiple_of=8, description="Pixels; the model's own size by default."
    )
    negative: str = Field(default="", description="The text of the unconditional half.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="Of weights and activations."
    )
    channels_last: bool = Field(default=False, description="Memory layout of the convolutions.")
    compile: bool = Field(default=False, description="Run the U-Net through torch.compile.")
    threads: int = Field(
        default=1, ge=1, le=256, description="Threads of one CPU worker: fixed, for sums depend on their order."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_embedded(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("model", "stickers") == "stickers":
            return {"steps": 12, "guidance": 3.0, **data}
        return data


_READ_BY_ATTENTION = ("capture", "timesteps", "levels", "threshold")


class MaskRecipe(_Part):
    """Where the masks come from."""

    source: str = Field(
        default="attention",
        description="`attention`, `detector`, `stickers` or the folder of a trained grounder; `stickers` by default "
        "for the model `stickers`, unless a field is given that attention alone reads.",
    )
    grounder_revision: str | None = Field(default=None, description="Pinned when a set is begun.")
    detector: str = Field(
        default="stickers",
        description="`stickers`, a transformers folder or hub id, torchvision:NAME or detectron2:CONFIG.",
    )
    detector_revision: str | None = Field(default=None, description="Pinned when a set is begun.")
    capture: Literal["finished", "sampling"] = Field(
        default="sampling",
        description="Read attention and features in one U-Net call on the finished latents, or in the sampling steps.",
    )
    timesteps: tuple[Annotated[int, Field(ge=0, le=999)], ...] = Field(
        default=(100,),
        min_length=1,
        description="Noise levels, of 1000, at which attention and features are read.",
    )
    levels: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = Field(
        default=None,
        description="U-Net levels whose attention is read, by their reduction (1 is the finest); all if null, and 1 "
        "and 2 by default for `stickers`.",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of a class's strongest attention that is object; found per image if null.",
    )
    score: float = Field(default=0.5, ge=0, le=1, description="A detection below this score is no object ...")
    ignore_score: float = Field(
        default=0.3, ge=0, le=1, description="... but from this score on its pixels are marked 255."
    )


class FilterRecipe(_Part):
    """When a sample is rejected. A limit of null is never reached."""

    min_area: float | None = Field(default=0.01, ge=0, le=1, description="Smallest share of the image for each class.")
    max_area: float | None = Field(default=0.9, ge=0, le=1, description="Largest share of the image for each class.")
    max_border: float | None = Field(
        default=0.7, ge=0, le=1, description="Largest share of the image's rim for each class: more is background."
    )
    min_confidence: float | None = Field(default=None, ge=0, le=1, description="Smallest score of a mask.")
    max_overlap: float | None = Field(default=0.5, ge=0, le=1, description="Largest IoU of two objects' masks.")
    min_detector_iou: float | None = Field(
        default=None, ge=0, le=1, description="Smallest IoU with the detector's mask of each class."
    )
    duplicate_distance: int | None = Field(
        default=2, ge=0, le=63, description="Differing bits, of 64, up to which two images of a shard are the same."
    )
    min_contrast: float | None = Field(
        default=4.0, ge=0, le=128, description="Smallest standard deviation of brightness, of 255."
    )


class EngineRecipe(_Part):
    """How the work is spread. Nothing here changes the bytes, so a set may be resumed with other values."""

    workers: int | None = Field(
        default=None, ge=1, le=4096, description="Generating workers; as many as fit by default."
    )
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        le=16,
        description="GPUs of a worker, also a fraction; 0 is a CPU worker; 1 if there are any.",
    )
    detectors: int = Field(
        default=0, ge=0, le=1024, description="Workers of a detector pool; 0 runs the detector inside each worker."
    )
    gpus_per_detector: float = Field(default=0.0, ge=0, le=16, description="GPUs of a detector worker.")
    writers: int = Field(default=1, ge=1, le=64, description="Threads of a worker that encode and write.")
    deadline: float | None = Field(
        default=None, gt=0, description="Seconds after which a shard is killed and queued again."
    )
    address: str | None = Field(default=None, description="The Ray cluster to join; a local one is started by default.")


class OracleRecipe(_Part):
    """Makes the set an oracle: training data of a grounder, masks by the detector, of seen classes only."""

    split: str = Field(description="The split of the vocabulary that says which classes are seen.")
    seen: tuple[str, ...] = Field(min_length=1, description="The classes that prompts may name.")


class RealRecipe(_Part):
    """Makes the set from real labelled images: each is brought back to noise, and its labels are the masks."""

    dataset: Literal["voc", "coco"] = Field(description="How the images are labelled on disk.")
    root: str = Field(description="VOC's folder, or COCO's folder of images.")
    image_set: str = Field(default="train", description="VOC's image set.")
    annotations: str | None = Field(default=None, description="COCO's file of instances.")
    keys: tuple[str, ...] = Field(min_length=1, description="The images in order, one for each prompt.")
    labels_digest: str = Field(description="Digest of the labels that were read.")
    method: Literal["ddim", "noise"] = Field(
        default="ddim", description="Invert step by step, or add noise to the encoded image: one U-Net call."
    )
    steps: int = Field(default=50, ge=2, le=1000, description="Steps of the inversion, and of the way back.")


class PromptRow(_Part):
    """One prompt of the user's own: its text, and each class with the words that stand for it."""

    text: str
    classes: dict[str, str]


class Recipe(_Part):
    """What to make. `fingerprint()` covers what changes a shard's bytes; `n`, `earlier` and `engine` are not in it."""

    # `format` goes up when the same recipe would give other bytes.
    format: Literal[1] = Field(default=1, description="The version of the recipe's meaning.")
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
        chosen = {"source", *_READ_BY_ATTENTION} & masks.keys() or data.get("oracle") or data.get("real")
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
        data = self.model_dump(mode="json", exclude={"n", "earlier", "engine"})
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
        """A file that `load_recipe` reads back to an equal recipe."""
        head = f"# factory generate --recipe recipe.yaml --shards DIR\n# fingerprint: {self.fingerprint()}\n"
        return head + yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def canonical(data: object) -> bytes:
    """The one JSON text of some plain data: sorted, without spaces, UTF-8."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


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
            message if name == "the recipe" else f"{name}: {message}{'' if value is data else f' (got {value!r})'[:80]}"
            for name, message, value in wrong
        )
        told += ". `factory generate --help` and schemas/recipe.json tell what is allowed."
        raise UserError(f"{where}: {told}") from error


def load_recipe(path: str | Path) -> dict[str, Any]:
    """The plain data of a recipe file, not yet validated, so that options can override it."""
    try:
        return parse_recipe(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}.") from error


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
    if not shares or any(not 1 <= count <= MAX_OBJECTS or share < 0 for count, share in shares.items()):
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
