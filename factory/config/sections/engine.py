"""The section `engine`: how the work is distributed."""

from pydantic import Field, field_validator

from factory.config.sections.base import Section

_SMALLEST_SHARE = 0.0001
"""The smallest part of a GPU that Ray counts."""


class EngineRecipe(Section):
    """How the work is distributed. These fields do not affect the bytes and may change between runs."""

    workers: int | None = Field(
        default=None, ge=1, le=4096, description="Generation workers; by default as many as fit."
    )
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        le=16,
        description="GPUs per worker, may be a fraction; 0 means CPU workers; the default is 1 if there are GPUs.",
    )
    offload: bool = Field(
        default=False,
        description="Keep models in host memory while a GPU does not use them: slower, for models that do not fit.",
    )
    detectors: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Workers in the detector pool; 0 runs the detector inside each generation worker.",
    )
    gpus_per_detector: float = Field(default=0.0, ge=0, le=16, description="GPUs per detector worker.")
    writers: int = Field(default=1, ge=1, le=64, description="Threads per worker that encode and write samples.")
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which a shard's worker is killed and the shard retried; by default ten times the "
        "slowest shard, at least ten minutes. Before three shards are done, an hour without a new sample.",
    )
    load_deadline: float = Field(
        default=3600.0, gt=0, description="Seconds within which a worker must load its models."
    )
    grace: float = Field(
        default=20.0,
        ge=0,
        le=86400,
        description="Seconds that running shards may take to finish after SIGTERM or Ctrl-C.",
    )
    memory_per_worker: float | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="GiB that a CPU worker reserves; estimated from the model files by default; nothing is reserved if "
        "`workers` is given.",
    )
    address: str | None = Field(
        default=None, description="Address of the Ray cluster; by default a local one is started."
    )

    @field_validator("gpus_per_worker", "gpus_per_detector")
    @classmethod
    def _gpus_that_ray_accepts(cls, gpus: float | None) -> float | None:
        if gpus and not (gpus.is_integer() or _SMALLEST_SHARE <= gpus < 1):
            raise ValueError(
                f"GPUs can be shared in parts of at least {_SMALLEST_SHARE}, above 1 only whole; got {gpus:g}"
            )
        return gpus
