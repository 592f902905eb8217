"""The record of a night (night.json), and the list of all nights."""

import datetime
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from factory.dataset.continuation import NIGHT
from factory.dataset.storage import Store
from factory.errors import LeaseHeldError, UserError
from factory.files.decode import decode_json
from factory.files.strict_json import dumps

DATASET = "dataset"
REPORT = "report"

State = Literal["running", "complete", "partial", "failed", "interrupted"]
GOOD: tuple[State, ...] = ("complete", "partial")
"""States of successful nights, whose dataset is verified and can be used."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Period(_Part):
    """The time that the budget of a night covers; a new period starts when a night continues after a used-up budget."""

    started: datetime.datetime
    gpu_seconds: float = 0.0


class Before(_Part):
    """The part of the dataset that other nights made: before this night, and in mode `grow` between its runs."""

    samples: int = 0
    planned: int = 0
    attempts: int = 0


class Verified(_Part):
    """The result of the verification."""

    shards: int = Field(description="Shards that were checked.")
    of: int = Field(description="Shards that exist.")
    damaged: tuple[int, ...] = ()
    at: datetime.datetime = Field(description="When the verification ended.")


class Exported(_Part):
    """An export; `shards` shows whether it covers the whole dataset."""

    path: str = Field(description="Folder, relative to the root.")
    shards: int
    train: int = Field(description="Samples for training.")
    val: int = Field(description="Samples for validation.")


class Reported(_Part):
    """The report; `shards` shows whether it covers the whole dataset."""

    path: str = Field(description="Folder, relative to the root.")
    shards: int
    level: str = Field(description="Verdict: `good`, `check` or `bad`.")
    sentence: str = Field(description="The verdict in one sentence.")


class Night(_Part):
    """The record of a night. Paths are relative to the root, times are in UTC, and durations are in seconds."""

    version: Literal[1] = 1
    date: datetime.date
    state: State
    mode: Literal["fresh", "grow"]
    config: str = Field(description="Digest of the recipe, mode and target in the configuration.")
    dataset: str
    fingerprint: str | None = Field(default=None, description="Fingerprint of the dataset's recipe.")
    started: datetime.datetime
    updated: datetime.datetime
    runs: int = Field(default=0, description="Number of runs that started to generate.")
    counted: bool = Field(default=True, description="Whether the hours include the latest run.")
    driver: str | None = Field(default=None, description="Identifies the driver of the latest run in its lease.")
    period: Period
    n: int = Field(description="Samples of the complete dataset.")
    samples: int = Field(default=0, description="Samples of the dataset.")
    new_samples: int = Field(default=0, description="Samples that this night added.")
    attempts: int = Field(default=0, description="Attempts of this night.")
    accepted_share: float | None = Field(default=None, alias="yield", description="Samples per attempt of this night.")
    planned: int = Field(default=0, description="Planned samples of the shards, including skipped ones.")
    totalled: bool = Field(
        default=False,
        description="Whether samples and attempts include the whole latest run; true for successful nights.",
    )
    exhausted: int = Field(default=0, description="Samples of the dataset that were rejected in every attempt.")
    rejected: Mapping[str, int] = Field(default={}, description="Rejected attempts of the dataset by reason.")
    shards: int = 0
    total_bytes: int = Field(default=0, alias="bytes", description="Size of all shards.")
    before: Before = Before()
    seconds: Mapping[str, float] = Field(
        default={}, description="Seconds by step (generate, verify, export, report), over all runs."
    )
    gpu_hours: float = 0.0
    worker_hours: float = 0.0
    price_per_gpu_hour: float | None = None
    cost: float | None = Field(default=None, description="GPU-hours multiplied by the price.")
    verified: Verified | None = None
    exports: Mapping[str, Exported] = {}
    report: Reported | None = None
    quarantined: tuple[int, ...] = ()
    lost_workers: int = 0
    versions: Mapping[str, str] = {}
    exit_code: int | None = None
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether the dataset of the night is verified and can be used."""
        return self.state in GOOD

    @property
    def damaged(self) -> tuple[int, ...]:
        """The shards that the last verification by this night found damaged."""
        return self.verified.damaged if self.verified is not None else ()

    @property
    def skipped(self) -> int:
        """The samples of this night that were rejected in every attempt."""
        return (self.planned - self.samples) - (self.before.planned - self.before.samples)

    @property
    def name(self) -> str:
        """The folder of the night."""
        return self.date.isoformat()

    def changed(self, **fields: Any) -> "Night":
        """A copy with other values."""
        return self.model_copy(update=fields)

    def to_data(self) -> dict[str, Any]:
        """The record as JSON data."""
        return self.model_dump(mode="json", by_alias=True)

    def to_json(self) -> bytes:
        """Serialise for `parse_night`."""
        return (dumps(self.to_data(), indent=1) + "\n").encode()


def parse_night(data: bytes, where: str) -> Night:
    """Parse a record; raises UserError if it is invalid."""
    try:
        return Night.model_validate(decode_json(data))
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{where} is not the record of a night ({first}); restore or delete it.") from error


class NightFile:
    """The night.json of one night. A record that another driver has changed is not overwritten."""

    def __init__(self, root: Store, date: datetime.date) -> None:
        self._root, self._name = root, f"{date.isoformat()}/{NIGHT}"
        self._seen: bytes | None = None
        self._unsure: bytes | None = None
        """A record that may have been written: an interrupt or an outage hid the result."""

    def load(self) -> Night | None:
        """Read the record; None if there is none. Raises UserError if it is invalid."""
        self._seen = self._root.get(self._name)
        return None if self._seen is None else parse_night(self._seen, self._root.address_of(self._name))

    def limit_patience(self, seconds: float) -> None:
        """From now on, give up after this time if the store does not respond."""
        self._root = self._root.with_patience(seconds)

    def save(self, night: Night) -> None:
        """Write the record. Raises LeaseHeldError if another driver has written one since `load`."""
        data = night.to_json()
        if self._unsure is not None and self._root.get(self._name) == self._unsure:
            self._seen = self._unsure
        self._unsure = data
        if not self._root.compare_and_swap(self._name, data, self._seen):
            raise LeaseHeldError(
                f"another driver changed {self._root.address_of(self._name)}; this run stops, and its committed "
                f"shards are kept."
            )
        self._seen, self._unsure = data, None


def list_nights(root: Store) -> dict[datetime.date, Night | None]:
    """Every night of a root by date; None if its record cannot be read. Folders without a record are left out."""
    dates = [name for name in root.folders() if _is_date(name)]
    nights: dict[datetime.date, Night | None] = {}
    for name, tagged in root.get_many(f"{date}/{NIGHT}" for date in dates):
        if tagged is not None:
            date = datetime.date.fromisoformat(name.partition("/")[0])
            try:
                night = parse_night(tagged[0], name)
            except UserError:
                night = None
            nights[date] = night if night is not None and night.date == date else None
    return nights


def readable_nights(root: Store) -> dict[datetime.date, Night]:
    """As `list_nights`, without those whose record cannot be read."""
    return {date: night for date, night in list_nights(root).items() if night is not None}


def _is_date(name: str) -> bool:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", name):
        return False
    try:
        datetime.date.fromisoformat(name)
    except ValueError:
        return False
    return True
