"""The impostor curve against all pairs, sorted; its tail against a distribution whose tail is known."""
import math

import numpy as np
import pytest

from utils.evaluation import thresholds
from utils.evaluation.metrics import threshold_at_far
from utils.evaluation.thresholds import (
    CURVE_FARS,
    count_distances,
    count_impostors,
    deviate,
    distance_at,
    impostor_curve,
)

CURVE = {0.1: 1.3, 0.01: 1.2, 0.001: 1.05, 1e-4: 1.0}


def distance_of(cosine):
    return math.sqrt(2 - 2 * cosine)


@pytest.mark.parametrize("block", [1, 300, 2_000_000])
def test_all_pairs_of_two_people_count_once_in_whatever_parts(monkeypatch, block):
    monkeypatch.setattr(thresholds, "COSINES_AT_ONCE", block)
    rng = np.random.default_rng(0)
    people = rng.choice(["Ann", "Bob", "Cid", "\u738b"], 60)
    embeddings = rng.normal(size=(60, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(60, 1)
    two = people[first] != people[second]
    distances = np.linalg.norm(embeddings[first[two]].astype(np.float64) - embeddings[second[two]], axis=1)
    counts = count_impostors(embeddings, people)
    assert counts.sum() == two.sum()
    measured = impostor_curve(counts)["measured"]
    assert measured.keys() == {"0.1", "0.01", "0.001"}
    for far, distance in measured.items():
        assert distance == pytest.approx(threshold_at_far(distances, float(far)), abs=2e-5)


def test_what_the_pairs_resolve_is_measured_and_the_rest_is_extrapolated_and_said_to_be():
    """Cosines of a normal distribution, as those of two random directions in many dimensions are."""
    rng = np.random.default_rng(1)
    curve = impostor_curve(count_distances(np.sqrt(2 - 2 * rng.normal(0.02, 0.1, 3000))))
    assert list(curve["measured"]) == ["0.1", "0.01", "0.001"] and curve["pairs"] == 3000
    assert list(curve["extrapolated"]) == ["0.0001", "1e-05", "1e-06"] and "normal quantile" in curve["how"]
    for far, distance in curve["extrapolated"].items():
        assert distance == pytest.approx(distance_of(0.02 + 0.1 * deviate(float(far))), abs=0.04)
    assert "extrapolated" not in impostor_curve(count_distances(np.linspace(0.5, 2, 10 ** 6)))


def test_too_few_pairs_have_no_curve():
    assert impostor_curve(count_distances(np.linspace(0.5, 1.5, 99))) is None
    assert impostor_curve(count_distances(np.linspace(0.5, 1.5, 100)))["measured"].keys() == {"0.1", "0.01"}


@pytest.mark.parametrize("far, distance", [(0.1, 1.3), (0.001, 1.05), (1e-4, 1.0)])
def test_the_curve_goes_through_its_points(far, distance):
    assert distance_at(CURVE, far) == pytest.approx(distance)


def test_between_and_beyond_its_points_the_curve_is_a_straight_line_over_the_normal_quantile():
    line = {far: distance_of(0.01 + 0.09 * deviate(far)) for far in CURVE_FARS[1:4]}
    for far in (0.3, 0.1, 0.03, 0.005, 2e-4, 1e-5, 1e-8):
        assert distance_at(line, far) == pytest.approx(distance_of(0.01 + 0.09 * deviate(far)))
    falling = [distance_at(CURVE, far) for far in np.geomspace(0.4, 1e-12, 50)]
    assert falling == sorted(falling, reverse=True) and min(falling) >= 0
