"""All metrics of factory, and their names in Prometheus."""

from factory import metrics

METRICS = tuple(value for value in vars(metrics).values() if isinstance(value, metrics.Metric))


def exported_names(metric: metrics.Metric) -> tuple[str, ...]:
    """The names of its series; Ray adds the prefix `ray_`."""
    suffixes = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
    return tuple(f"ray_{metric.name}{suffix}" for suffix in suffixes)
