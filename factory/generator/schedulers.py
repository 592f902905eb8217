"""The solvers of a model; some models require their own scheduler."""

from collections.abc import Mapping
from typing import Any

from factory.config.sections import GeneratorRecipe
from factory.errors import UserError
from factory.generator.family import Family

_UNCLIPPED = {"clip_sample": False}
"""By default, DDIM clips predictions to -1..1, the range of pixels. Latents exceed it, and the configurations of other
schedulers may lack this field."""

SOLVERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", _UNCLIPPED),
    "euler": ("EulerDiscreteScheduler", {}),
    "ddim-trailing": ("DDIMScheduler", _UNCLIPPED | {"timestep_spacing": "trailing"}),
    "euler-trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""The class of each solver, and its changes to the configuration of the model's scheduler."""

OWN = "model"
"""The solver name for the scheduler of the model."""

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
"""Schedulers with the noise levels of Stable Diffusion, which any of SOLVERS can replace."""

_FLOW = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"})
_EDM = frozenset({"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"})
OF_UNETS = _ORDINARY | _CONSISTENCY | _EDM
"""The supported schedulers of U-Nets."""

NOT_REPEATABLE = frozenset({"DPMSolverSDEScheduler"})
"""Schedulers whose noise does not depend on the seed of the sample; one of SOLVERS must replace them."""

_PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
_TRAINED_STEPS = 50


def is_consistency(kind: str, denoiser: Mapping[str, Any]) -> bool:
    """Whether a model predicts clean latents in each step, so that other solvers cannot be used."""
    return kind in _CONSISTENCY or denoiser.get("time_cond_proj_dim") is not None


def is_turbo(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a model was distilled for few steps of Euler's method, as the Turbo models of Stable Diffusion are.

    Models whose last noise level is pure noise have the same spacing of timesteps, but need many steps and guidance.
    """
    trailing = config.get("timestep_spacing") == "trailing" and not config.get("rescale_betas_zero_snr")
    return "Euler" in kind and trailing


def can_be_inverted(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether DDIM applies to the noise levels of this scheduler."""
    return kind in _ORDINARY | NOT_REPEATABLE and not config.get("use_flow_sigmas")


def loaded_class(kind: str) -> str:
    """The class that loads the configuration of a scheduler, which defines the noise levels."""
    return SOLVERS["dpm++"][0] if kind in NOT_REPEATABLE else kind


def with_solver(scheduler: Any, solver: str) -> Any:
    """The scheduler of a solver with the noise levels of the model's `scheduler`."""
    import diffusers

    if solver == OWN:
        return scheduler
    kind, changes = SOLVERS[solver]
    return getattr(diffusers, kind).from_config(scheduler.config, **changes)


def check_scheduler(
    kind: str,
    config: Mapping[str, Any],
    denoiser: Mapping[str, Any],
    family: Family,
    generator: GeneratorRecipe,
    where: str,
) -> None:
    """Raise UserError if the pipeline cannot be sampled by its scheduler, or if the recipe's solver does not suit it.

    `kind` and `config` are the class and configuration of the pipeline's own scheduler, and `denoiser` the
    configuration of its U-Net or transformer.
    """
    supported = OF_UNETS if family.is_unet else frozenset(family.flow_schedulers) or _ORDINARY
    uses_own, solver = generator.solver == OWN, generator.solver
    if kind in NOT_REPEATABLE and uses_own:
        raise UserError(
            f"the {kind} of {where} draws noise that does not depend on the seed alone, so images would not "
            f"be reproducible; set generator.solver to one of {', '.join(SOLVERS)}."
        )
    if kind not in supported | NOT_REPEATABLE:
        raise UserError(
            f"the scheduler of {where} is a {kind}, which is not supported; supported are "
            f"{', '.join(sorted(supported))}."
        )
    if family.flow_schedulers and kind not in _FLOW and not config.get("use_flow_sigmas"):
        raise UserError(
            f"the {kind} of {where} is not configured for flow matching, by which models of the family {family.name} "
            f"were trained; set use_flow_sigmas in its scheduler_config.json, or restore the original file."
        )
    prediction = config.get("prediction_type", _PREDICTIONS[0])
    if prediction not in _PREDICTIONS:
        raise UserError(f"the scheduler of {where} predicts {prediction!r}; supported are {', '.join(_PREDICTIONS)}.")
    if (kind in _FLOW | _EDM or config.get("use_flow_sigmas")) and not uses_own:
        raise UserError(
            f"{where} works only with its own {kind}, whose noise levels differ from those of other solvers, but "
            f"the recipe's solver is {solver}; set generator.solver to `{OWN}`, or leave it out."
        )
    # A LoRA may turn another model into a consistency model, but not the reverse.
    if is_consistency(kind, denoiser) and not uses_own and SOLVERS[solver][0] not in _CONSISTENCY:
        raise UserError(
            f"{where} is a consistency model, which only its own {kind} can sample, but the recipe's solver is "
            f"{solver}; set generator.solver to `{OWN}`, or leave it out."
        )
    _check_steps(kind if uses_own else SOLVERS[solver][0], config, generator, where)


def _check_steps(kind: str, config: Mapping[str, Any], generator: GeneratorRecipe, where: str) -> None:
    trained = int(config.get("original_inference_steps") or _TRAINED_STEPS)
    if kind in _CONSISTENCY and generator.steps > trained:
        raise UserError(
            f"{where} is a consistency model of at most {trained} steps, but the recipe has {generator.steps}; give "
            f"--steps 4."
        )
    if config.get("shift_terminal") and generator.steps == 1:
        raise UserError(
            f"the scheduler of {where} moves its last step to a fixed noise level (shift_terminal), which takes "
            f"at least two steps; give --steps 2 or more."
        )
