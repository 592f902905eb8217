"""A store that does not respond is an outage: never a damaged receipt, and never missing progress."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.dataset.check_shard import check_shard
from factory.dataset.progress_file import read_progress
from factory.dataset.receipts import receipt_name
from factory.dataset.storage import Store
from factory.dataset.totals import read_receipts
from factory.errors import StoreUnavailableError, UserError
from factory.report.measure import measure

RECIPE = make_recipe({"n": 4, "classes": ["dog"]})


class SilentStore(Store):
    """A store in which some files cannot be read at the moment."""

    silent: tuple[str, ...] = ("receipts/", "progress.json")

    def get_tagged(self, name: str) -> tuple[bytes, str] | None:
        if name.startswith(self.silent):
            raise StoreUnavailableError(f"{name} cannot be read at the moment")
        return super().get_tagged(name)


@pytest.mark.parametrize(
    "read",
    [
        lambda store: check_shard(store, RECIPE, Plan(RECIPE).shard(0)),
        lambda store: list(read_receipts(store, [0])),
        read_progress,
        measure,
    ],
)
def test_outage_is_reported_as_an_outage(read: Callable[[Store], Any], tmp_path: Path) -> None:
    store = SilentStore(str(tmp_path))
    store.put("recipe.yaml", RECIPE.to_yaml().encode())
    with pytest.raises(StoreUnavailableError, match="cannot be read at the moment"):
        read(store)


def test_corrupt_receipts_and_progress_are_reported_or_ignored(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put(receipt_name(0), b"{}")
    assert check_shard(store, RECIPE, Plan(RECIPE).shard(0)).problems[0].startswith("not a valid receipt: KeyError")
    with pytest.raises(UserError, match=r"the receipt of shard 0 is corrupt .* --repair"):
        list(read_receipts(store, [0]))
    for content in (b"", b"{", b"7", b"[1]", b"[" * 100_000):
        store.put("progress.json", content)
        assert read_progress(store) == {}
