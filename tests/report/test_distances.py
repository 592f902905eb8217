"""Effect sizes and selections against other implementations and brute force."""

import tracemalloc
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from factory.dataset.records import Image
from factory.report.distances import Counts, Features, Rate, Scores, Share
from factory.report.drift import learned_threshold
from factory.report.duplicates import find_duplicates
from factory.report.features import FeatureMean, Floats, fourier_features, squared_mmd
from factory.report.histogram import Histogram, Scale
from factory.report.selection import Lowest, rank_of

RNG = np.random.default_rng(5)


def test_counts_match_scipy_jensen_shannon_and_ignore_the_number_of_samples() -> None:
    kind, first, second = Counts(), {"a": 30, "b": 10, "c": 1}, {"a": 5, "b": 20, "d": 4}
    p, q = np.array([30, 10, 1, 0]) / 41, np.array([5, 20, 0, 4]) / 29
    distance = kind.distance(kind.parse(first), kind.parse(second))
    assert distance == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert kind.distance(kind.parse(first), kind.parse({name: 7 * count for name, count in first.items()})) < 1e-12
    assert kind.distance(kind.parse({"a": 1}), kind.parse({"b": 1})) == pytest.approx(1)


def test_scores_match_scipy_wasserstein_in_standard_deviations() -> None:
    kind, values = Scores(), [RNG.normal(0.5, 0.1, 4000), RNG.normal(0.53, 0.1, 4000)]
    parsed = []
    for sample in values:
        histogram = Histogram(Scale(0, 1, 200))
        histogram.add(sample)
        parsed.append(kind.parse(histogram.to_dict()))
    expected = wasserstein_distance(*values) / values[1].std()
    assert kind.distance(*parsed) == pytest.approx(expected, abs=0.03)
    assert kind.distance(parsed[0], parsed[0]) == 0
    other = Histogram(Scale(0, 2, 200))
    other.add(values[0])
    with pytest.raises(ValueError, match="different bins"):
        kind.distance(parsed[0], kind.parse(other.to_dict()))


def test_shares_and_rates() -> None:
    assert Share().distance(0.5, 0.5) == 0
    assert Share().distance(1.0, 0.0) == pytest.approx(np.pi)
    assert Rate().distance(4.0, 1.0) == Rate().distance(1.0, 4.0) == 2
    for kind, invalid in ((Share(), 1.5), (Rate(), 0.0)):
        with pytest.raises(ValueError, match=r"not a share|above 0"):
            kind.parse(invalid)


def test_fourier_features_approximate_the_unbiased_mmd_of_a_gaussian_kernel() -> None:
    first, second = RNG.normal(0, 0.05, (300, 40)), RNG.normal(0.03, 0.05, (200, 40))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 0.4**2))

    def within(a: np.ndarray) -> float:
        return float((kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1)))

    exact = within(first) + within(second) - 2 * kernel(first, second).mean()
    means = [fourier_features(values).mean(0) for values in (first, second)]
    assert squared_mmd(means[0], 300, means[1], 200) == pytest.approx(exact, rel=0.15)
    halves = [fourier_features(part).mean(0) for part in (first[:150], first[150:])]
    assert abs(squared_mmd(halves[0], 150, halves[1], 150)) < exact / 10
    with pytest.raises(ValueError, match="different networks"):
        Features().distance(("a", 300, means[0]), ("b", 200, means[1]))


@pytest.mark.parametrize("spread", [2**64, 2**12])
def test_near_duplicates_equal_a_comparison_of_all_pairs(spread: int) -> None:
    """`spread` 2**12 gives hashes that agree in most bits, so nearly all of them share bands."""
    hashes = RNG.integers(0, spread - 1, 300, dtype=np.uint64, endpoint=True)
    for target, source, bits in ((10, 250, 0), (20, 251, 1 << 63), (30, 252, 1 | 1 << 40), (40, 253, 7)):
        hashes[target] = hashes[source] ^ np.uint64(bits)
    pairs = [(i, j) for i, j in combinations(range(300), 2) if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 2]
    found = find_duplicates(hashes)
    assert {(10, 250), (20, 251), (30, 252)} <= set(pairs)
    assert found.pairs == len(pairs)
    assert found.identical_pairs == sum(hashes[i] == hashes[j] for i, j in pairs)
    parents = list(range(300))
    for first, second in pairs:  # union by relabelling: slow and obviously right
        old, new = parents[second], parents[first]
        parents = [new if parent == old else parent for parent in parents]
    groups = {frozenset(k for k in range(300) if parents[k] == parent) for parent in parents}
    assert {frozenset(group.tolist()) for group in found.groups} == {group for group in groups if len(group) > 1}
    assert all(len(first) >= len(second) for first, second in pairwise(found.groups))


def test_no_hashes_have_no_duplicates() -> None:
    assert find_duplicates(np.zeros(0, np.uint64)).pairs == 0
    assert find_duplicates(np.zeros(5, np.uint64)).pairs == 10


def test_selections_do_not_depend_on_the_order() -> None:
    keys = [f"{index:09d}" for index in range(1000)]
    chosen = []
    for order in (keys, keys[::-1]):
        lowest = Lowest[str](50)
        for key in order:
            lowest.add(rank_of(key), key, key)
        chosen.append(lowest.items())
    assert chosen[0] == chosen[1] == sorted(keys, key=rank_of)[:50]
    assert 300 < np.mean([int(key) for key in chosen[0]]) < 700


def test_thresholds_are_learned_from_enough_distances_and_resist_one_outlier() -> None:
    assert learned_threshold([0.1] * 4, 0.0) is None
    usual = [0.10, 0.11, 0.09, 0.12, 0.10, 0.11]
    threshold = learned_threshold(usual, 0.0)
    assert threshold is not None
    assert max(usual) < threshold < 0.3
    assert learned_threshold([*usual, 5.0], 0.0) == pytest.approx(threshold, abs=0.1)
    assert learned_threshold([0.0] * 6, 0.05) == 0.05


def test_mean_of_features_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def features(mean: FeatureMean, images: Sequence[Image]) -> Floats:
        return np.stack([image.reshape(-1)[:4] / 255.0 for image in images])

    monkeypatch.setattr(FeatureMean, "_backbone_features", features)
    images = list(np.random.default_rng(0).integers(0, 256, (7, 2, 2, 3), np.uint8))
    whole, parts = FeatureMean(), FeatureMean()
    whole.add(images)
    monkeypatch.setattr("factory.report.features._BATCH", 2)
    for part in (images[:3], images[3:4], images[4:]):
        parts.add(part)
    assert parts.to_dict() == whole.to_dict()
    assert FeatureMean().to_dict() is None


def test_images_without_duplicates_take_little_memory() -> None:
    """An array for each image, of which nearly all are alone, would take more than all others together."""
    hashes = np.random.default_rng(0).integers(0, 2**63, 50_000).astype(np.uint64)
    tracemalloc.start()
    assert find_duplicates(hashes).groups == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 90 * len(hashes)
