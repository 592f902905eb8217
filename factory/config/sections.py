"""The sections of a recipe: their fields, defaults and bounds."""

from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from factory.config.guidance import CONSTANT, GuidanceSchedule
from factory.config.stickers import EMBEDDED_MODELS, STICKERS


class Section(BaseModel):
    """Base of all sections: immutable, without unknown fields, and without infinite, NaN or boolean numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_numbers(cls, data: Any) -> Any:
        """Reject booleans for numbers: Pydantic reads `n: true` as 1, and YAML 1.1 reads `yes` and `on` as true."""
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and bool not in _types_of(field.annotation):
                raise ValueError(f"{name} must not be a boolean, got {str(value).lower()}")
        return data


def _types_of(annotation: Any) -> set[Any]:
    """All types that occur in a field's annotation."""
    return {annotation}.union(*(_types_of(part) for part in get_args(annotation)))


class GeneratorRecipe(Section):
    """The text-to-image model and its sampling settings."""

    model: str = Field(
        default=STICKERS,
        description="`stickers`, `stickers-turbo`, the folder or hub id of a diffusers pipeline, or a checkpoint file, "
        "alone or as PIPELINE@FILE with the folder or hub id of the pipeline that configures it.",
    )
    revision: str | None = Field(default=None, description="Pinned when the dataset is created.")
    steps: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Solver steps; by default those of the model's card; 8 for `stickers`, 4 for `stickers-turbo`.",
    )
    guidance: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Guidance scale, passed to the diffusers pipeline unchanged; by default that of the model's card; "
        "4 for `stickers`, 1 for `stickers-turbo`. A value of 1 or less (for Z-Image, 0) disables classifier-free "
        "guidance.",
    )
    guidance_schedule: GuidanceSchedule = Field(
        default=CONSTANT,
        description="`constant`, or `linear` from 1 in the first step to 2 x guidance - 1 in the last, for Stable "
        "Diffusion 1, 2 and XL; by default linear for `stickers` unless `guidance` is given.",
    )
    solver: Literal["model", "dpm++", "ddim", "euler", "ddim-trailing", "euler-trailing", "lcm", "tcd"] = Field(
        default="model",
        description="`model` uses the pipeline's own scheduler; the others replace it in Stable Diffusion 1, 2 and XL.",
    )
    width: int | None = Field(
        default=None, ge=8, multiple_of=8, description="Pixels; the default is the model's own size."
    )
    height: int | None = Field(
        default=None, ge=8, multiple_of=8, description="Pixels; the default is the model's own size."
    )
    lora: str | None = Field(
        default=None,
        description="LoRA that is added to the model's weights: a file (.safetensors), a folder with one, or "
        "OWNER/NAME or OWNER/NAME/FILE on the hub. The names of LCM, TCD, Lightning and Hyper LoRAs set solver, steps "
        "and guidance.",
    )
    lora_revision: str | None = Field(default=None, description="Pinned when the dataset is created.")
    lora_scale: float = Field(default=1.0, ge=-10, le=10, description="Factor of the LoRA's weights.")
    quantize: Literal["int8"] | None = Field(
        default=None,
        description="`int8` keeps the weights of the U-Net or transformer and of large text encoders in 8 bits, with "
        "torchao.",
    )
    negative: str = Field(
        default="", description="Negative prompt, for the unconditional half of classifier-free guidance."
    )
    dtype: Literal["float32", "tf32", "float16", "bfloat16"] = Field(
        default="float32",
        description="Type of weights and activations; the default for a new dataset is bfloat16 if its workers use "
        "GPUs, or a local CPU with instructions for it. `tf32` is float32 with TF32 matrix products on GPUs.",
    )
    channels_last: bool = Field(
        default=False,
        description="Use the channels-last memory layout; the default for a new dataset is true on a local CPU for "
        "which `dtype` is bfloat16 by default.",
    )
    compile: bool = Field(
        default=False, description="Compile the U-Net, or the blocks of the transformer, with torch.compile."
    )
    threads: int = Field(
        default=1, ge=1, le=256, description="Threads per CPU worker; fixed, because it affects the order of sums."
    )

    @property
    def adapter(self) -> str | None:
        """What identifies the LoRA and its scale; None without one."""
        return None if self.lora is None else f"{self.lora_revision} x {self.lora_scale:g}"

    @model_validator(mode="before")
    @classmethod
    def _embedded_model_defaults(cls, data: Any) -> Any:
        embedded = EMBEDDED_MODELS.get(model_in(data))
        if embedded is None:
            return data
        # Recipes of earlier versions have a guidance scale but no schedule: theirs was constant.
        schedule = {} if "guidance" in data else {"guidance_schedule": embedded.schedule}
        return {"steps": embedded.steps, "guidance": embedded.guidance, **schedule, **data}


def model_in(data: Any) -> str:
    """The model that unvalidated data of a generator names; an empty string if they are malformed."""
    model = data.get("model", STICKERS) if isinstance(data, dict) else ""
    return model if isinstance(model, str) else ""


READ_BY_ATTENTION = ("noise_level", "blocks", "levels", "threshold")
"""Fields of MaskRecipe that only `attention` uses."""

EARLIER_FORMATS = ("capture", "timesteps")
"""Fields of MaskRecipe that only recipes of formats 1 and 2 have."""


class MaskRecipe(Section):
    """The source of the masks."""

    source: str = Field(
        default="attention",
        description="`attention`, `detector`, `stickers`, `stickers-turbo` or the folder of a trained grounder; the "
        "default for an embedded model is its own grounder, unless a field is given that only `attention` uses.",
    )
    grounder_revision: str | None = Field(default=None, description="Pinned when the dataset is created.")
    detector: str = Field(
        default="stickers",
        description="`stickers`, a transformers folder or hub id, sam3:MODEL, grounding-dino:MODEL+SAM2, "
        "owlv2:MODEL+SAM2, clipseg:MODEL, torchvision:NAME, detectron2:CONFIG or ultralytics:NAME@FILE.",
    )
    detector_revision: str | None = Field(default=None, description="Pinned when the dataset is created.")
    capture: Literal["finished", "sampling"] | None = Field(
        default=None, description="Formats 1 and 2 only: where attention and features were captured."
    )
    timesteps: tuple[Annotated[int, Field(ge=0, le=999)], ...] | None = Field(
        default=None, min_length=1, description="Formats 1 and 2 only: where attention and features were captured."
    )
    noise_level: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of noise (0 to 1; the sigma of flow matching) in the finished latents when attention and "
        "features are read from them; by default that of the model's family.",
    )
    noise_seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of this noise, which all images share.")
    blocks: tuple[Annotated[int, Field(ge=0, le=999)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Blocks of a transformer whose attention is averaged for `attention`, counted from 0; by default "
        "those of the model's family.",
    )
    levels: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = Field(
        default=None,
        description="U-Net levels whose attention is used, as downsampling factors relative to the finest level with "
        "attention, which is 1; all if null; the default for embedded models is 1 and 2.",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Foreground threshold as a share of the class's maximum attention; chosen per image if null.",
    )
    score: float = Field(default=0.5, ge=0, le=1, description="Minimum score of a detection.")
    ignore_score: float = Field(
        default=0.3, ge=0, le=1, description="Pixels of detections between this score and `score` are marked 255."
    )


class FilterRecipe(Section):
    """The limits beyond which a sample is rejected; null disables a filter."""

    min_area: float | None = Field(default=0.01, ge=0, le=1, description="Minimum share of the image per class.")
    max_area: float | None = Field(default=0.9, ge=0, le=1, description="Maximum share of the image per class.")
    max_border: float | None = Field(
        default=0.7, ge=0, le=1, description="Maximum share of the image border per class; more suggests background."
    )
    min_confidence: float | None = Field(default=None, ge=0, le=1, description="Minimum score of a mask.")
    max_overlap: float | None = Field(default=0.5, ge=0, le=1, description="Maximum IoU of the masks of two objects.")
    min_detector_iou: float | None = Field(
        default=None, ge=0, le=1, description="Minimum IoU with the detector's mask, per class."
    )
    duplicate_distance: int | None = Field(
        default=2,
        ge=0,
        le=63,
        description="Maximum Hamming distance, of 64 bits, between the hashes of duplicate images.",
    )
    min_contrast: float | None = Field(
        default=4.0, ge=0, le=128, description="Minimum standard deviation of brightness, on a scale of 255."
    )


_SMALLEST_SHARE = 0.0001
"""The smallest part of a GPU that Ray counts."""


class EngineRecipe(Section):
    """How the work is distributed. These fields do not affect the bytes and may change between runs."""

    workers: int | None = Field(
        default=None, ge=1, le=4096, description="Generation workers; by default as many as fit."
    )
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        le=16,
        description="GPUs per worker, may be a fraction; 0 means CPU workers; the default is 1 if there are GPUs.",
    )
    offload: bool = Field(
        default=False,
        description="Keep models in host memory while a GPU does not use them: slower, for models that do not fit.",
    )
    detectors: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Workers in the detector pool; 0 runs the detector inside each generation worker.",
    )
    gpus_per_detector: float = Field(default=0.0, ge=0, le=16, description="GPUs per detector worker.")
    writers: int = Field(default=1, ge=1, le=64, description="Threads per worker that encode and write samples.")
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which a shard's worker is killed and the shard retried; by default ten times the "
        "slowest shard, at least ten minutes. Before three shards are done, an hour without a new sample.",
    )
    load_deadline: float = Field(
        default=3600.0, gt=0, description="Seconds within which a worker must load its models."
    )
    grace: float = Field(
        default=20.0,
        ge=0,
        le=86400,
        description="Seconds that running shards may take to finish after SIGTERM or Ctrl-C.",
    )
    memory_per_worker: float | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="GiB that a CPU worker reserves; estimated from the model files by default; nothing is reserved if "
        "`workers` is given.",
    )
    address: str | None = Field(
        default=None, description="Address of the Ray cluster; by default a local one is started."
    )

    @field_validator("gpus_per_worker", "gpus_per_detector")
    @classmethod
    def _gpus_that_ray_accepts(cls, gpus: float | None) -> float | None:
        if gpus and not (gpus.is_integer() or _SMALLEST_SHARE <= gpus < 1):
            raise ValueError(
                f"GPUs can be shared in parts of at least {_SMALLEST_SHARE}, above 1 only whole; got {gpus:g}"
            )
        return gpus


class StoreRecipe(Section):
    """How to access the bucket. Not part of the fingerprint, not written into the dataset, and never contains secrets.

    Each field takes precedence over the corresponding environment variable. Keys and tokens come from the environment,
    a profile or a file (docs/storage.md).
    """

    endpoint: str | None = Field(default=None, description="URL of the service; the default is AWS or Google.")
    region: str | None = Field(default=None, description="Region of an S3 bucket.")
    profile: str | None = Field(default=None, description="Profile in the AWS configuration files.")
    credentials_file: str | None = Field(default=None, description="JSON key file of Google Cloud.")
    allow_http: bool = Field(default=False, description="Allow endpoints without TLS.")
    virtual_hosted: bool = Field(default=False, description="S3: use virtual-hosted-style URLs.")
    anonymous: bool = Field(default=False, description="S3: send unsigned requests.")
    timeout: float = Field(
        default=60.0, gt=0, le=3600, description="Seconds after which a small request times out and is retried."
    )
    slowest: float = Field(
        default=50_000, gt=0, description="Bytes per second; a request's timeout grows by its size at this speed."
    )
    patience: float = Field(
        default=3600.0, ge=0, description="Seconds to keep retrying while the store does not respond."
    )

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        if self.endpoint is not None:
            url = urlsplit(self.endpoint)
            if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
                raise ValueError("endpoint must be a URL such as https://host:port without user, password or query")
        return self


class OracleRecipe(Section):
    """Makes the dataset an oracle: training data for a grounder, with detector masks of seen classes only."""

    split: str = Field(description="Split of the vocabulary that defines the seen classes.")
    seen: tuple[str, ...] = Field(min_length=1, description="Classes that prompts may name.")


class RealRecipe(Section):
    """Builds the dataset from real labelled images: each is inverted to noise, and its labels become the masks."""

    dataset: Literal["voc", "coco"] = Field(description="Format of the labels on disk.")
    root: str = Field(description="VOC root folder, or COCO image folder.")
    image_set: str = Field(default="train", description="VOC image set.")
    annotations: str | None = Field(default=None, description="COCO instances file.")
    keys: tuple[str, ...] = Field(min_length=1, description="Images in order, one per prompt.")
    labels_digest: str = Field(description="Digest of the labels.")
    method: Literal["ddim", "noise"] = Field(
        default="ddim",
        description="`ddim` inverts step by step; `noise` stores the encoded image, to which noise is added when "
        "features are read.",
    )
    steps: int = Field(default=50, ge=2, le=1000, description="Steps of the inversion and of the reconstruction.")


class PromptEntry(Section):
    """A custom prompt: its text, and the phrase that names each class."""

    text: str
    classes: dict[str, str]
