"""A family of text-to-image models: its components, arguments and tokens, where masks are read, and defaults.

Importing this module loads no model library.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from factory.generator.text_columns import Columns, in_place
from factory.generator.text_templates import Template

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Encoder:
    """A text encoder whose states the denoiser attends to, and the component with its tokenizer.

    Several encoders of a family are concatenated along the tokens, in order. `templates` are those that a class of
    pipeline writes around the prompt, if they count towards `max_tokens`.
    """

    component: str = "text_encoder"
    tokenizer: str = "tokenizer"
    columns: Columns = in_place
    max_tokens: int | None = None
    """None stands for the tokenizer's `model_max_length`."""
    templates: Mapping[str, Template] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A row of the table in `factory.generator.families`.

    Components: `models` and `tokenizers` map each component to its allowed classes, `optional` may be missing.
    `denoiser` is the component that is called in every step; its class is a U-Net unless `blocks` is given.

    Arguments: `latents`, `time` and `text` name the denoiser's; `denoiser_time` converts a timestep of 0 to 1000 to its
    time. A `packed` denoiser reads (B, tokens, channels); `listed` ones take a list of (C, 1, h, w).

    Tokens: in a "cross" denoiser, attention modules named `attention` read text tokens and those named
    `self_attention` image tokens. In a joint one, `attention` reads both, "text first" or "image first"; image tokens
    are padded to a multiple of `padded_to`. `patch` is the latents per token along a side, by configuration if None.

    Masks: `noise_level` (0 to 1) is that at which the denoiser is read, `read_blocks` the part of the depth whose
    attention is averaged for `attention` masks, and `feature_blocks` the number of block outputs that grounders read.

    Sampling: `guidance_argument` names the argument of the pipeline's call, and `unguided_scale` is its value without
    guidance. `default_steps` and `default_guidance` hold where neither the model's card nor its configuration says
    more; `call` has further arguments. `size` is the default side in pixels; None stands for the denoiser's
    `sample_size`. `flow_schedulers` are those that a pipeline of flow matching works with; other families have none.
    """

    name: str
    pipelines: tuple[str, ...]
    denoiser_classes: tuple[str, ...]
    models: Mapping[str, tuple[str, ...]]
    tokenizers: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()
    denoiser: str = "transformer"
    latents: str = "hidden_states"
    time: str = "timestep"
    text: str = "encoder_hidden_states"
    denoiser_time: Callable[[float, Config], float] = lambda timestep, config: timestep
    packed: bool = False
    listed: bool = False
    tokens: Literal["cross", "text first", "image first"] = "text first"
    attention: str = "attn"
    self_attention: str | None = None
    blocks: tuple[str, ...] = ("transformer_blocks",)
    padded_to: int = 1
    patch: int | None = 2
    encoders: tuple[Encoder, ...] = (Encoder(),)
    noise_level: float = 0.25
    read_blocks: tuple[float, float] = (0.0, 1.0)
    feature_blocks: int = 8
    guidance_argument: str = "guidance_scale"
    unguided_scale: float = 1.0
    negative: bool = True
    default_steps: int = 20
    default_guidance: float = 5.0
    call: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = 1024
    flow_schedulers: tuple[str, ...] = ()

    @property
    def is_unet(self) -> bool:
        """Whether the denoiser is a U-Net; the others are transformers."""
        return not self.blocks

    @property
    def denoiser_name(self) -> str:
        """The name of the denoiser in messages."""
        return "the U-Net" if self.is_unet else "the transformer"

    def guided_by_input(self, pipeline: str, denoiser: Config) -> bool:
        """Whether a step is a single call, because the denoiser takes the guidance scale as an input or no guidance."""
        if self.is_unet:
            return denoiser.get("time_cond_proj_dim") is not None
        return pipeline in ("FluxPipeline", "Flux2Pipeline")

    def guidance_options(self, scale: float, negative: str, count: int) -> dict[str, Any]:
        """Arguments of the pipeline's call for a guidance scale and a negative prompt of `count` images."""
        options: dict[str, Any] = {self.guidance_argument: scale}
        if self.guidance_argument == "true_cfg_scale":
            # Qwen-Image applies guidance only with a negative prompt, and recommends a space for an empty one.
            return options | ({"negative_prompt": [negative or " "] * count} if scale > 1 else {})
        return options | ({"negative_prompt": [negative] * count} if negative else {})

    def pixels_per_token(self, factor: int, denoiser: Config) -> int:
        """Pixels per image token along a side, or per latent for a U-Net; `factor` is that of the autoencoder."""
        if self.is_unet:
            return factor
        return factor * (int(denoiser.get("patch_size", 1)) if self.patch is None else self.patch)
