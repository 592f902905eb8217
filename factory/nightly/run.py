"""One night: lease, preflight, generation within the budget, verification, exports, report, retention, messages."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from factory import exit_codes, signals
from factory.config.plan import Plan
from factory.dataset.lease import HeldLease, is_stale, leased
from factory.dataset.stored_recipe import existing_recipe
from factory.dataset.totals import Totals, current_totals
from factory.errors import (
    LeaseHeldError,
    RunFailedError,
    TransientError,
    UserError,
    broken_disk,
    command,
    counted,
    first_few,
    full_disk,
)
from factory.files.strict_json import dumps
from factory.generation.run import RunSummary
from factory.nightly.budget import deadline, first_period, now
from factory.nightly.context import NightContext
from factory.nightly.latest import update_latest
from factory.nightly.notify import check_variables, send_all
from factory.nightly.outcome import Outcome
from factory.nightly.preflight import check_folder, check_store, check_workers
from factory.nightly.record import Night, NightFile, State
from factory.nightly.retention import delete_night, expired_nights
from factory.nightly.steps import (
    Generation,
    export_formats,
    prepare_night,
    start_night,
    verify_night,
    write_night_report,
)
from factory.nightly.totals import close_other_nights, with_totals

_PATIENCE = 5.0
"""Seconds that a store may take to respond when the samples of an interrupted or failed night are counted, and when an
interrupted night, which may be killed soon, is recorded."""
_INTERRUPTED = "Interrupted; committed shards are kept, and the next run continues."


class DamagedError(UserError):
    """The verification found damage. Exit code 5."""

    exit_code = exit_codes.DAMAGED


class ExhaustedError(UserError):
    """Every sample of the night was rejected in every attempt. Exit code 3."""

    exit_code = exit_codes.FAILED


def run_night(context: NightContext, force: bool = False) -> Outcome:
    """Run a night, or continue it, and send its notifications.

    Errors end up in the outcome and, if the night had started, in its record. `force` takes the dataset over from
    another driver.
    """
    outcome = _NightRun(context).run(force)
    if not outcome.unchanged and outcome.state != "held":
        variables = {"FACTORY_NIGHT": dumps(outcome.to_short_data())}
        send_all(context.config.notify, outcome.state, outcome.to_text(), variables, context.log)
    return outcome


def preview_night(context: NightContext) -> dict[str, Any]:
    """What `run_night` would do, as JSON data, after the checks that write nothing and need no cluster."""
    night = NightFile(context.root, context.date).load()
    finished = context.is_finished(night) or (night is None and context.finished_earlier() is not None)
    held = is_stale(context.dataset) is False
    data: dict[str, Any] = {"root": context.config.root, "date": context.folder, "dry_run": True, "held": held}
    if finished:
        return data | {"action": "nothing", "would_delete": []}
    check_variables(context.config.notify)
    check_folder(context.root, context.date)
    recipe, totals = prepare_night(context, night)
    night = start_night(context, night, recipe, totals)
    end = deadline(context.config.budget, night.period, context.zone)
    keep = context.config.keep
    expired = expired_nights(context.root, keep.nights, night.changed(state="complete")) if keep else []
    return data | {
        "action": "continue" if totals.shards else "start",
        "dataset": context.dataset.address,
        "samples": totals.accepted,
        "n": recipe.n,
        "seed": recipe.seed,
        "until": end.astimezone(context.zone).isoformat(timespec="seconds") if end else None,
        "would_delete": [date.isoformat() for date in expired],
    }


class _NightRun:
    """The sequence of steps; every step leaves its record in night.json."""

    def __init__(self, context: NightContext) -> None:
        self._context = context
        self._file = NightFile(context.root, context.date)
        self._night: Night | None = None
        self._started = False

    def run(self, force: bool) -> Outcome:
        context = self._context
        try:
            check_variables(context.config.notify)
            finished = self._finished()
            if finished is not None:
                return finished
            check_folder(context.root, context.date)
            check_store(context.root, context.date)
            with leased(context.dataset, force, context.log) as lease:
                return self._finished() or self._run(lease)
        except LeaseHeldError as error:
            return self._outcome("held", exit_codes.HELD, str(error))
        except KeyboardInterrupt:
            return self._outcome("interrupted", signals.exit_code(), _INTERRUPTED)
        except UserError as error:
            return self._outcome("failed", error.exit_code, str(error))
        except Exception as error:
            return self._unexpected(self._outcome, error)

    def _finished(self) -> Outcome | None:
        """The outcome if nothing is left to do. This check opens no model and writes nothing.

        The exception is latest.json, which is written if a driver was killed just before it wrote it, or if the night
        that it names was deleted.
        """
        self._night = self._file.load()
        context, message = self._context, "Already complete; nothing was changed."
        if not context.is_finished(self._night):
            earlier = context.finished_earlier() if self._night is None else None
            if earlier is None:
                return None
            self._night, message = earlier, f"The night of {earlier.date} reached the target; nothing was changed."
        else:
            assert self._night is not None
            update_latest(context.root, self._night)
        return replace(self._outcome("complete", exit_codes.DONE, message), unchanged=True)

    def _run(self, lease: HeldLease) -> Outcome:
        try:
            summary = self._generate(lease)
            self._check_and_export(summary, lease)
            return self._succeed()
        except LeaseHeldError:
            raise
        except KeyboardInterrupt:
            return self._end("interrupted", signals.exit_code(), _INTERRUPTED)
        except UserError as error:
            return self._end("failed", error.exit_code, str(error))
        except Exception as error:
            return self._unexpected(self._end, error)

    def _unexpected(self, end: Callable[[State, int, str], Outcome], error: Exception) -> Outcome:
        """The outcome of a full or broken disk, or of a bug, which the command raises after the notifications."""
        if full := full_disk(error):
            message = f"cannot write: {full}. Free some space and run this night again."
            return end("failed", exit_codes.TRY_AGAIN, message)
        if broken := broken_disk(error):
            return end("failed", exit_codes.BAD_INPUT, broken)
        outcome = end("failed", exit_codes.UNEXPECTED, f"unexpected {type(error).__name__}: {error}")
        return replace(outcome, unexpected=error)

    def _generate(self, lease: HeldLease) -> RunSummary:
        context = self._context
        recipe, totals = prepare_night(context, self._night)
        check_workers(recipe.engine, recipe.generator.threads)
        close_other_nights(context, totals)
        self._save(start_night(context, self._night, recipe, totals).changed(driver=lease.holder))
        self._started = True
        assert self._night is not None
        generation = Generation(context, self._night, recipe, totals)
        try:
            summary = generation.run(lease)
        finally:
            self._night = generation.night
        self._save(self._night)
        if summary.interrupted:
            raise KeyboardInterrupt
        self._check_samples(summary, generation.expired)
        return summary

    def _check_samples(self, summary: RunSummary, expired: bool) -> None:
        night = self._night
        assert night is not None
        # Quarantined shards are reported later, after the samples of other nights are verified.
        if night.quarantined:
            return
        if summary.lost:
            raise TransientError(f"{summary.lost_text} Run this night again to generate them.")
        if night.attempts and not night.new_samples:
            of_dataset = "" if night.mode == "fresh" else " in the whole dataset"
            raise ExhaustedError(
                f"no sample of this night was accepted; attempts rejected by each filter{of_dataset}: "
                f"{dumps(dict(night.rejected))}."
            )
        without_samples = not night.new_samples and not self._context.has_all_samples(night)
        if expired and without_samples:
            start = night.period.started.astimezone(self._context.zone)
            raise RunFailedError(
                f"the budget of this night, which counts from {start.isoformat(timespec='minutes')}, was used up "
                "before this run started, and the night has no samples; increase the budget and run this night again, "
                "or let the next night generate them."
            )
        if summary.limited and without_samples:
            raise RunFailedError(
                "the budget was used up before the first shard was finished; give a larger budget, a smaller "
                "shard_size, or more workers."
            )

    def _check_and_export(self, summary: RunSummary, lease: HeldLease) -> None:
        context, night = self._context, self._night
        assert night is not None
        if night.shards:
            lease.check()
            night = self._save(verify_night(context, night))
            if night.damaged:
                raise DamagedError(
                    f"{counted(len(night.damaged), 'shard is', 'shards are')} damaged: {first_few(night.damaged, 5)}. "
                    f"Repair the dataset with {command('verify', context.dataset.address, '--repair')}, then run this "
                    f"night again."
                )
            night = export_formats(context, night, lease, self._save)
            lease.confirm()
            write_night_report(context, night, self._save)
        if summary.last.quarantined:
            quarantined = summary.last.quarantined
            raise RunFailedError(
                f"{counted(len(quarantined), 'shard is', 'shards are')} quarantined after repeated errors: "
                f"{first_few(quarantined, 5)}; see quarantine/ and logs/ of {context.dataset.address}."
            )

    def _succeed(self) -> Outcome:
        night = self._night
        assert night is not None
        state: State = "complete" if self._context.has_all_samples(night) else "partial"
        code, message = exit_codes.DONE, "All samples of the night are generated and verified."
        if state == "partial":
            message = "The budget is used up; the next run continues."
        elif night.skipped:
            code = exit_codes.EXHAUSTED
            left_out = counted(night.skipped, "sample was", "samples were")
            message = f"{left_out} rejected in every attempt and skipped."
        update_latest(self._context.root, self._save(night.changed(state=state, exit_code=code)))
        self._started = False  # an interruption from here on must not change the record of the night
        return replace(self._outcome(state, code, message), deleted=self._delete_old())

    def _delete_old(self) -> tuple[Any, ...]:
        """Delete old nights; an error here is reported and does not fail the night, whose dataset is complete."""
        context, deleted = self._context, []
        if context.config.keep is not None:
            try:
                for date in expired_nights(context.root, context.config.keep.nights, self._night):
                    with suppress(LeaseHeldError):  # a driver works on it after all, with a clock that is behind
                        delete_night(context.root, date)
                        deleted.append(date)
            except UserError as error:
                context.log(f"old nights could not be deleted: {error}")
        return tuple(deleted)

    def _end(self, state: State, code: int, message: str) -> Outcome:
        """Record a night that did not succeed. The record of a successful night stays if this run changed nothing."""
        context, night = self._context, self._night
        if state == "interrupted":
            self._file.limit_patience(_PATIENCE)
        if night is None:
            night = start_night(context, None, context.recipe, Totals()).changed(runs=0)
        elif not night.runs:
            night = night.changed(period=first_period(night))
        if self._started or not night.good:
            try:
                night = self._save(night.changed(state=state, exit_code=code, error=context.root.hide(message)))
                if night.damaged:
                    update_latest(context.root, night)
                self._count_samples()
            except UserError as error:
                context.log(f"the record of the night could not be written: {error}")
        return self._outcome(state, code, message)

    def _count_samples(self) -> None:
        """Record the committed samples of a run that ended early; if this fails, the next run records them."""
        night, dataset = self._night, self._context.dataset.with_patience(_PATIENCE)
        if night is None or night.totalled or not self._started:
            return
        with suppress(UserError):
            recipe = existing_recipe(dataset)
            if recipe is not None:
                self._save(with_totals(night, current_totals(dataset, Plan(recipe))))

    def _save(self, night: Night) -> Night:
        night = night.changed(updated=now())
        self._file.save(night)
        self._night = night
        return night

    def _outcome(self, state: str, code: int, message: str) -> Outcome:
        context = self._context
        return Outcome(context.date, context.config.root, state, code, context.root.hide(message), self._night)
