"""Sampling with the call of the pipeline, and the arguments that this call prepares for the denoiser."""

import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from factory.config.guidance import CONSTANT
from factory.config.sections import GeneratorRecipe
from factory.generator.family import Encoder, Family
from factory.generator.finite import check_finite
from factory.generator.guidance import guidance_arguments
from factory.generator.schedulers import with_solver

_DECODED_TOGETHER = 2**21
"""Pixels that the autoencoder decodes at a time, to limit memory: 8 images of 512 x 512, or 2 of 1024 x 1024. Of larger
batches, it decodes one image at a time."""

_GUIDED = 2.0
"""A guidance scale with which every pipeline computes both halves."""

_COMPILED_SHAPES = 4096
"""Maximum number of compiled shapes: one for each batch size and text length."""


@dataclass(frozen=True)
class Sampled:
    """Images, uint8 RGB (height, width, 3) each, and the finished latents in the sampler's space, float32."""

    images: list[NDArray[np.uint8]]
    latents: Tensor


@dataclass(frozen=True)
class TextTokens:
    """A text encoder's token ids (B, tokens), and which of them are text, not padding, bool (B, tokens)."""

    encoder: Encoder
    ids: Tensor
    is_text: Tensor


@dataclass(frozen=True)
class Conditions:
    """The arguments that the pipeline passes to its denoiser in the first step, by name, and the tokens of the texts.

    With both halves of guidance the batch has twice the number of texts, the unconditional half first.
    """

    arguments: Mapping[str, Any]
    tokens: tuple[TextTokens, ...]


class _DenoiserReachedError(Exception):
    """Stops a pipeline's call at the first call of its denoiser."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


class Sampler:
    """A diffusers pipeline with the settings of a recipe. `size` is the images' (height, width)."""

    def __init__(self, pipeline: Any, family: Family, settings: GeneratorRecipe, size: tuple[int, int]) -> None:
        self.pipeline, self.family, self.settings, self.size = pipeline, family, settings, size
        self.denoiser: Any = getattr(pipeline, family.denoiser)
        self._compiled = _compiled(self.denoiser, family) if settings.compile else self.denoiser
        pipeline.set_progress_bar_config(disable=True)
        self._own, self._scheduler = pipeline.scheduler, with_solver(pipeline.scheduler, settings.solver)
        self._parameters = inspect.signature(pipeline.__call__).parameters
        self._vae_dtype = pipeline.vae.dtype
        self._unguided_scale = (
            settings.guidance
            if family.guided_by_input(type(pipeline).__name__, self.denoiser.config)
            else family.unguided_scale
        )

    def sample(self, texts: Sequence[str], random: Sequence[torch.Generator]) -> Sampled:
        """One image per text, each with its own noise generator on the CPU, so that all devices draw the same noise.

        Raises UserError if a component returns NaN or infinity.
        """
        if hasattr(self.pipeline.vae, "use_slicing"):
            self.pipeline.vae.use_slicing = len(texts) * self.size[0] * self.size[1] > _DECODED_TOGETHER
        options = self._options(texts, self.settings.guidance)
        if self.settings.guidance_schedule != CONSTANT:
            options |= guidance_arguments(self.settings.guidance, self.settings.guidance_schedule, self.settings.steps)
        with ExitStack() as stack:
            stack.enter_context(self._installed(self._compiled))
            stack.enter_context(self._checked(self._compiled))
            last = stack.enter_context(_recorded(self.pipeline.scheduler, list(random)))
            stack.enter_context(_memory_errors_of(self.pipeline.vae))
            made = self.pipeline(**options, generator=list(random), output_type="pt")
        check_finite(made.images, "the autoencoder's decoder", self.settings)
        pixels = (made.images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return Sampled(list(pixels), last["latents"].float())

    def conditions(self, texts: Sequence[str], both: bool = False) -> Conditions:
        """The denoiser's arguments for these texts without guidance, or for `both` halves of it."""
        ids: dict[str, tuple[Tensor, Tensor | None]] = {}
        with ExitStack() as stack:
            stack.enter_context(self._installed(self.denoiser))
            hook = self.denoiser.register_forward_pre_hook(self._stop, with_kwargs=True)
            stack.callback(hook.remove)
            for encoder in self.family.encoders:
                module = getattr(self.pipeline, encoder.component, None)
                if module is not None:
                    handle = module.register_forward_pre_hook(_keep_ids(ids, encoder.component), with_kwargs=True)
                    stack.callback(handle.remove)
            random = [torch.Generator().manual_seed(0) for _ in texts]
            options = self._options(texts, max(_GUIDED, self.settings.guidance) if both else self._unguided_scale)
            try:
                self.pipeline(**options, generator=random, output_type="latent")
            except _DenoiserReachedError as reached:
                arguments = reached.arguments
        self._check_states(arguments[self.family.text])
        # Pipelines may encode the negative prompts last: without guidance, each encoder is called once.
        tokens = tuple(self._tokens(e, *ids[e.component]) for e in self.family.encoders if e.component in ids)
        return Conditions(arguments, tokens)

    def _options(self, texts: Sequence[str], guidance: float) -> dict[str, Any]:
        """The arguments of the pipeline's call that do not depend on the seeds."""
        options = self.family.guidance_options(guidance, self.settings.negative, len(texts))
        options |= {"prompt": list(texts), "height": self.size[0], "width": self.size[1]}
        options |= {"num_inference_steps": self.settings.steps, **self.family.call}
        return {name: value for name, value in options.items() if name in self._parameters}

    @contextmanager
    def _installed(self, denoiser: Any) -> Iterator[None]:
        """Give the pipeline this denoiser and a new scheduler, because multistep solvers remember earlier steps.

        A call that fails or stops at the denoiser leaves the pipeline modified: offloaded models stay on the GPU, and
        the autoencoder of Stable Diffusion XL stays in float32.
        """
        self.free()
        setattr(self.pipeline, self.family.denoiser, denoiser)
        self.pipeline.scheduler = type(self._scheduler).from_config(self._scheduler.config)
        try:
            yield
        finally:
            setattr(self.pipeline, self.family.denoiser, self.denoiser)
            self.pipeline.scheduler = self._own
            if self.pipeline.vae.dtype != self._vae_dtype:
                self.pipeline.vae.to(self._vae_dtype)

    def free(self) -> None:
        """With `engine.offload`, move all models to host memory.

        The hook of a model moves only the previous model of the pipeline to host memory. A denoiser that was called
        outside the pipeline would stay on the GPU together with the text encoder of the next call.
        """
        self.pipeline.maybe_free_model_hooks()

    @contextmanager
    def _checked(self, denoiser: Any) -> Iterator[None]:
        """Raise UserError where NaN or infinity occurs: in the text states, the denoiser or the autoencoder."""
        decoder = getattr(self.pipeline.vae, "decoder", None)

        def before(_module: Any, args: Any, kwargs: Any) -> None:
            handles.pop().remove()
            self._check_states(self._arguments(args, kwargs)[self.family.text])

        def after(name: str) -> Any:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                for value in tensors_of(output):
                    check_finite(value, name, self.settings)

            return hook

        handles = [denoiser.register_forward_hook(after(self.family.denoiser_name))]
        if isinstance(decoder, nn.Module):
            handles.append(decoder.register_forward_hook(after("the autoencoder's decoder")))
        handles.append(denoiser.register_forward_pre_hook(before, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_states(self, states: Tensor | list[Tensor]) -> None:
        """Raise UserError if the states of the texts, a tensor or one per text, contain NaN or infinity."""
        for value in states if isinstance(states, list) else [states]:
            check_finite(value, "the text encoder", self.settings)

    def _arguments(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments of a call of the denoiser by name."""
        return dict(inspect.signature(self.denoiser.forward).bind(*args, **kwargs).arguments)

    def _stop(self, _module: Any, args: Any, kwargs: Any) -> None:
        raise _DenoiserReachedError(self._arguments(args, kwargs))

    def _tokens(self, encoder: Encoder, ids: Tensor, mask: Tensor | None) -> TextTokens:
        """Mark the ids that are text: by the encoder's attention mask, up to the first end token, or before padding."""
        ids = ids.cpu()
        if mask is not None:
            return TextTokens(encoder, ids, mask.cpu().bool())
        tokenizer = getattr(self.pipeline, encoder.tokenizer)
        ends = (ids == tokenizer.eos_token_id).int()
        if bool(ends.any(1).all()):
            return TextTokens(encoder, ids, (ends.cumsum(1) - ends) == 0)
        return TextTokens(encoder, ids, ids != tokenizer.pad_token_id)


def _compiled(denoiser: Any, family: Family) -> Any:
    """The denoiser with torch.compile. Of a transformer, only the repeated block is compiled, in place.

    This takes a fraction of the time and is nearly as fast. A U-Net has few repeated blocks, so all of it is compiled.

    Every shape is compiled separately. By default, the first shape gets its own kernels, later shapes share kernels,
    and after eight compilations new shapes are not compiled, so rounding would depend on the order of the batches of a
    worker.
    """
    dynamo: Any = importlib.import_module("torch._dynamo.config")
    dynamo.cache_size_limit = dynamo.accumulated_cache_size_limit = _COMPILED_SHAPES
    if family.is_unet or not denoiser._repeated_blocks:
        return torch.compile(denoiser, dynamic=False)
    denoiser.compile_repeated_blocks(dynamic=False)
    return denoiser


@contextmanager
def _recorded(scheduler: Any, random: list[torch.Generator]) -> Iterator[dict[str, Tensor]]:
    """Record the last latents that a scheduler returns, and pass it the noise generators if the pipeline does not."""
    step, last = scheduler.step, {}
    accepts = "generator" in inspect.signature(step).parameters

    @functools.wraps(step)  # pipelines read the signature
    def recorded(*args: Any, **kwargs: Any) -> Any:
        if accepts:
            kwargs.setdefault("generator", random)
        result = step(*args, **kwargs)
        last["latents"] = result[0]
        return result

    scheduler.step = recorded
    try:
        yield last
    finally:
        del scheduler.step  # otherwise, the scheduler refers to itself and keeps the latents in memory


@contextmanager
def _memory_errors_of(vae: Any) -> Iterator[None]:
    """Raise OutOfMemoryError if the autoencoder runs out of memory; Sana's pipeline would continue without an image."""
    decode, failed = vae.decode, []

    def decoded(*args: Any, **kwargs: Any) -> Any:
        try:
            return decode(*args, **kwargs)
        except torch.OutOfMemoryError:
            failed.append(True)
            raise

    vae.decode = decoded
    try:
        yield
    except UnboundLocalError:
        if not failed:
            raise
        raise torch.OutOfMemoryError("the autoencoder ran out of memory") from None
    finally:
        del vae.decode


def _keep_ids(ids: dict[str, tuple[Tensor, Tensor | None]], name: str) -> Any:
    """A hook that keeps the ids and the mask of the first call of a text encoder."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        ids.setdefault(name, (input_ids, kwargs.get("attention_mask")))

    return hook


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in the output of a module: the output itself, or the first entry of a tuple, which may be a list."""
    if isinstance(output, Tensor):
        return [output]
    if hasattr(output, "sample"):
        output = (output.sample,)
    first = output[0]
    return list(first) if isinstance(first, list) else [first]
