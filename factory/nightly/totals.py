"""The share of a night in its dataset: in mode `grow`, several nights add samples to one dataset."""

from contextlib import suppress

from factory.dataset.totals import Totals
from factory.errors import LeaseHeldError
from factory.nightly.budget import now, with_lost_usage
from factory.nightly.context import NightContext
from factory.nightly.record import Before, Night, NightFile, readable_nights


def with_totals(night: Night, totals: Totals) -> Night:
    """The record with the totals of the dataset at the end of a run of this night."""
    new, attempts = totals.accepted - night.before.samples, totals.attempts - night.before.attempts
    return night.changed(
        totalled=True,
        samples=totals.accepted,
        new_samples=new,
        planned=totals.planned,
        attempts=attempts,
        accepted_share=round(new / attempts, 4) if attempts else None,
        exhausted=totals.exhausted,
        rejected=totals.rejected,
        shards=totals.shards,
        total_bytes=totals.bytes,
    )


def without_others(night: Night, totals: Totals) -> Night:
    """The record of a night that continues, in which the samples that other nights have added since do not count.

    If the last run of this night did not record its totals, no other night has run since, because that night would have
    recorded them. If the dataset has become smaller than before the night, for example because it was deleted, the
    night starts from the new size.
    """
    if night.mode == "fresh":
        return night
    before, added = night.before, Before()
    if night.good or night.totalled:
        added = Before(
            samples=max(0, totals.accepted - night.samples),
            planned=max(0, totals.planned - night.planned),
            attempts=max(0, totals.attempts - before.attempts - night.attempts),
        )
    return night.changed(
        before=Before(
            samples=min(totals.accepted, before.samples + added.samples),
            planned=min(totals.planned, before.planned + added.planned),
            attempts=min(totals.attempts, before.attempts + added.attempts),
        )
    )


def close_other_nights(context: NightContext, totals: Totals) -> None:
    """Complete the records of nights of mode `grow` whose driver was killed or could not write the record.

    The caller holds the lease of the dataset and has not added samples yet, so `totals` are those at the end of the
    last of these nights, and no driver works on any of them.
    """
    if context.config.mode != "grow":
        return
    all_nights = readable_nights(context.root).values()
    nights = [night for night in all_nights if night.runs and night.dataset == context.dataset_name]
    last = max(nights, key=lambda night: night.updated.timestamp(), default=None)
    for other in nights:
        file = NightFile(context.root, other.date)
        if other.date == context.date or other.good or other.totalled or (night := file.load()) is None:
            continue
        if other is last:  # the totals belong to it alone
            night = with_totals(with_lost_usage(night, context.dataset), totals)
        state = "interrupted" if night.state == "running" else night.state
        with suppress(LeaseHeldError):  # its driver still writes, so it was not killed; it has lost the lease
            file.save(night.changed(state=state, totalled=True, counted=True, updated=now()))
