"""What the steps of a night share: configuration, date, stores and the log."""

import datetime
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from factory.config.recipe import Recipe
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import RECIPE
from factory.generation.reporter import Watch
from factory.nightly.config import NightlyConfig
from factory.nightly.latest import latest_night
from factory.nightly.record import DATASET, Night


@dataclass(frozen=True)
class NightContext:
    """A night of a configuration. `recipe` is not pinned yet; `dataset_name` is relative to the root."""

    config: NightlyConfig
    date: datetime.date
    recipe: Recipe
    root: Store
    dataset: Store
    dataset_name: str
    log: Callable[[str], None]
    watch: Watch

    @property
    def folder(self) -> str:
        """The folder of the night, relative to the root."""
        return self.date.isoformat()

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of the configuration."""
        return ZoneInfo(self.config.timezone)

    @property
    def digest(self) -> str:
        """Digest of what the configuration requests for this date: recipe, size and mode."""
        text = f"{self.recipe.fingerprint()} {self.recipe.n} {self.config.mode} {self.config.samples_per_night()}"
        if self.recipe.earlier:
            text += f" {self.recipe.earlier}"
        return hashlib.sha256(text.encode()).hexdigest()

    def has_all_samples(self, night: Night) -> bool:
        """Whether a night made all its samples: the dataset, or in mode `grow` its part of it."""
        part = self.config.samples_per_night()
        return night.planned >= night.n or (part is not None and night.planned - night.before.planned >= part)

    def is_finished(self, night: Night | None) -> bool:
        """Whether a night is complete as this configuration requests, and its dataset exists."""
        return (
            night is not None
            and night.state == "complete"
            and night.config == self.digest
            and set(self.config.exports) <= set(night.exports)
            and self.dataset.get(RECIPE) is not None
        )

    def finished_earlier(self) -> Night | None:
        """The night that reached the target in mode `grow`; None if there is none or its dataset was deleted."""
        night = latest_night(self.root) if self.config.mode == "grow" else None
        if night is None or night.mode != "grow" or night.planned < night.n or not self.is_finished(night):
            return None
        return night


def make_context(
    config: NightlyConfig,
    date: datetime.date,
    log: Callable[[str], None] = lambda text: None,
    watch: Watch = lambda snapshot: None,
) -> NightContext:
    """The context of a night. Raises UserError for an invalid recipe or address; nothing is accessed yet."""
    recipe = config.recipe_of(date)
    name = DATASET if config.mode == "grow" else f"{date.isoformat()}/{DATASET}"
    root = Store(config.root, recipe.store)
    return NightContext(config, date, recipe, root, root.below(name), name, log, watch)
