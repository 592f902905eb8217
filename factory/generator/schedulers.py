"""Which solver a model may be sampled with: some models are right with their own scheduler only."""

from collections.abc import Mapping
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError

SOLVERS = {"dpm++": "DPMSolverMultistepScheduler", "ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}

_CONSISTENCY = frozenset({"LCMScheduler", "TCDScheduler"})
_ORDINARY = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    }
)
"""Schedulers over the noise levels of Stable Diffusion: any of SOLVERS samples such a model as well."""

_NOT_REPEATABLE = frozenset({"DPMSolverSDEScheduler"})
"""Their noise does not come from the sample's seed; the models that name them are sampled with SOLVERS."""

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_TRAINED_STEPS = 50


def own_solver_needed(kind: str, config: Mapping[str, Any], unet: Mapping[str, Any]) -> bool:
    """Whether a model was distilled for its own scheduler: latent consistency, TCD, and Turbo's trailing Euler."""
    trailing = "Euler" in kind and config.get("timestep_spacing") == "trailing"
    return is_consistency(kind, unet) or trailing


def is_consistency(kind: str, unet: Mapping[str, Any]) -> bool:
    """Whether a model jumps to clean latents in each step: such a model has no path of an ordinary solver."""
    return kind in _CONSISTENCY or unet.get("time_cond_proj_dim") is not None


def loaded_class(kind: str) -> str:
    """The class to load a scheduler's configuration with: it says the noise levels, the recipe's solver the steps."""
    return SOLVERS["dpm++"] if kind in _NOT_REPEATABLE else kind


def check_scheduler(
    kind: str, config: Mapping[str, Any], unet: Mapping[str, Any], generator: GeneratorRecipe, where: str
) -> None:
    """UserError where the recipe's solver would not give the images that this model was trained to give.

    `kind` and `config` are the class and configuration of the pipeline's own scheduler, `unet` the U-Net's
    configuration.
    """
    own, solver = generator.solver == "model", generator.solver
    if kind in _NOT_REPEATABLE and own:
        raise UserError(
            f"the {kind} of {where} draws noise that does not depend on the seed alone, so the same recipe would not "
            f"give the same bytes; set generator.solver to one of {', '.join(SOLVERS)}."
        )
    if kind not in _ORDINARY | _CONSISTENCY | _NOT_REPEATABLE:
        raise UserError(
            f"the scheduler of {where} is a {kind}, which this release does not run; it runs "
            f"{', '.join(sorted(_ORDINARY | _CONSISTENCY))}."
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS or config.get("use_flow_sigmas"):
        raise UserError(
            f"the scheduler of {where} predicts {prediction!r}, with use_flow_sigmas "
            f"{config.get('use_flow_sigmas', False)}; this release runs models that predict {', '.join(_PREDICTIONS)}."
        )
    if is_consistency(kind, unet) and not own:
        raise UserError(
            f"{where} is a consistency model, which its own {kind} alone samples rightly; the recipe's solver is "
            f"{solver}. Set generator.solver to `model`, or leave it out."
        )
    trained = int(config.get("original_inference_steps") or _TRAINED_STEPS)
    if kind in _CONSISTENCY and generator.steps > trained:
        raise UserError(
            f"{where} is a consistency model of at most {trained} steps, got {generator.steps}; give --steps 4."
        )
