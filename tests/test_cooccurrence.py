"""Classes that occur together: tables, their effect on prompts, and that classes stay balanced."""

import hashlib
import math
import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.cli.options import assemble
from factory.config.class_balance import ClassSequence
from factory.config.cooccurrence import WeightedGroups, balanced, pair_weights, read_table
from factory.config.plan import Plan
from factory.config.recipe import make_recipe, parse_recipe
from factory.config.splits import seen_classes
from factory.config.vocabulary import coco, from_names, voc
from factory.errors import UserError

FROZEN_CLASSES = "a86bd741e942909d"


def weights_of(size: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """A random symmetric matrix, a third of it zeros, in which every class has a partner."""
    draws = random.Random(seed)
    matrix = [[0.0] * size for _ in range(size)]
    for first, second in combinations(range(size), 2):
        weight = float(draws.choice([0, 1, 10]) or (second == first + 1))
        matrix[first][second] = matrix[second][first] = weight
    return balanced(tuple(map(tuple, matrix)))


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(15, 24), size=st.integers(2, 6), n=st.integers(1, 120), seed=st.integers(0, 99))
def test_groups_by_weight_are_balanced_and_repeat_no_class(classes: int, size: int, n: int, seed: int) -> None:
    groups = WeightedGroups(weights_of(classes, seed), seed)
    sequence = ClassSequence(classes, {size: 1.0}, seed, groups=groups)
    drawn = [sequence.at(index) for index in range(n)]
    assert all(len(set(group)) == size for group in drawn)
    counts = Counter(item for group in drawn for item in group)
    assert max(counts.values()) - min(counts[item] for item in range(classes)) <= 1
    again = ClassSequence(classes, {size: 1.0}, seed, groups=WeightedGroups(weights_of(classes, seed), seed))
    assert [again.at(index) for index in reversed(range(n))][::-1] == drawn


@settings(max_examples=25, deadline=None)
@given(classes=st.integers(3, 20), ones=st.sampled_from([0.0, 0.3, 0.5]), n=st.integers(1, 200))
def test_singles_and_pairs_together_are_balanced(classes: int, ones: float, n: int) -> None:
    groups = WeightedGroups(weights_of(classes, classes), 0)
    sequence = ClassSequence(classes, {1: ones, 2: 1 - ones}, 0, [n], groups)
    counts = Counter(item for index in range(n) for item in sequence.at(index))
    assert max(counts.values()) - min(counts[item] for item in range(classes)) <= 1


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("cooccurrence", [None, "coco"])
def test_five_and_six_objects_are_balanced(size: int, cooccurrence: str | None) -> None:
    recipe = make_recipe({"n": 333, "classes": "voc", "objects": {size: 1.0}, "cooccurrence": cooccurrence})
    drawn = [sample.prompt.classes for sample in Plan(recipe).samples()]
    assert all(len(set(classes)) == size for classes in drawn)
    counts = Counter(name for classes in drawn for name in classes)
    assert max(counts.values()) - min(counts[name] for name in voc().names) <= 1


def test_the_table_of_coco_has_its_counts() -> None:
    """Figures of COCO train2014 that are published elsewhere too; 2574 of its pairs of classes occur."""
    matrix = pair_weights("coco", coco(), coco().names)
    names = coco().names.index
    assert matrix[names("person")][names("dog")] == matrix[names("dog")][names("person")] == 1449
    assert matrix[names("knife")][names("fork")] > 1000
    assert sum(map(bool, (weight for row in matrix for weight in row))) == 2 * 2574
    assert all(matrix[k][k] == 0 for k in range(80))


def test_scaled_weights_have_equal_sums_and_are_symmetric() -> None:
    weights = balanced(pair_weights("coco", coco(), coco().names))
    sums = [sum(row) for row in weights]
    assert max(sums) / min(sums) < 1.001
    assert all(weights[i][j] == weights[j][i] for i, j in combinations(range(80), 2))


@pytest.mark.parametrize(("size", "most_absent"), [(2, 0.02), (3, 0.02), (6, 0.05)])
def test_prompts_show_classes_that_occur_together_in_coco(size: int, most_absent: float) -> None:
    """18.5 % of all pairs never occur in COCO; those of prompts hardly ever, and they follow its counts."""
    matrix, position = pair_weights("coco", coco(), coco().names), coco().names.index
    recipe = make_recipe({"n": 800, "objects": {size: 1.0}, "cooccurrence": "coco"})
    pairs = Counter(
        (position(first), position(second))
        for sample in Plan(recipe).samples()
        for first, second in combinations(sorted(sample.prompt.classes), 2)
    )
    absent = sum(count for (first, second), count in pairs.items() if not matrix[first][second])
    assert absent / pairs.total() < most_absent
    mean = sum(matrix[first][second] * count for (first, second), count in pairs.items()) / pairs.total()
    assert mean > 2 * sum(map(sum, matrix)) / (80 * 79)


def test_pairs_follow_the_weights() -> None:
    """Of four classes, each has one likely partner."""
    table = {"dog": {"cat": 9, "bus": 1}, "car": {"bus": 9, "cat": 1}}
    recipe = make_recipe({"n": 400, "classes": ["dog", "cat", "bus", "car"], "objects": {2: 1}, "cooccurrence": table})
    pairs = Counter(tuple(sorted(sample.prompt.classes)) for sample in Plan(recipe).samples())
    assert set(pairs) == {("cat", "dog"), ("bus", "car"), ("bus", "dog"), ("car", "cat")}
    assert 300 < pairs["cat", "dog"] + pairs["bus", "car"] < 390


@pytest.mark.parametrize("weight", [5e-324, 1e-51, 1e51, 1.7e308])
def test_weights_that_would_overflow_are_rejected(weight: float) -> None:
    classes, table = ["dog", "cat", "bus"], {"dog": {"cat": weight}, "cat": {"bus": 1 / 1e50}}
    with pytest.raises(UserError, match=r"the weight of dog and cat must be 0, or from 1e-50 to 1e\+50, got "):
        make_recipe({"n": 1, "classes": classes, "objects": {2: 1}, "cooccurrence": table})
    allowed = {"dog": {"cat": 1e50}, "cat": {"bus": 1e-50}}
    recipe = make_recipe({"n": 9, "classes": classes, "objects": {2: 1}, "cooccurrence": allowed})
    assert len(list(Plan(recipe).samples())) == 9


def test_the_plan_is_frozen_and_part_of_the_fingerprint() -> None:
    """If this fails, recipes have changed their semantics: increment `format`."""
    data = {"n": 40, "objects": {2: 0.5, 5: 0.5}, "cooccurrence": "coco"}
    text = "\n".join(sample.prompt.text for sample in Plan(make_recipe(data)).samples())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == FROZEN_CLASSES
    assert make_recipe(data).fingerprint() != make_recipe(data | {"cooccurrence": None}).fingerprint()
    assert "cooccurrence" not in make_recipe({"n": 1}).content()


def test_a_table_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('first, second, images\n# seen in my images\nCat,dog,3\ndog,cat,3\n"potted plant",sofa,0.5\n')
    table = read_table(path, coco())
    assert table == {"cat": {"dog": 3.0}, "couch": {"potted plant": 0.5}}
    options = {"classes": "dog,cat", "n": 4, "objects": "2", "cooccurrence": str(path)}
    path.write_text("dog,cat,3\n")
    recipe = assemble(None, None, options)
    assert recipe.cooccurrence == {"dog": {"cat": 3.0}}
    assert make_recipe(parse_recipe(recipe.to_yaml(), "it")) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; a row has two class names"),
        ("dog,cat\n", r"line 1: a row has two class names .*, got 'dog,cat'"),
        ("dog,cat,many\n", "line 1: .* 'many' is not a number of at least 0"),
        ("dog,cat,-1\n", "line 1: .* '-1' is not a number"),
        ("dog,cat,nan\n", "'nan' is not a number"),
        ("dog,cat,1\ncat,dog,2\n", "line 2: dog and cat have the weight 2 here and 1 in an earlier row"),
        ("dog,kat,1\n", r"t\.csv, line 1: there is no class 'kat' in your list of classes; did you mean cat"),
        ("dog,Dog,1\n", "line 1: a pair requires two different classes, got dog and Dog"),
    ],
)
def test_invalid_tables_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "t.csv", from_names(["dog", "cat"]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"objects": {1: 1}}, "cooccurrence requires images of two or more objects"),
        ({"classes": ["axolotl", "dog"]}, "the co-occurrence table `coco` has no class 'axolotl'; give a CSV file"),
        ({"cooccurrence": {"dog": {"cat": 1}}, "classes": ["dog", "cat", "bus"]}, "has no pair of 'bus' with another"),
        ({"cooccurrence": {"dog": {"cat": 0}}, "classes": ["dog", "cat"]}, "has no pair of 'dog' with another"),
        ({"cooccurrence": {"dog": {"cat": -1}}}, "must be at least 0"),
        ({"cooccurrence": {"dog": {"cat": True}}}, "valid number"),
        ({"cooccurrence": {"dog": {"cat": 1}, "cat": {"dog": 1}}}, "the pair of cat and dog is listed twice"),
        ({"cooccurrence": {"dog": {"unicorn": 1}}}, "cooccurrence: there is no class 'unicorn'"),
        ({"cooccurrence": "voc"}, "cooccurrence must be coco or a table"),
        ({"prompts": [{"text": "a dog", "classes": {"dog": ""}}]}, "cooccurrence applies to generated prompts"),
    ],
)
def test_invalid_recipes_are_rejected(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe({"n": 1, "objects": {2: 1}, "cooccurrence": "coco"} | data)


def test_a_missing_table_is_rejected() -> None:
    with pytest.raises(UserError, match=r"there is no co-occurrence table 'pairs\.csv'; give coco or a CSV file"):
        assemble(None, None, {"classes": "voc", "n": 1, "objects": "2", "cooccurrence": "pairs.csv"})


def test_oracles_draw_from_their_seen_classes() -> None:
    seen = seen_classes(voc(), "1")
    data = {"classes": "voc", "oracle": {"split": "1", "seen": list(seen)}, "masks": {"source": "detector"}}
    recipe = make_recipe({"n": 100, "objects": {3: 1}, "cooccurrence": "coco", **data})
    counts = Counter(name for sample in Plan(recipe).samples() for name in sample.prompt.classes)
    assert set(counts) == set(seen)
    assert math.isclose(max(counts.values()), min(counts.values()), abs_tol=1)
