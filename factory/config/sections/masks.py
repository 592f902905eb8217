"""The sections `masks` and `filters`: the source of the masks, and the samples that are rejected."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from factory.config.sections.base import Section

READ_BY_ATTENTION = ("noise_level", "blocks", "levels", "threshold")
"""Fields of MaskRecipe that only the source `attention` uses."""

EARLIER_FORMATS = ("capture", "timesteps")
"""Fields of MaskRecipe that only recipes of formats 1 and 2 have."""


class MaskRecipe(Section):
    """The source of the masks."""

    source: str = Field(
        default="attention",
        min_length=1,
        description="`attention`, `detector`, `stickers`, `stickers-turbo` or the folder of a trained grounder; the "
        "default for an embedded model is its grounder, unless a field is given that only `attention` uses.",
    )
    grounder_revision: str | None = Field(
        default=None, description="Digest of the grounder; set when the dataset is created."
    )
    detector: str = Field(
        default="stickers",
        min_length=1,
        description="`stickers`, a transformers folder or hub id, sam3:MODEL, grounding-dino:MODEL+SAM2, "
        "owlv2:MODEL+SAM2, clipseg:MODEL, torchvision:NAME, detectron2:CONFIG or ultralytics:NAME@FILE.",
    )
    detector_revision: str | None = Field(
        default=None, description="Hub commit or digest of the detector; set when the dataset is created."
    )
    capture: Literal["finished", "sampling"] | None = Field(
        default=None, description="Formats 1 and 2 only: when attention and features were read."
    )
    timesteps: tuple[Annotated[int, Field(ge=0, le=999)], ...] | None = Field(
        default=None, min_length=1, description="Formats 1 and 2 only: at which timesteps they were read."
    )
    noise_level: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Noise level at which attention and features are read, 0 to 1: the share of noise that is added to "
        "the finished latent (the sigma of flow matching). By default that of the model family.",
    )
    noise_seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of this noise, which all images share.")
    blocks: tuple[Annotated[int, Field(ge=0, le=999)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Blocks of a transformer whose attention is averaged for `attention`, counted from 0; by default "
        "those of the model family.",
    )
    levels: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = Field(
        default=None,
        description="Levels of a U-Net whose attention is used for `attention`, as downsampling factors relative to "
        "the finest level with attention, which is 1. By default all levels; 1 and 2 for embedded models.",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Threshold of `attention` masks as a share of the maximum attention to the class; by default "
        "computed for each image.",
    )
    score: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Minimum score of detections used as masks, or by `filters.min_detector_iou` to check masks.",
    )
    ignore_score: float = Field(
        default=0.3, ge=0, le=1, description="Pixels of detections between this score and `score` are marked 255."
    )


class FilterRecipe(Section):
    """The limits of the filters, beyond which a sample is rejected; null disables a filter."""

    min_area: float | None = Field(
        default=0.01, ge=0, le=1, description="Minimum area of a mask, as a share of the image."
    )
    max_area: float | None = Field(
        default=0.9, ge=0, le=1, description="Maximum area of a mask, as a share of the image."
    )
    max_border: float | None = Field(
        default=0.7, ge=0, le=1, description="Maximum share of the image border that a mask covers."
    )
    min_largest_region: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Minimum share of a mask that its largest connected region covers; 0.8 rejects most images that "
        "show a class twice.",
    )
    min_confidence: float | None = Field(default=None, ge=0, le=1, description="Minimum score of a mask.")
    max_overlap: float | None = Field(default=0.5, ge=0, le=1, description="Maximum IoU of the masks of two classes.")
    min_detector_iou: float | None = Field(
        default=None, ge=0, le=1, description="Minimum IoU of a mask with that of the detector."
    )
    duplicate_distance: int | None = Field(
        default=2,
        ge=0,
        le=63,
        description="Number of bits, of 64, in which the hashes of near-duplicates may differ.",
    )
    min_contrast: float | None = Field(
        default=4.0, ge=0, le=128, description="Minimum standard deviation of the brightness, 0 to 255."
    )

    @model_validator(mode="after")
    def _areas_in_order(self) -> Self:
        if self.min_area is not None and self.max_area is not None and self.min_area > self.max_area:
            raise ValueError(
                f"min_area must not be above max_area, or every sample is rejected, got {self.min_area:g} and "
                f"{self.max_area:g}"
            )
        return self
