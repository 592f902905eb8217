"""Guidance scales that change from one sampling step to the next."""

from typing import Any

from factory.config.guidance import CONSTANT, linear_scale


def guidance_arguments(guidance: float, schedule: str, steps: int) -> dict[str, Any]:
    """The arguments of a Stable Diffusion pipeline's call for a guidance scale and its schedule."""
    if schedule == CONSTANT or guidance <= 1:
        return {"guidance_scale": guidance}

    def set_next_scale(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # The pipelines read this attribute in every step and have no public way to change it.
        pipeline._guidance_scale = linear_scale(guidance, (step + 1.5) / pipeline.num_timesteps)
        return {}

    return {"guidance_scale": linear_scale(guidance, 0.5 / steps), "callback_on_step_end": set_next_scale}
