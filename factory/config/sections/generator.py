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
    revision: str | None = Field(
        default=None, description="Hub commit or digest of the model; set when the dataset is created."
    )
    steps: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Sampling steps; by default those of the model card, "
        f"{', '.join(f'{model.steps} for `{name}`' for name, model in EMBEDDED_MODELS.items())}.",
    )
    guidance: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Guidance scale, passed to the diffusers pipeline unchanged; by default that of the model card, "
        f"{', '.join(f'{model.guidance:g} for `{name}`' for name, model in EMBEDDED_MODELS.items())}. A value of 1 or "
        "less (for Z-Image, 0) disables classifier-free guidance.",
    )
    guidance_schedule: GuidanceSchedule = Field(
        default=CONSTANT,
        description="`constant`, or `linear` from 1 in the first step to 2 x guidance - 1 in the last, for Stable "
        "Diffusion 1, 2 and XL; by default linear for `stickers` unless `guidance` is given.",
    )
    solver: Literal["model", "dpm++", "ddim", "euler", "ddim-trailing", "euler-trailing", "lcm", "tcd"] = Field(
        default="model",
        description="`model` uses the scheduler of the pipeline. `dpm++`, `ddim`, `euler`, `ddim-trailing`, "
        "`euler-trailing`, `lcm` and `tcd` replace it in Stable Diffusion 1, 2 and XL and in PixArt-Sigma.",
    )
    width: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        multiple_of=8,
        description="Width of the images in pixels; by default that of the model.",
    )
    height: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        multiple_of=8,
        description="Height of the images in pixels; by default that of the model.",
    )
    lora: str | None = Field(
        default=None,
        min_length=1,
        description="LoRA that is merged into the weights of the model: a .safetensors file, a folder with one, or "
        "OWNER/NAME or OWNER/NAME/FILE on the hub. The names of LCM, TCD, Lightning and Hyper LoRAs set solver, steps "
        "and guidance.",
    )
    lora_revision: str | None = Field(
        default=None, description="Hub commit or digest of the LoRA; set when the dataset is created."
    )
    lora_scale: float = Field(default=1.0, ge=-10, le=10, description="Factor of the LoRA.")
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
        description="Precision of weights and activations; `tf32` is float32 with TF32 matrix products on GPUs. The "
        "default of a new dataset is bfloat16 on GPUs and on a local CPU with bfloat16 instructions.",
    )
    channels_last: bool = Field(
        default=False,
        description="Use the channels-last memory layout; the default of a new dataset is true on a local CPU with "
        "bfloat16 instructions if `dtype` is not given.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the U-Net, or the blocks of the transformer, with torch.compile for each batch size. It "
        "is not verified that all workers then produce the same bytes.",
    )
    threads: int = Field(
        default=1, ge=1, le=256, description="Threads of a CPU worker; part of the recipe, because it affects rounding."
    )

    @property
    def adapter(self) -> str | None:
        """The revision and the scale of the LoRA as text; None without a LoRA."""
        return None if self.lora is None else f"{self.lora_revision} x {self.lora_scale:g}"

    @model_validator(mode="before")
    @classmethod
    def _embedded_model_defaults(cls, data: Any) -> Any:
        embedded = EMBEDDED_MODELS.get(model_in(data))
        if embedded is None:
            return data
        # Recipes of earlier versions have a guidance scale but no schedule; it was constant.
        schedule = {} if "guidance" in data else {"guidance_schedule": embedded.schedule}
        return {"steps": embedded.steps, "guidance": embedded.guidance, **schedule, **data}


def model_in(data: Any) -> str:
    """The model in unvalidated data of the section; an empty string if the data is malformed."""
    model = data.get("model", STICKERS) if isinstance(data, dict) else ""
    return model if isinstance(model, str) else ""
