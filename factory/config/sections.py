"""The parts of a recipe, each the fields of one side of the work, with their defaults and bounds."""

from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """What all parts share: no unknown field, no change, no number that is infinite, NaN or true."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, data: Any) -> Any:
        """Pydantic reads `n: true` as 1; YAML also writes true as yes and on."""
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and bool not in _types_of(field.annotation):
                raise ValueError(f"{name} is no yes or no, got {str(value).lower()}")
        return data


def _types_of(annotation: Any) -> set[Any]:
    """The types that a field's annotation is made of."""
    return {annotation}.union(*(_types_of(part) for part in get_args(annotation)))


class GeneratorRecipe(Section):
    """The text-to-image model and how it samples."""

    model: str = Field(
        default="stickers",
        description="`stickers`, a folder of a diffusers pipeline, a hub id, or a checkpoint file, alone or as "
        "PIPELINE@FILE with the folder or hub id of the pipeline that configures it.",
    )
    revision: str | None = Field(default=None, description="Pinned when a set is begun.")
    steps: int = Field(default=20, ge=1, le=1000, description="Steps of the solver; 12 by default for `stickers`.")
    guidance: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Classifier-free guidance; 1 or less calls the U-Net once a step; 3 by default for `stickers`.",
    )
    solver: Literal["dpm++", "ddim", "euler", "model"] = Field(
        default="dpm++",
        description="`model` is the pipeline's own scheduler, and the default for models that were distilled for it.",
    )
    width: int | None = Field(default=None, ge=8, multiple_of=8, description="Pixels; the model's own size by default.")
    height: int | None = Field(
        default=None, ge=8, multiple_of=8, description="Pixels; the model's own size by default."
    )
    negative: str = Field(default="", description="The text of the unconditional half.")
    dtype: Literal["float32", "tf32", "float16", "bfloat16"] = Field(
        default="float32",
        description="Of weights and activations; `tf32` is float32 whose products a GPU rounds to TF32.",
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


READ_BY_ATTENTION = ("capture", "timesteps", "levels", "threshold")
"""Fields of MaskRecipe that `attention` alone reads."""


class MaskRecipe(Section):
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
        description="U-Net levels whose attention is read, by their reduction from the finest one that has attention, "
        "which is 1; all if null, and 1 and 2 by default for `stickers`.",
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


class FilterRecipe(Section):
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


class EngineRecipe(Section):
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
        default=None,
        gt=0,
        description="Seconds after which a shard's worker is killed and the shard tried again; by default ten times "
        "the slowest shard, at least ten minutes, and an hour without any sample before three shards are done.",
    )
    load_deadline: float = Field(
        default=3600.0, gt=0, description="Seconds in which a worker must have loaded its models."
    )
    grace: float = Field(
        default=20.0,
        ge=0,
        le=86400,
        description="Seconds that shards under way may still take after SIGTERM or Ctrl-C.",
    )
    memory_per_worker: float | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="GiB that a CPU worker reserves; estimated from the models' files by default, and not reserved "
        "where `workers` is given.",
    )
    address: str | None = Field(default=None, description="The Ray cluster to join; a local one is started by default.")


class StoreRecipe(Section):
    """How the bucket is reached. Not in the fingerprint, not written into the dataset, and no place for a secret.

    Each field beats the environment variable of the same meaning; keys and tokens come from the environment, a profile
    or a file (docs/storage.md).
    """

    endpoint: str | None = Field(default=None, description="The service's URL; that of AWS or Google by default.")
    region: str | None = Field(default=None, description="The region of an S3 bucket.")
    profile: str | None = Field(default=None, description="A profile of the AWS configuration files.")
    credentials_file: str | None = Field(default=None, description="A JSON key file of Google Cloud.")
    allow_http: bool = Field(default=False, description="Allow an endpoint without TLS.")
    virtual_hosted: bool = Field(default=False, description="S3: the bucket's name is part of the host's.")
    anonymous: bool = Field(default=False, description="S3: send requests that are not signed.")
    timeout: float = Field(
        default=60.0, gt=0, le=3600, description="Seconds that a small request may take before it is tried again."
    )
    slowest: float = Field(
        default=50_000, gt=0, description="Bytes a second: a request may take longer by its size at this speed."
    )
    patience: float = Field(
        default=3600.0, ge=0, description="Seconds to try again while the store does not answer, before giving up."
    )

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        if self.endpoint is not None:
            url = urlsplit(self.endpoint)
            if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
                raise ValueError("endpoint is a URL such as https://host:port without user, password or query")
        return self


class OracleRecipe(Section):
    """Makes the set an oracle: training data of a grounder, masks by the detector, of seen classes only."""

    split: str = Field(description="The split of the vocabulary that says which classes are seen.")
    seen: tuple[str, ...] = Field(min_length=1, description="The classes that prompts may name.")


class RealRecipe(Section):
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


class PromptRow(Section):
    """One prompt of the user's own: its text, and each class with the words that stand for it."""

    text: str
    classes: dict[str, str]
