"""The sections `prompts`, `oracle` and `real`: datasets that are not generated from class names alone."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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


def _without_phrases(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(name, str) for name in value):
        raise ValueError("must be a list of class names, or a mapping of class names to phrases")
    if len(set(value)) < len(value):
        raise ValueError("must name each class once")
    return dict.fromkeys(value, "")


class PromptEntry(Section):
    """A custom prompt."""

    text: str
    classes: Annotated[
        dict[str, str], BeforeValidator(_without_phrases, json_schema_input_type=tuple[str, ...] | dict[str, str])
    ] = Field(description="The classes, or a mapping of each class to the phrase that names it in the text.")
