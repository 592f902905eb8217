"""The sections `masks` and `filters`: where masks come from, and which samples are kept."""

from typing import Annotated, Literal

from pydantic import Field

from factory.config.sections.base import Section

READ_BY_ATTENTION = ("noise_level", "blocks", "levels", "threshold")
"""Fields of MaskRecipe that only `attention` uses."""

EARLIER_FORMATS = ("capture", "timesteps")
"""Fields of MaskRecipe that only recipes of formats 1 and 2 have."""


class MaskRecipe(Section):
    """The source of the masks."""

    source: str = Field(
        default="attention",
        min_length=1,
        description="`attention`, `detector`, `stickers`, `stickers-turbo` or the folder of a trained grounder; the "
        "default for an embedded model is its own grounder, unless a field is given that only `attention` uses.",
    )
    grounder_revision: str | None = Field(default=None, description="Pinned when the dataset is created.")
    detector: str = Field(
        default="stickers",
        min_length=1,
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
