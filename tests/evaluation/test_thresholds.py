"""Thresholds that are saved beside the weights, and the impostor curve against sorted distances of all pairs."""
import json
import math
import re

import numpy as np
import pytest
from conftest import ROOT, read_json

from arcface import Arcface
from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.evaluation import thresholds as thresholds_module
from utils.evaluation.metrics import best_threshold, threshold_at_far
from utils.evaluation.thresholds import (
    CURVE_FARS,
    DEFAULT_CURVE,
    DEFAULT_THRESHOLD,
    OPERATING_POINTS,
    Threshold,
    Thresholds,
    count_impostors,
    curve_distance,
    histogram,
    impostor_curve,
    measure_thresholds,
    normal_quantile,
    save_thresholds,
)

THRESHOLDS = {"best accuracy": 1.167, "FAR 0.01": 1.1, "FAR 0.001": 1.05}
CURVE = {"pairs": 10 ** 6, "measured": {"0.1": 1.3, "0.01": 1.2, "0.001": 1.1, "0.0001": 1.0, "1e-05": 0.9}}


@pytest.fixture
def weights(tmp_path):
    """A file in place of weights. Its content does not matter to the thresholds."""
    (tmp_path / "ep001-loss1.5.pth").write_bytes(b"weights")
    return tmp_path / "ep001-loss1.5.pth"


def read(weights):
    return read_json(weights.with_suffix(".json"))


def write(weights, text):
    weights.with_suffix(".json").write_text(text, encoding="utf-8")


# measuring and saving

def test_each_threshold_is_the_mean_over_folds_of_the_one_chosen_on_the_others():
    rng = np.random.default_rng(3)
    genuine = np.tile(np.repeat([True, False], 500), 4)
    distances = np.where(genuine, rng.normal(0.9, 0.15, 4000), rng.normal(1.3, 0.15, 4000))
    folds = np.repeat(range(4), 1000)
    found = measure_thresholds(distances, genuine, 4)
    assert list(found) == list(OPERATING_POINTS.values())
    assert found["best accuracy"] == pytest.approx(
        np.mean([best_threshold(distances[folds != fold], genuine[folds != fold]) for fold in range(4)]))
    for far in (0.01, 0.001):
        assert found[f"FAR {far}"] == pytest.approx(
            np.mean([threshold_at_far(distances[(folds != fold) & ~genuine], far) for fold in range(4)]))
        accepted = (distances[~genuine] < found[f"FAR {far}"]).mean()
        assert far / 2 < accepted < 2 * far
    few = measure_thresholds(distances[:2000], genuine[:2000], 2)
    assert list(few) == ["best accuracy", "FAR 0.01"]  # 500 impostor pairs do not resolve 0.001


def test_saving_names_the_weights_and_keeps_other_keys(weights):
    write(weights, json.dumps({"training": {"epochs": 5, "people": "王小明"}, "accuracy": 0.1, "val": 0.9}))
    path = save_thresholds(weights, {"accuracy": 0.9, "thresholds": THRESHOLDS, "val": None})
    assert path == weights.with_suffix(".json")
    found = read(weights)
    assert found["training"] == {"epochs": 5, "people": "王小明"} and found["accuracy"] == 0.9 and "val" not in found
    assert found["thresholds"] == THRESHOLDS and found["weights_sha256"] == hash_file(weights)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    save_thresholds(weights, {"thresholds": THRESHOLDS}, "the hash of the file that was measured")
    assert read(weights)["weights_sha256"] == "the hash of the file that was measured"


def test_saving_over_a_file_of_another_kind_is_a_user_error_and_leaves_it(weights):
    write(weights, "not JSON")
    with pytest.raises(UserError, match=re.escape(weights.with_suffix(".json").name)):
        save_thresholds(weights, {"thresholds": THRESHOLDS})
    assert weights.with_suffix(".json").read_text() == "not JSON"


# two images

@pytest.mark.parametrize("name, expected", [("best-accuracy", 1.167), ("far-0.01", 1.1), ("far-0.001", 1.05)])
def test_the_measured_threshold_names_its_operating_point_and_has_no_unsure_range(weights, name, expected):
    save_thresholds(weights, {"thresholds": THRESHOLDS, "benchmark": "LFW"})
    assert Thresholds(weights, name).for_pair() == (expected, f"= {OPERATING_POINTS[name]} on LFW", None)
    assert Thresholds(weights, name, given=0.5).for_pair() == (0.5, "on the distance", None)


@pytest.mark.parametrize("distance, verdict", [(1.04, "same"), (1.05, "not sure"), (1.16, "not sure"),
                                               (1.167, "different")])
def test_between_far_0_001_and_best_accuracy_the_verdict_is_not_sure(weights, distance, verdict):
    save_thresholds(weights, {"thresholds": THRESHOLDS})
    threshold = Thresholds(weights).for_pair()
    assert threshold.unsure == (1.05, 1.167) and threshold.verdict(distance) == verdict
    assert Threshold(1.05, "").verdict(distance) == ("same" if distance < 1.05 else "different")


@pytest.mark.parametrize("text", [None, "{}", '{"training": {"epochs": 5}}'])
def test_without_a_measurement_the_threshold_is_the_default_and_described_so(weights, text):
    if text is not None:
        write(weights, text)
    found = Thresholds(weights).for_pair()
    assert found.value == DEFAULT_THRESHOLD and "not measured" in found.meaning and found.unsure is None
    assert Thresholds(weights).note is None


@pytest.mark.parametrize("spoil, word", [
    (lambda weights: weights.write_bytes(b"other weights"), "SHA-256"),
    (lambda weights: write(weights, "{"), "JSON"), (lambda weights: write(weights, "3"), "JSON"),
    (lambda weights: weights.with_suffix(".json").write_bytes(b"\xff\xfe\x00"), "JSON")],
    ids=["other weights", "cut", "number", "bytes"])
def test_unusable_thresholds_are_not_used_and_one_line_reports_why(weights, spoil, word):
    save_thresholds(weights, {"thresholds": THRESHOLDS, "flip": False})
    spoil(weights)
    thresholds = Thresholds(weights)
    assert thresholds.for_pair().value == DEFAULT_THRESHOLD and "not measured" in thresholds.for_pair().meaning
    assert word in thresholds.note and weights.with_suffix(".json").name in thresholds.note
    assert "\n" not in thresholds.note
    with pytest.raises(UserError, match="--save-threshold"):
        Thresholds(weights, "far-0.01").for_pair()


def test_an_operating_point_that_is_unknown_or_was_not_measured_is_a_user_error(weights):
    with pytest.raises(UserError, match=r"FAR 0\.001.*--save-threshold"):
        Thresholds(weights, "far-0.001").for_pair()
    with pytest.raises(UserError, match=r"far-7.*best-accuracy, far-0\.01, far-0\.001"):
        Thresholds(weights, "far-7")


# a gallery

def test_a_gallery_takes_the_distance_of_impostors_at_the_fraction_for_each_of_its_images(weights):
    save_thresholds(weights, {"thresholds": THRESHOLDS, "benchmark": "LFW", "impostors": CURVE})
    default, strict = Thresholds(weights), Thresholds(weights, "far-0.001")
    found = default.for_gallery(100)
    assert found.value == pytest.approx(1.0) and found.unsure == (found.value, pytest.approx(1.1))
    assert found.meaning == ("for a gallery of 100: at most 1% of unknown identities are identified, by the impostor "
                             "pairs of LFW")
    found = strict.for_gallery(100)
    assert found.value == pytest.approx(0.9) and found.unsure is None and "0.1% of unknown identities" in found.meaning
    assert "extrapolated" not in found.meaning
    assert strict.for_gallery(1000).value == pytest.approx(0.8, abs=1e-3)
    assert strict.for_gallery(1000).meaning.endswith("extrapolated")
    values = [default.for_gallery(images).value for images in (1, 9, 10, 10 ** 4, 10 ** 6)]
    assert values == sorted(values, reverse=True) and values[-1] > 0


def test_the_smaller_of_the_thresholds_by_weights_and_by_gallery_is_used(weights):
    save_thresholds(weights, {"thresholds": THRESHOLDS, "impostors": CURVE})
    by_weights = Thresholds(weights).for_gallery(100)
    alike = Thresholds(weights).for_gallery(100, (0.15, 0.1))
    for far, distance in ((1e-4, alike.value), (1e-3, alike.unsure[1])):
        assert distance == pytest.approx(np.sqrt(2 - 2 * (0.1 + 0.15 * normal_quantile(far))))
    assert alike.value < by_weights.value and alike.meaning.endswith("by its own people, who are more alike")
    assert Thresholds(weights).for_gallery(100, (0.05, 0.1)) == by_weights  # less alike than those of LFW


def test_a_gallery_without_a_measurement_reports_it_and_a_given_threshold_is_used(weights):
    found = Thresholds(weights).for_gallery(100)
    assert found.value == pytest.approx(0.9822) and "not measured" in found.meaning
    assert Thresholds(weights, given=1).for_gallery(100) == (1.0, "on the distance", None)
    with pytest.raises(UserError, match=r"best-accuracy .*unknown identities.*far-0\.01"):
        Thresholds(weights, "best-accuracy").for_gallery(100)


# the impostor curve

@pytest.mark.parametrize("cosines_at_once", [1, 300, 2_000_000])
def test_all_pairs_of_two_identities_count_once_in_blocks_of_any_size(monkeypatch, cosines_at_once):
    monkeypatch.setattr(thresholds_module, "COSINES_AT_ONCE", cosines_at_once)
    rng = np.random.default_rng(0)
    identities = rng.choice(["Ann", "Bob", "Cid", "\u738b"], 80)
    embeddings = rng.normal(size=(80, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(80, 1)
    two = identities[first] != identities[second]
    distances = np.linalg.norm(embeddings[first[two]].astype(np.float64) - embeddings[second[two]], axis=1)
    counts = count_impostors(embeddings, identities)
    assert counts.sum() == two.sum()
    measured = impostor_curve(counts)["measured"]
    assert measured.keys() == {"0.1", "0.01"}
    for far, distance in measured.items():
        assert distance == pytest.approx(threshold_at_far(distances, float(far)), abs=2e-5)


def distance_of(cosine):
    return math.sqrt(2 - 2 * cosine)


def test_fars_that_the_pairs_resolve_are_measured_and_others_extrapolated():
    """Cosines of a normal distribution, as those of two random directions in many dimensions are."""
    rng = np.random.default_rng(1)
    curve = impostor_curve(histogram(np.sqrt(2 - 2 * rng.normal(0.02, 0.1, 3000))))
    assert list(curve["measured"]) == ["0.1", "0.01"] and curve["pairs"] == 3000
    points = {float(far): distance for far, distance in curve["measured"].items()}
    for far in CURVE_FARS:
        assert curve_distance(points, far) == pytest.approx(distance_of(0.02 + 0.1 * normal_quantile(far)), abs=0.04)
    assert len(impostor_curve(histogram(np.linspace(0.5, 2, 2 * 10 ** 6)))["measured"]) == 5
    assert impostor_curve(histogram(np.linspace(0.5, 1.5, 1999))) is None  # too few


def test_the_curve_passes_its_points_and_is_straight_over_the_normal_quantile_elsewhere():
    curve = {0.1: 1.3, 0.01: 1.2, 0.001: 1.05, 1e-4: 1.0}
    assert [curve_distance(curve, far) for far in curve] == pytest.approx([*curve.values()])
    line = {far: distance_of(0.01 + 0.09 * normal_quantile(far)) for far in CURVE_FARS[1:4]}
    for far in (0.3, 0.1, 0.03, 0.005, 2e-4, 1e-5, 1e-8):
        assert curve_distance(line, far) == pytest.approx(distance_of(0.01 + 0.09 * normal_quantile(far)))


# the repository's own

def test_the_published_weights_have_thresholds_too(published_weights):
    record = read(ROOT / "model_data" / "published_mobilefacenet.pth")
    assert record["weights_sha256"] == hash_file(published_weights) and record["pairs"] == 6000
    assert record["thresholds"]["best accuracy"] == pytest.approx(DEFAULT_THRESHOLD, abs=1e-4)
    assert [*record["impostors"]["measured"].values()] == [*DEFAULT_CURVE.values()]


def test_the_thresholds_in_the_repository_are_those_of_its_weights():
    weights = ROOT / "model_data" / "arcface_mobilefacenet.pth"
    record = read(weights)
    assert record["weights_sha256"] == hash_file(weights) and record["pairs"] == 6000 and not record["flip"]
    arcface = Arcface(model_path=weights, cuda=False)
    assert arcface.threshold == record["thresholds"]["best accuracy"] and arcface.thresholds.note is None
    values = [Thresholds(weights, name).for_pair().value for name in OPERATING_POINTS]
    assert values == [record["thresholds"][name] for name in OPERATING_POINTS.values()]
    assert record["thresholds"]["FAR 0.01"] > record["thresholds"]["FAR 0.001"] == min(values)
    assert arcface.pair_threshold.unsure == (record["thresholds"]["FAR 0.001"], record["thresholds"]["best accuracy"])
    curve = record["impostors"]["measured"]
    assert list(map(float, curve)) == [0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6] and record["impostors"]["pairs"] == 29640749
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
