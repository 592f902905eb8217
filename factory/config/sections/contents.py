"""The sections `prompts`, `oracle` and `real`: datasets that are not generated from class names alone."""

from typing import Literal

from pydantic import Field

from factory.config.sections.base import Section


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
