"""Which recipes an existing dataset accepts: the same one, an extension, or another one while it has no receipt."""

from pathlib import Path
from typing import Any

import pytest

from factory.config.recipe import parse_recipe
from factory.dataset import stored_recipe
from factory.dataset.lease import leased
from factory.dataset.reader import open_dataset
from factory.dataset.repair import repair
from factory.dataset.storage import Store
from factory.dataset.stored_recipe import existing_recipe, init_or_resume, recipe_of
from factory.dataset.verify import verify
from factory.errors import UserError
from factory.generation.run import prepare, run_prepared
from tests.support import export_datasets
from tests.support.bucket import Bucket
from tests.support.in_process import error
from tests.support.recipes import two_shards


def test_dataset_that_another_driver_creates_meanwhile_is_found(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = two_shards(tiny_model)
    for name, action in (("a", existing_recipe), ("b", lambda store: init_or_resume(store, expected))):
        store, created = Store(str(tmp_path / name)), []
        get = store.get

        def late(name: str, get: Any = get, store: Store = store, created: list[Any] = created) -> Any:
            data = get(name)
            if not created:
                created.append(init_or_resume(Store(store.address), expected))
            return data

        monkeypatch.setattr(store, "get", late)
        assert action(store) == created[0]


def test_dataset_without_receipts_can_be_restarted_with_another_recipe(tiny_model: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    first, second = two_shards(tiny_model), two_shards(tiny_model, seed=1)
    init_or_resume(store, first)
    for name in ("train/0.tar", "manifest/0.parquet", "quarantine/0.json", "index/0.json", "rejected/0.json"):
        store.create(name, b"written by a worker that was killed before the receipt")
    assert init_or_resume(store, second).fingerprint() == second.fingerprint()
    assert recipe_of(store).fingerprint() == second.fingerprint()
    assert set(store.list("")) == {"recipe.yaml", ".lock"}, "a manifest of the first recipe would be a conflict"
    store.create("receipts/000000.json", b"{}")
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        init_or_resume(store, first)


@pytest.mark.parametrize(
    ("n", "earlier", "problem"),
    [
        (300, [], None),
        (300, [100], None),
        (300, [100, 200], None),
        (300, [50], r"earlier: \[100, 200\] -> \[50\]"),
        (300, [200], r"earlier: \[100, 200\] -> \[200\]"),
        (400, [100, 200, 300], None),
        (400, [100, 250], r"earlier: \[100, 200, 300\] -> \[100, 250\]"),
        (200, [50], "cannot shrink to 200"),
    ],
)
def test_earlier_sizes_of_a_recipe_must_be_those_of_the_dataset(
    n: int, earlier: list[int], problem: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    """They determine the shards. A recipe file that is older than an extension does not have the latest ones."""
    store = Store(str(tmp_path / "out"))
    first = two_shards(tiny_model).model_copy(update={"n": 300, "earlier": (100, 200)})
    init_or_resume(store, first)
    store.create("receipts/000000.json", b"{}")
    given = first.model_copy(update={"n": n, "earlier": tuple(earlier)})
    if problem is None:
        assert init_or_resume(store, given, extend=True).earlier == (100, 200, 300)[: n // 100 - 1]
    else:
        with pytest.raises(UserError, match=problem):
            init_or_resume(store, given, extend=True)
        assert recipe_of(store).earlier == (100, 200)


def test_recipe_of_an_older_format_does_not_continue_a_dataset_of_this_one(tiny_model: Path, tmp_path: Path) -> None:
    """Its fields have another meaning, so their comparison proves nothing."""
    store = Store(str(tmp_path / "out"))
    given = two_shards(tiny_model)
    init_or_resume(store, given)
    with pytest.raises(UserError, match="has format 2; this version"):
        prepare(given.model_copy(update={"format": 2}), store)


@pytest.mark.parametrize("n", [3, 30])
def test_dataset_without_receipts_can_be_restarted_with_another_size(tiny_model: Path, tmp_path: Path, n: int) -> None:
    store = Store(str(tmp_path / "out"))
    first = two_shards(tiny_model)
    init_or_resume(store, first)
    restarted = init_or_resume(store, first.model_copy(update={"n": n}))
    assert (restarted.n, restarted.earlier) == (n, ())
    assert recipe_of(store) == restarted.model_copy(update={"store": recipe_of(store).store})
    store.create("receipts/000000.json", b"{}")
    with pytest.raises(UserError, match=f"was created with n = {n}"):
        init_or_resume(store, first)


def test_resumed_and_extended_datasets_use_the_engine_of_the_current_run(tiny_model: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    first = two_shards(tiny_model)
    init_or_resume(store, first)
    store.create("receipts/000000.json", b"{}")
    given = first.model_copy(update={"engine": first.engine.model_copy(update={"workers": 3})})
    for n in (first.n, first.n + 4):
        assert init_or_resume(store, given.model_copy(update={"n": n}), extend=True).engine == given.engine


def test_a_folder_of_datasets_or_nights_is_refused_with_their_names(bucket: Bucket, tmp_path: Path) -> None:
    for address in (str(tmp_path / "root"), "s3://b/root"):
        root = Store(address)
        root.create("latest.json", b"{}")
        root.create("2026-11-25/night.json", b"{}")
        with pytest.raises(UserError, match=r"root is not a dataset: it has no recipe.yaml\. Create one"):
            recipe_of(root)
        root.create("2026-11-25/dataset/recipe.yaml", b"n: 1")
        with pytest.raises(
            UserError, match=r"contains the dataset 2026-11-25/dataset; give .*/root/2026-11-25/dataset\."
        ):
            recipe_of(root)
        root.create("2026-11-26/dataset/recipe.yaml", b"n: 1")
        found = r"the datasets 2026-11-26/dataset, 2026-11-25/dataset; give .*/root/2026-11-26/dataset or another one\."
        with pytest.raises(UserError, match=found):
            recipe_of(root)
    grown = Store(str(tmp_path / "grown"))
    grown.create("dataset/recipe.yaml", b"n: 1")
    with pytest.raises(UserError, match=r"contains the dataset dataset; give .*/grown/dataset\."):
        recipe_of(grown)


def test_recipe_in_another_encoding_is_not_read_with_other_names(tmp_path: Path) -> None:
    for data in ("n: 1\nclasses: [caf\u00e9]".encode("latin1"), "n: 1\nclasses: [cat]".encode("utf-16")):
        (tmp_path / "recipe.yaml").write_bytes(data)
        with pytest.raises(UserError, match=r"recipe\.yaml is damaged or not UTF-8 text \(.*\); restore it"):
            recipe_of(Store(str(tmp_path)))
    (tmp_path / "recipe.yaml").write_bytes("\ufeffn: 1\nclasses: [caf\u00e9]".encode())
    assert recipe_of(Store(str(tmp_path))).classes == ("caf\u00e9",)


def test_recipe_file_that_was_edited_after_its_shards_were_generated_is_rejected(tmp_path: Path) -> None:
    """A run would describe the shards with the wrong recipe, and a repair would delete all of them."""
    store, recipe = export_datasets.make_dataset(tmp_path / "set")
    edited = recipe.model_copy(update={"seed": 7})
    (tmp_path / "set" / "recipe.yaml").write_text(edited.to_yaml())
    files = store.list("")
    message = (
        rf"was generated with the recipe {recipe.fingerprint()[:12]}, but its recipe.yaml now has the fingerprint "
        rf"{edited.fingerprint()[:12]}: the file was changed since\. Undo the change"
    )
    for given in (edited, recipe):  # with the original one, the message said to resume the dataset with the edited one
        with leased(store) as held, pytest.raises(UserError, match=message):
            run_prepared(given, store, held)
    with pytest.raises(UserError, match=message):
        verify(store)
    assert store.list("") == files | {".lock": 0}
    for read in (open_dataset, lambda address: export_datasets.run(Store(address), tmp_path / "x", "coco")):
        with pytest.raises(UserError, match=message):  # ids of classes in another order would be those of others
            read(store.address)
    assert "was generated with the recipe" in error("status", store.address)


def test_single_receipt_of_another_recipe_is_repaired(tmp_path: Path) -> None:
    store, _ = export_datasets.make_dataset(tmp_path / "set", range(1, 5))
    other, _ = export_datasets.make_dataset(tmp_path / "other", range(1), seed=7)
    for name in other.list(""):
        store.create(name, other.get(name) or b"")
    with pytest.raises(UserError, match=r"receipt of shard 0 is corrupt \(it names another recipe, .*--repair"):
        export_datasets.run(store, tmp_path / "coco", "coco")
    with pytest.raises(UserError, match="names another recipe"):
        open_dataset(store.address)
    report = verify(store)
    assert report.damaged == {0: ["the receipt belongs to a different recipe"]}
    assert repair(store, report).deleted == (0,)
    assert not any("000000" in name for name in store.list("")), "its manifest would be a conflict"


def test_only_shard_of_a_dataset_is_damage_if_it_has_another_recipe(tmp_path: Path) -> None:
    """It is no sign of an edited recipe.yaml: a worker of a replaced driver can leave it."""
    store, _ = export_datasets.make_dataset(tmp_path / "set", ())
    other, _ = export_datasets.make_dataset(tmp_path / "other", range(1), seed=7)
    for name in other.list(""):
        store.create(name, other.get(name) or b"")
    assert verify(store).damaged == {0: ["the receipt belongs to a different recipe"]}


def test_recipe_is_parsed_again_only_if_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe with 100,000 custom prompts takes half a minute."""
    parsed: list[str] = []

    def recorded(text: str, where: str) -> dict[str, Any]:
        parsed.append(text)
        return parse_recipe(text, where)

    monkeypatch.setattr(stored_recipe, "parse_recipe", recorded)
    for n in (4, 5):
        (tmp_path / "recipe.yaml").write_text(f"n: {n}\n")
        assert [recipe_of(Store(str(tmp_path))).n for _ in range(3)] == [n] * 3
    assert parsed == ["n: 4\n", "n: 5\n"]
