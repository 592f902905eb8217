"""The section `generator`: the text-to-image model and its sampling settings."""

from typing import Any, Literal

from pydantic import Field, model_validator

from factory.config.guidance import CONSTANT, GuidanceSchedule
from factory.config.sections.base import Section
from factory.config.stickers import EMBEDDED_MODELS, STICKERS


class GeneratorRecipe(Section):
    """The text-to-image model and its sampling settings."""

    model: str = Field(
        default=STICKERS,
        min_length=1,
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
        min_length=1,
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
        default=False,
        description="Compile the U-Net, or the blocks of the transformer, with torch.compile, for each batch size. "
        "It is not verified that every worker then gives the same bytes.",
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
