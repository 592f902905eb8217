"""The sections `prompts`, `oracle` and `real`: custom prompts, oracle datasets and real images."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from factory.config.sections.base import Section


class OracleRecipe(Section):
    """Makes this an oracle dataset: training data for a grounder, with masks of a detector for seen classes only."""

    split: str = Field(description="Name of the split that defines the seen classes.")
    seen: tuple[str, ...] = Field(min_length=1, description="Classes that prompts may name.")


class RealRecipe(Section):
    """Inverts the images of a labelled folder, whose labels become the masks (`factory invert`)."""

    dataset: Literal["voc", "coco"] = Field(description="Format of the labelled folder.")
    root: str = Field(description="PASCAL VOC folder, or folder of COCO images.")
    image_set: str = Field(default="train", description="Image set of the PASCAL VOC folder.")
    annotations: str | None = Field(default=None, description="COCO annotation file.")
    keys: tuple[str, ...] = Field(min_length=1, description="Names of the images in order, one for each prompt.")
    labels_digest: str = Field(description="Digest of the labels.")
    method: Literal["ddim", "noise"] = Field(
        default="ddim",
        description="`ddim` inverts images by DDIM; `noise` stores the encoded image, to which noise is added when "
        "features are read.",
    )
    steps: int = Field(default=50, ge=2, le=1000, description="DDIM steps of the inversion and of the reconstruction.")


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

    text: str = Field(description="Text of the prompt.")
    classes: Annotated[
        dict[str, str], BeforeValidator(_without_phrases, json_schema_input_type=tuple[str, ...] | dict[str, str])
    ] = Field(description="List of classes, or a mapping of each class to its phrase in the text.")
