"""The result of a run of a night, as JSON data and as text."""

import datetime
from dataclasses import dataclass
from typing import Any

from factory.errors import counted, duration, printable
from factory.nightly.record import Night

_MAX_SHARDS = 1000
_MAX_TEXT = 2000


@dataclass(frozen=True)
class Outcome:
    """How a run of a night ended.

    `state` is that of the record, or "held" if another driver is working on the night. `night` is None if nothing was
    recorded. `unexpected` is an error that is a bug in factory.
    """

    date: datetime.date
    root: str
    state: str
    exit_code: int
    message: str
    night: Night | None = None
    deleted: tuple[datetime.date, ...] = ()
    unchanged: bool = False
    unexpected: Exception | None = None

    def to_data(self) -> dict[str, Any]:
        """The record of the night with the result of this run."""
        record = self.night.to_data() if self.night is not None else {}
        return {
            **record,
            "root": self.root,
            "date": self.date.isoformat(),
            "state": self.state,
            "exit_code": self.exit_code,
            "message": self.message,
            "unchanged": self.unchanged,
            "deleted": [date.isoformat() for date in self.deleted],
        }

    def to_short_data(self) -> dict[str, Any]:
        """As `to_data`, with shortened lists of shards and texts: an environment variable is limited to 128 KiB."""
        data = self.to_data()
        if data.get("verified"):
            data["verified"] = {**data["verified"], "damaged": data["verified"]["damaged"][:_MAX_SHARDS]}
        if data.get("quarantined"):
            data["quarantined"] = data["quarantined"][:_MAX_SHARDS]
        return data | {name: data[name][:_MAX_TEXT] for name in ("message", "error") if data.get(name)}

    def to_text(self) -> str:
        """A few lines for a terminal or a message."""
        separator = ":" if self.state in ("failed", "held") else "."  # messages of errors begin in lower case
        lines = [f"factory nightly {self.date}: {self.state}{separator} {self.message}"]
        if self.night is not None and self.night.samples:
            lines.append(summary_of(self.night))
            if self.night.report is not None:
                lines.append(f"Report: {self.night.report.sentence}")
            lines.append(f"{self.root.rstrip('/')}/{self.night.dataset}")
        if self.deleted:
            lines.append(f"Deleted old nights: {', '.join(date.isoformat() for date in self.deleted)}.")
        return printable("\n".join(lines))


def summary_of(night: Night) -> str:
    """Samples, yield, time and cost in one sentence."""
    parts = [f"{night.samples} of {counted(night.n, 'sample')}"]
    if night.new_samples != night.samples:
        parts.append(f"{night.new_samples} of them new")
    if night.accepted_share is not None:
        parts.append(f"yield {night.accepted_share:.1%}")
    parts.append(duration(sum(night.seconds.values())))
    if night.gpu_hours:
        parts.append(f"{night.gpu_hours:.2f} GPU-hours")
    if night.cost is not None:
        parts.append(f"cost {night.cost:.2f}")
    return ", ".join(parts) + "."
