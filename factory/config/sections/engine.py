"""The section `engine`: workers, detectors, deadlines and the cluster."""

from pydantic import Field, field_validator

from factory.config.sections.base import Section

_SMALLEST_SHARE = 0.0001
"""The smallest part of a GPU that Ray counts."""


class EngineRecipe(Section):
    """Workers, detectors, deadlines and the cluster. The fields do not affect the bytes and may change between runs."""

    workers: int | None = Field(
        default=None, ge=1, le=4096, description="Number of generating workers; by default, as many as fit."
    )
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        le=16,
        description="GPUs per worker, which may be a fraction; 0 for CPU workers; by default 1 if there are GPUs.",
    )
    offload: bool = Field(
        default=False,
        description="Keep models in host memory while the GPU does not use them; slower, but needs less GPU memory.",
    )
    detectors: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Workers of the detector pool; 0 runs the detector in each generating worker.",
    )
    gpus_per_detector: float = Field(default=0.0, ge=0, le=16, description="GPUs per worker of the detector pool.")
    writers: int = Field(default=1, ge=1, le=64, description="Threads per worker that encode and write samples.")
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which the worker of a shard is killed and the shard retried. By default ten times "
        "the time of the slowest shard, at least ten minutes; until three shards are finished, an hour without a new "
        "sample.",
    )
    load_deadline: float = Field(
        default=3600.0, gt=0, description="Seconds within which a worker must load its models."
    )
    grace: float = Field(
        default=20.0,
        ge=0,
        le=86400,
        description="Seconds that shards in progress may take to finish after SIGTERM or Ctrl-C.",
    )
    memory_per_worker: float | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="Memory in GiB that a CPU worker reserves; by default estimated from the model files, and nothing "
        "if `workers` is given.",
    )
    address: str | None = Field(
        default=None, description="Address of the Ray cluster; by default, a local instance is started."
    )

    @field_validator("gpus_per_worker", "gpus_per_detector")
    @classmethod
    def _gpus_that_ray_accepts(cls, gpus: float | None) -> float | None:
        if gpus and not (gpus.is_integer() or _SMALLEST_SHARE <= gpus < 1):
            raise ValueError(f"the number of GPUs must be whole, or a fraction from {_SMALLEST_SHARE} to below 1")
        return gpus
