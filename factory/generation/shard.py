"""Produces one shard, as a pure function of the plan and the models, so that every worker produces the same bytes."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace

from factory.config.plan import PlannedSample, PlannedShard
from factory.config.recipe import Recipe
from factory.dataset.encode import EncodedSample, encode_sample
from factory.dataset.receipts import Tally
from factory.dataset.records import Rejection, Sample, Verdict, provenance
from factory.dataset.rejected_images import RejectedImages
from factory.engine.interface import Progress
from factory.generation.components import Components
from factory.generation.filters import Filters
from factory.generator.interface import Request


@dataclass(frozen=True)
class Pending:
    """A sample that is not accepted yet, with its rejected attempts."""

    planned: PlannedSample
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True)
class Produced:
    """The samples of a shard while they are being encoded, with counts, timings and some rejected images."""

    samples: list["Future[EncodedSample]"]
    tally: Tally
    seconds: dict[str, float]
    rejected: RejectedImages


def produce(
    shard: PlannedShard,
    recipe: Recipe,
    components: Components,
    encoder: Executor,
    progress: Progress = lambda accepted, reasons: None,
) -> Produced:
    """Produce the samples of a shard in rounds: round k makes attempt k for all samples that are not accepted yet.

    The order of samples and micro-batches is fixed, because the near-duplicate filter depends on it. `progress` is
    called after each micro-batch.
    """
    filters, clock = Filters(recipe.filters), _Clock()
    origin, vocabulary = provenance(recipe), recipe.vocabulary()
    encoded: dict[int, Future[EncodedSample]] = {}
    rejected, thumbnails = Counter[str](), RejectedImages()
    pending, attempts = [Pending(planned) for planned in shard.samples], 0
    for attempt in range(recipe.attempts):
        remaining: list[Pending] = []
        for batch in _micro_batches(pending, recipe.batch):
            attempts += len(batch)
            verdicts = _attempted(batch, attempt, recipe, components, filters, clock)
            for candidate, sample, verdict in verdicts:
                if verdict.reason is None:
                    future = encoder.submit(encode_sample, sample, vocabulary, origin, recipe.jpeg_quality)
                    encoded[candidate.planned.index] = future
                else:
                    remaining.append(_rejected(candidate, sample, verdict.reason))
                    thumbnails.add(sample, verdict.reason)
            reasons = [verdict.reason for _, _, verdict in verdicts if verdict.reason is not None]
            rejected.update(reasons)
            progress(len(batch) - len(reasons), reasons)
        pending = remaining
        if not pending:
            break
    exhausted = tuple(candidate.planned.index for candidate in pending)
    samples = [encoded[index] for index in sorted(encoded)]
    return Produced(samples, Tally(attempts, rejected, exhausted), clock.seconds, thumbnails)


def _attempted(
    batch: Sequence[Pending], attempt: int, recipe: Recipe, components: Components, filters: Filters, clock: "_Clock"
) -> list[tuple[Pending, Sample, Verdict]]:
    """Generate, ground and judge one micro-batch."""
    seeds = [candidate.planned.seed(recipe.seed, attempt) for candidate in batch]
    prompts = [candidate.planned.prompt for candidate in batch]
    with clock("generate"):
        requests = [
            Request(candidate.planned.prompt, seed, candidate.planned.index)
            for candidate, seed in zip(batch, seeds, strict=True)
        ]
        generated = components.generator.generate(requests)
    with clock("ground"):
        grounded = components.grounder.ground(generated, prompts)
    images = [result.image for result in generated]
    with clock("judge"):
        classes = [prompt.classes for prompt in prompts]
        found = components.judge.detect(images, classes) if components.judge else [()] * len(images)
        detections = [[instance for instance in one if instance.score >= recipe.masks.score] for one in found]
    results = []
    with clock("filter"):
        for index, candidate in enumerate(batch):
            result, raw, written = generated[index], grounded[index], grounded[index].disjoint()
            judged = prompts[index]
            if recipe.oracle is not None:
                # An oracle dataset leaves out classes that its detector does not find, so they are no reason for
                # rejection.
                judged = judged.only({instance.class_name for instance in written.instances})
            verdict = filters.judge(result.image, judged, written, detections[index], raw)
            sample = Sample(
                planned=candidate.planned,
                attempt=attempt,
                seed=seeds[index],
                image=result.image,
                grounded=written,
                scores={**verdict.scores, **result.measured},
                rejections=candidate.rejections,
                latent=result.latent if recipe.oracle is not None else None,
                noise_level=result.noise_level,
            )
            results.append((candidate, sample, verdict))
    return results


def _rejected(candidate: Pending, sample: Sample, reason: str) -> Pending:
    return replace(candidate, rejections=(*candidate.rejections, Rejection(sample.attempt, sample.seed, reason)))


def _micro_batches(pending: Sequence[Pending], size: int) -> Iterator[Sequence[Pending]]:
    return (pending[start : start + size] for start in range(0, len(pending), size))


class _Clock:
    """Sums up seconds per step: `with clock("generate"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)
