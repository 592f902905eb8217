"""Solvers that a model may be sampled with: some models require their own scheduler."""

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
"""Schedulers over the noise levels of Stable Diffusion; any of SOLVERS can replace them."""

_NOT_REPEATABLE = frozenset({"DPMSolverSDEScheduler"})
"""Schedulers whose noise does not come from the sample's seed; their models are sampled with SOLVERS instead."""

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_TRAINED_STEPS = 50


def own_solver_needed(kind: str, config: Mapping[str, Any], unet: Mapping[str, Any]) -> bool:
    """Whether a model was distilled for its own scheduler: latent consistency, TCD, or Turbo's trailing Euler."""
    trailing = "Euler" in kind and config.get("timestep_spacing") == "trailing"
    return is_consistency(kind, unet) or trailing


def is_consistency(kind: str, unet: Mapping[str, Any]) -> bool:
    """Whether a model predicts clean latents directly in each step, so that ordinary solvers do not apply."""
    return kind in _CONSISTENCY or unet.get("time_cond_proj_dim") is not None


def loaded_class(kind: str) -> str:
    """The class that loads a scheduler's configuration, which gives the noise levels; the recipe's solver steps."""
    return SOLVERS["dpm++"] if kind in _NOT_REPEATABLE else kind


def check_scheduler(
    kind: str, config: Mapping[str, Any], unet: Mapping[str, Any], generator: GeneratorRecipe, where: str
) -> None:
    """Raise UserError if the recipe's solver does not suit the model.

    `kind` and `config` are the class and configuration of the pipeline's own scheduler, `unet` the U-Net's
    configuration.
    """
    own, solver = generator.solver == "model", generator.solver
    if kind in _NOT_REPEATABLE and own:
        raise UserError(
            f"the {kind} of {where} draws noise that does not depend on the seed alone, so images would not "
            f"be reproducible; set generator.solver to one of {', '.join(SOLVERS)}."
        )
    if kind not in _ORDINARY | _CONSISTENCY | _NOT_REPEATABLE:
        raise UserError(
            f"the scheduler of {where} is a {kind}, which is not supported; supported are "
            f"{', '.join(sorted(_ORDINARY | _CONSISTENCY))}."
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS or config.get("use_flow_sigmas"):
        raise UserError(
            f"the scheduler of {where} predicts {prediction!r} with use_flow_sigmas "
            f"{config.get('use_flow_sigmas', False)}; supported are {', '.join(_PREDICTIONS)}, without flow sigmas."
        )
    if is_consistency(kind, unet) and not own:
        raise UserError(
            f"{where} is a consistency model, which only its own {kind} can sample, but the recipe's solver is "
            f"{solver}; set generator.solver to `model`, or leave it out."
        )
    trained = int(config.get("original_inference_steps") or _TRAINED_STEPS)
    if kind in _CONSISTENCY and generator.steps > trained:
        raise UserError(
            f"{where} is a consistency model of at most {trained} steps, but the recipe has {generator.steps}; give "
            f"--steps 4."
        )
