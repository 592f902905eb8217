"""The plan: a pure function of the recipe, balanced, and stable when a dataset is extended."""

import hashlib
import io
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL.JpegImagePlugin import JpegImageFile

from factory.cli.plan import cost
from factory.config.class_balance import ClassSequence
from factory.config.cooccurrence import WeightedGroups
from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.dataset.encode import EncodedSample, encode_jpeg, encode_sample
from factory.dataset.records import Grounded, Instance, Rejection, Sample
from factory.dataset.tar import pack
from factory.errors import UserError
from factory.generation.filters import Filters

FROZEN_TEXTS = ["a photograph of a baseball glove", "a photograph of a donut and a bicycle"]
FROZEN_SEED = 3336214738267760206
FROZEN_RECORD, FROZEN_HASH, FROZEN_TAR = "dfcb846e059c9364", "f3f3cfcf3c3cf3f3", "3fc96c64cfc77298"
SHARES = st.sampled_from([{1: 1.0}, {2: 1.0}, {1: 0.5, 2: 0.5}, {1: 0.3, 2: 0.7}, {1: 0.9, 2: 0.1}])


def spread(counts: Counter[object], items: list[object]) -> int:
    numbers = [counts[item] for item in items]
    return max(numbers) - min(numbers)


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(2, 23), shares=SHARES, n=st.integers(1, 400), seed=st.integers(0, 2**31))
def test_class_and_pair_counts_differ_by_at_most_one(classes: int, shares: dict[int, float], n: int, seed: int) -> None:
    sequence = ClassSequence(classes, shares, seed, [n])
    prompts = [sequence.at(index) for index in range(n)]
    assert all(len(set(prompt)) == len(prompt) for prompt in prompts)
    assert spread(Counter(item for prompt in prompts for item in prompt), list(range(classes))) <= 1
    pairs = Counter(tuple(sorted(prompt)) for prompt in prompts if len(prompt) == 2)
    assert spread(Counter(pairs), list(combinations(range(classes), 2))) <= 1


@settings(max_examples=20, deadline=None)
@given(classes=st.integers(9, 30), size=st.integers(3, 4), n=st.integers(1, 200), seed=st.integers(0, 99))
def test_groups_of_three_and_four_are_balanced_and_repeat_no_class(classes: int, size: int, n: int, seed: int) -> None:
    sequence = ClassSequence(classes, {size: 1.0}, seed)
    prompts = [sequence.at(index) for index in range(n)]
    assert all(len(set(prompt)) == size for prompt in prompts)
    assert spread(Counter(item for prompt in prompts for item in prompt), list(range(classes))) <= 1


def test_object_counts_match_their_shares_in_every_prefix() -> None:
    sequence = ClassSequence(20, {1: 0.5, 2: 0.3, 3: 0.2}, 0)
    counts: Counter[int] = Counter()
    for index in range(500):
        counts[len(sequence.at(index))] += 1
        assert all(abs(counts[size] - share * (index + 1)) <= 1.1 for size, share in {1: 0.5, 2: 0.3, 3: 0.2}.items())


def test_same_recipe_gives_the_same_plan() -> None:
    recipe = {"n": 90, "shard_size": 20, "objects": {1: 0.5, 2: 0.5}, "seed": 7}
    first, second = Plan(make_recipe(recipe)), Plan(make_recipe(recipe))
    assert [first.shard(k) for k in range(len(first))] == [second.shard(k) for k in reversed(range(len(second)))][::-1]


def test_different_seed_gives_different_prompts_and_seeds() -> None:
    first, second = (Plan(make_recipe({"n": 50, "seed": seed})).shard(0) for seed in (1, 2))
    assert first.digest != second.digest
    assert not {s.seed(1, 0) for s in first.samples} & {s.seed(2, 0) for s in second.samples}


def test_plan_of_a_shard_is_frozen() -> None:
    """If this fails, recipes have changed their semantics: increment `format`."""
    shard = Plan(make_recipe({"n": 30, "shard_size": 10, "objects": {1: 0.5, 2: 0.5}})).shard(2)
    assert [sample.prompt.text for sample in shard.samples[:2]] == FROZEN_TEXTS
    assert shard.samples[0].seed(0, 1) == FROZEN_SEED


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({"classes": "voc"}, "3a3014c8942dfed0"),
        ({"classes": ["dog", "cat", "bus", "car", "cow"]}, "22bda73b4f5d2902"),
        ({"objects": {1: 0.5, 3: 0.3, 6: 0.2}}, "561a2be03f5aa75b"),
        ({"objects": {2: 0.4, 4: 0.6}, "cooccurrence": "coco"}, "37589155181edc7e"),
    ],
    ids=["even", "odd", "many objects", "co-occurrence"],
)
def test_the_classes_of_samples_are_frozen(options: dict[str, Any], digest: str) -> None:
    """As above: the order of classes and pairs depends on the seed, the number of classes and every earlier size."""
    defaults = {"n": 700, "earlier": [9, 21, 300], "classes": "coco", "objects": {1: 0.4, 2: 0.6}}
    plan = Plan(make_recipe(defaults | options))
    names = "|".join(",".join(plan.class_names(index)) for index in range(700))
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    "options",
    [
        {"objects": {1: 0.3, 2: 0.3, 3: 0.2, 6: 0.2}},
        {"objects": {1: 0.4, 2: 0.6}, "classes": ["dog", "cat", "bus", "car", "cow"]},
        {"objects": {1: 0.2, 2: 0.4, 5: 0.4}, "cooccurrence": "coco"},
        {"prompts": [{"text": "a dog", "classes": {"dog": "dog"}}, {"text": "a cat", "classes": {"cat": "cat"}}]},
    ],
    ids=["even", "odd", "co-occurrence", "custom prompts"],
)
def test_totals_of_classes_are_those_of_the_samples(options: dict[str, Any]) -> None:
    plan = Plan(make_recipe({"n": 10**7, "earlier": [50, 210]} | options))
    counts = Counter[str]()
    for end in range(400):
        if end % 37 == 0:
            assert +plan.class_totals(end) == counts, end
        counts.update(plan.class_names(end))


def test_the_record_of_a_sample_is_frozen() -> None:
    """If this fails, the same recipe gives other bytes: increment `format`."""
    recipe = make_recipe({"n": 4, "objects": {2: 1}})
    rows, columns = np.mgrid[:40, :60]
    planned = Plan(recipe).shard(0).samples[3]
    names = planned.prompt.classes
    masks = ((rows - 20) ** 2 + (columns - 15) ** 2 < 80, (rows > 7) & (columns % 9 > 5) & (columns > 33))
    found = Grounded(tuple(Instance(name, 1 / (k + 3), masks[k]) for k, name in enumerate(names)))
    image = np.stack([rows * 6, (rows // 10 + columns // 12) % 3 * 90, columns * 4], -1).astype(np.uint8)
    scores = Filters(recipe.filters).judge(image, planned.prompt, found).scores
    sample = Sample(planned, 1, 77, image, found, scores, (Rejection(0, 76, "overlap"),))
    encoded = encode_sample(sample, recipe.vocabulary(), {"format": 3}, 90)
    assert scores["image_hash"] == FROZEN_HASH
    assert hashlib.sha256(encoded.members["json"]).hexdigest()[:16] == FROZEN_RECORD


def test_the_tar_of_a_shard_is_frozen() -> None:
    """If this fails, the same recipe gives other bytes: increment `format`."""
    members = {"jpg": b"image", "json": b"{}", "seg.png": b"labels"}
    tar = pack([EncodedSample("000000003", members), EncodedSample("000000007", members)])
    assert hashlib.sha256(tar).hexdigest()[:16] == FROZEN_TAR


def test_images_have_the_given_quality_and_all_their_colours() -> None:
    """Subsampled colours would be wrong by 152 at the edges of an object."""
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255
    for quality, step in ((90, 3), (95, 2)):
        image = JpegImageFile(io.BytesIO(encode_jpeg(stripes, quality)))
        assert image.quantization[0][0] == step
        assert np.abs(np.asarray(image).astype(int) - stripes).max() < 10


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), extra=st.integers(1, 200), size=st.integers(1, 60))
def test_extended_dataset_keeps_existing_shards(n: int, extra: int, size: int) -> None:
    small = Plan(make_recipe({"n": n, "shard_size": size, "classes": "voc", "objects": {1: 0.5, 2: 0.5}}))
    data = {"n": n + extra, "earlier": [n], "shard_size": size, "classes": "voc", "objects": {1: 0.5, 2: 0.5}}
    large = Plan(make_recipe(data))
    assert [large.shard(k) for k in range(len(small))] == [small.shard(k) for k in range(len(small))]
    covered = [sample.index for k in range(len(large)) for sample in large.shard(k).samples]
    assert covered == list(range(n + extra))


def test_user_prompts_are_used_equally_often() -> None:
    prompts = [{"text": f"a dog, take {k}", "classes": {"dog": ""}} for k in range(7)]
    plan = Plan(make_recipe({"n": 24, "prompts": prompts}))
    counts = Counter(sample.prompt.text for sample in plan.samples())
    assert sorted(counts.values()) == [3, 3, 3, 3, 4, 4, 4]


class Forgetful(dict[Any, Any]):
    """A cache whose entries another thread removes at once."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def test_class_sequences_do_not_depend_on_their_cache() -> None:
    for size in (1, 2, 3):
        sequence, forgetful = ClassSequence(12, {size: 1.0}, 5), ClassSequence(12, {size: 1.0}, 5)
        forgetful._orders = Forgetful()
        assert [forgetful.at(index) for index in range(50)] == [sequence.at(index) for index in range(50)]
    weights = [[int(row != column) for column in range(6)] for row in range(6)]
    groups, forgetful_groups = WeightedGroups(weights, 5), WeightedGroups(weights, 5)
    forgetful_groups._cycles = Forgetful()
    assert [forgetful_groups.at(2, position) for position in range(9)] == [groups.at(2, k) for k in range(9)]


def test_the_order_of_prompts_does_not_depend_on_another_thread() -> None:
    class Overtaken(Plan):
        """Another thread always asks for another block in between."""

        _prompt_block = property(lambda self: (-1, []), lambda self, value: None)

    prompts = [{"text": f"photo {number} of a dog", "classes": {"dog": "dog"}} for number in range(3)]
    recipe = make_recipe({"n": 9, "classes": ["dog"], "prompts": prompts})
    assert list(Overtaken(recipe).samples()) == list(Plan(recipe).samples())


def test_too_many_shards_are_rejected() -> None:
    with pytest.raises(UserError, match="choose a larger --shard-size"):
        Plan(make_recipe({"n": 10**9, "shard_size": 1}))


@given(
    classes=st.sampled_from(["voc", "coco"]),
    first=st.integers(1, 300),
    extra=st.integers(1, 300),
    pairs=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_extended_dataset_is_balanced_within_two(classes: str, first: int, extra: int, pairs: float) -> None:
    objects = {1: 1 - pairs, 2: pairs}
    recipe = make_recipe({"n": first + extra, "earlier": [first], "classes": classes, "objects": objects})
    count = Counter(name for sample in Plan(recipe).samples() for name in sample.prompt.classes)
    named = [count[name] for name in recipe.vocabulary().names]
    assert max(named) - min(named) <= 2


def test_only_a_measurement_promises_an_estimate_of_disk_space() -> None:
    data = {"trial": None, "rate": None, "bytes": None, "worker_hours": 2.0, "workers": 2}
    assert "time and disk space, add --measure; for an estimate of time alone, give --rate" in cost(data)
    assert "Disk" not in cost(data | {"rate": 1.0})
