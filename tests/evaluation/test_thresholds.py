"""The thresholds beside the weights: measured, kept, and named by the verdict."""
import json
import re
import shutil
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import predict
from arcface import Arcface, Candidate, Match
from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.drawing.contact_sheets import AMBER, GREEN, RED
from utils.evaluation.metrics import best_threshold, threshold_at_far
from utils.evaluation.thresholds import (
    DEFAULT_THRESHOLD,
    OPERATING_POINTS,
    choose_gallery_threshold,
    choose_threshold,
    judge,
    measure_thresholds,
    save_thresholds,
)

THRESHOLDS = {"best accuracy": 1.167, "FAR 0.01": 1.1, "FAR 0.001": 1.05}


@pytest.fixture
def weights(tmp_path):
    """A file that stands for weights; its content does not matter to the thresholds."""
    (tmp_path / "ep001-loss1.5.pth").write_bytes(b"weights")
    return tmp_path / "ep001-loss1.5.pth"


def read(weights):
    return json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))


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


def test_saving_names_the_weights_and_keeps_other_keys(weights):
    write(weights, json.dumps({"training": {"epochs": 5, "people": "王小明"}, "accuracy": 0.1}))
    path = save_thresholds(weights, {"accuracy": 0.9, "thresholds": THRESHOLDS})
    assert path == weights.with_suffix(".json")
    found = read(weights)
    assert found["training"] == {"epochs": 5, "people": "王小明"} and found["accuracy"] == 0.9
    assert found["thresholds"] == THRESHOLDS and found["weights_sha256"] == hash_file(weights)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


@pytest.mark.parametrize("text", ["[1, 2]", "not JSON", "", "{"])
def test_saving_over_a_file_of_another_kind_is_a_user_error_and_leaves_it(weights, text):
    write(weights, text)
    with pytest.raises(UserError, match=re.escape(weights.with_suffix(".json").name)):
        save_thresholds(weights, {"thresholds": THRESHOLDS})
    assert weights.with_suffix(".json").read_text() == text


# choosing

@pytest.mark.parametrize("name, expected", [("best-accuracy", 1.167), ("far-0.01", 1.1), ("far-0.001", 1.05)])
def test_the_measured_threshold_counts_and_says_its_operating_point(weights, name, expected):
    save_thresholds(weights, {"thresholds": THRESHOLDS, "benchmark": "LFW"})
    assert choose_threshold(weights, name) == (expected, f"= {OPERATING_POINTS[name]} on LFW", None, None)


def test_a_given_threshold_wins(weights):
    save_thresholds(weights, {"thresholds": THRESHOLDS})
    assert choose_threshold(weights, "far-0.01", given=0.5) == (0.5, "on the distance", None, None)


@pytest.mark.parametrize("text", [None, "{}", '{"training": {"epochs": 5}}'])
def test_without_a_measurement_there_is_a_default_that_says_so(weights, text):
    if text is not None:
        write(weights, text)
    found = choose_threshold(weights)
    assert found.value == DEFAULT_THRESHOLD and "not measured" in found.meaning and found.note is None


@pytest.mark.parametrize("spoil, word", [
    (lambda weights: weights.write_bytes(b"other weights"), "SHA-256"),
    (lambda weights: write(weights, json.dumps(read(weights) | {"flip": True})), "--flip"),
    (lambda weights: write(weights, json.dumps(read(weights) | {"aligned": False})), "not aligned"),
    (lambda weights: write(weights, json.dumps(read(weights) | {"thresholds": [1]})), "numbers"),
    (lambda weights: write(weights, json.dumps(read(weights) | {"thresholds": {"best accuracy": "1"}})), "numbers"),
    (lambda weights: write(weights, json.dumps(read(weights) | {"thresholds": {"best accuracy": np.nan}})), "numbers"),
    (lambda weights: write(weights, json.dumps(read(weights) | {"impostors": {"measured": {"0.1": 1.1}}})), "numbers"),
    (lambda weights: write(weights, json.dumps(read(weights) | {"impostors": {
        "measured": {"0.1": 1.1, "0.01": 1.2}}})), "numbers"),
    (lambda weights: write(weights, json.dumps(read(weights) | {"impostors": [1.1, 1.0]})), "numbers"),
    (lambda weights: write(weights, "{"), "JSON"), (lambda weights: write(weights, "3"), "JSON"),
    (lambda weights: weights.with_suffix(".json").write_bytes(b"\xff\xfe\x00"), "JSON"),
    (lambda weights: write(weights, "[" * 100000), "JSON")],
    ids=["other weights", "flip", "un-aligned", "list", "text", "nan", "one impostor", "rising", "list of impostors",
         "cut", "number", "bytes", "deep"])
def test_thresholds_of_no_use_are_not_used_and_one_line_says_why(weights, spoil, word):
    save_thresholds(weights, {"thresholds": THRESHOLDS, "flip": False})
    spoil(weights)
    found = choose_threshold(weights)
    assert found.value == DEFAULT_THRESHOLD and "not measured" in found.meaning
    assert word in found.note and weights.with_suffix(".json").name in found.note and "\n" not in found.note
    with pytest.raises(UserError, match="--save-threshold"):
        choose_threshold(weights, "far-0.01")


def test_an_operating_point_that_was_not_measured_is_a_user_error_with_the_remedy(weights):
    with pytest.raises(UserError, match=r"FAR 0\.001.*--save-threshold"):
        choose_threshold(weights, "far-0.001")
    with pytest.raises(UserError, match=r"far-7.*best-accuracy, far-0\.01, far-0\.001"):
        choose_threshold(weights, "far-7")


# not sure

@pytest.mark.parametrize("distance, verdict", [(1.04, "same"), (1.05, "not sure"), (1.16, "not sure"),
                                               (1.167, "different")])
def test_between_far_0_001_and_best_accuracy_the_verdict_is_not_sure(weights, distance, verdict):
    save_thresholds(weights, {"thresholds": THRESHOLDS})
    found = choose_threshold(weights)
    assert found.unsure == (1.05, 1.167)
    match = Match(distance, 1 - distance ** 2 / 2, found.value, distance < found.value, found.unsure)
    assert match.verdict == verdict and match.same is (verdict != "different")
    assert Candidate("Ann", *match[:4], Path("a.jpg"), match.unsure).verdict == verdict


def test_a_threshold_that_was_asked_for_or_stands_alone_has_nothing_in_between(weights):
    assert choose_threshold(weights).unsure is None  # the default
    save_thresholds(weights, {"thresholds": {"best accuracy": 1.1}})
    assert choose_threshold(weights).unsure is None
    save_thresholds(weights, {"thresholds": {"best accuracy": 1.1, "FAR 0.001": 1.2}})  # of few pairs
    assert choose_threshold(weights).unsure is None
    for asked in ({"given": 1.1}, {"operating_point": "best-accuracy"}, {"operating_point": "far-0.001"}):
        found = choose_threshold(weights, **asked)
        assert found.unsure is None and judge(found.value - 1e-9, *found[::3]) == "same"


# a gallery's threshold

CURVE = {"pairs": 10 ** 6, "measured": {"0.1": 1.3, "0.01": 1.2, "0.001": 1.1, "0.0001": 1.0, "1e-05": 0.9},
         "extrapolated": {"1e-06": 0.8}}


def test_a_gallery_takes_the_distance_of_impostors_at_the_share_for_each_of_its_pictures(weights):
    save_thresholds(weights, {"thresholds": THRESHOLDS, "benchmark": "LFW", "impostors": CURVE})
    found = choose_gallery_threshold(weights, 20, 100)
    assert found.value == pytest.approx(1.0) and found.unsure == (found.value, pytest.approx(1.1))
    assert found.meaning == ("for 20 people, 100 pictures, so that at most 1% of strangers are named, by the impostor "
                             "pairs of LFW")
    strict = choose_gallery_threshold(weights, 1, 100, operating_point="far-0.001")
    assert strict.value == pytest.approx(0.9) and strict.unsure is None and "0.1% of strangers" in strict.meaning
    assert "extrapolated" not in strict.meaning and "1 person, 100" in strict.meaning
    assert choose_gallery_threshold(weights, 9, 1000, operating_point="far-0.001").value == pytest.approx(0.8)
    assert choose_gallery_threshold(weights, 9, 1000, operating_point="far-0.001").meaning.endswith("extrapolated")
    values = [choose_gallery_threshold(weights, 9, pictures).value for pictures in (1, 9, 10, 10 ** 4, 10 ** 6)]
    assert values == sorted(values, reverse=True) and values[-1] > 0


def test_the_lower_one_of_the_distances_by_the_weights_and_by_its_own_people_counts(weights):
    save_thresholds(weights, {"thresholds": THRESHOLDS, "impostors": CURVE})
    by_weights = choose_gallery_threshold(weights, 20, 100)
    like = choose_gallery_threshold(weights, 20, 100, (0.15, 0.1))
    for far, distance in ((1e-4, like.value), (1e-3, like.unsure[1])):
        assert distance == pytest.approx(np.sqrt(2 - 2 * (0.1 - 0.15 * NormalDist().inv_cdf(far))))
    assert like.value < by_weights.value and like.meaning.endswith("by its own people, who are more alike")
    assert choose_gallery_threshold(weights, 20, 100, (0.05, 0.1)) == by_weights  # less alike than those of LFW


def test_a_gallery_without_a_measurement_says_so_and_a_given_threshold_wins(weights):
    found = choose_gallery_threshold(weights, 10, 100)
    assert found.value == pytest.approx(0.9822) and "not measured" in found.meaning and found.note is None
    assert choose_gallery_threshold(weights, 10, 100, given=1) == (1.0, "on the distance", None, None)
    with pytest.raises(UserError, match=r"best-accuracy .*strangers.*far-0\.01"):
        choose_gallery_threshold(weights, 10, 100, operating_point="best-accuracy")
    save_thresholds(weights, {"thresholds": THRESHOLDS, "impostors": CURVE})
    weights.write_bytes(b"other weights")
    assert "SHA-256" in choose_gallery_threshold(weights, 10, 100).note


# the scripts

def test_the_thresholds_in_the_repository_are_those_of_its_weights():
    weights = ROOT / "model_data" / "arcface_mobilefacenet.pth"
    record = read(weights)
    assert record["weights_sha256"] == hash_file(weights) and record["pairs"] == 6000 and not record["flip"]
    arcface = Arcface(model_path=weights, cuda=False)
    assert arcface.threshold == record["thresholds"]["best accuracy"] and arcface.threshold_note is None
    values = [Arcface(model_path=weights, cuda=False, operating_point=name).threshold for name in OPERATING_POINTS]
    assert values == [record["thresholds"][name] for name in OPERATING_POINTS.values()]
    assert record["thresholds"]["FAR 0.01"] > record["thresholds"]["FAR 0.001"] == min(values)
    match = arcface.verify(ROOT / "img" / "1_001.jpg", ROOT / "img" / "1_002.jpg")
    assert match.threshold == arcface.threshold and match.same and match.verdict == "same"
    assert match.unsure == (record["thresholds"]["FAR 0.001"], record["thresholds"]["best accuracy"])
    curve = record["impostors"]["measured"]
    assert list(map(float, curve)) == [0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6] and record["impostors"]["pairs"] == 29640749
    assert list(curve.values()) == sorted(curve.values(), reverse=True)


def test_what_eval_saves_predict_names(run_script, shared, published_weights, tmp_path, capsys):
    """Two folds of ten and ten pairs; then the verdict on two of the pictures."""
    lines = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:601]
    rows = [*lines[:10], *lines[300:310], *lines[10:20], *lines[310:320]]
    (tmp_path / "pairs.txt").write_text("\n".join(["2 10", *rows, ""]), encoding="utf-8")
    weights = shutil.copyfile(published_weights, tmp_path / "weights.pth")
    (tmp_path / "weights.json").write_text('{"training": "kept"}', encoding="utf-8")
    result = run_script("eval_LFW.py", "--model-path", weights, "--lfw-dir", shared / "lfw" / "images", "--lfw-pairs",
                        "pairs.txt", "--device", "cpu", "--num-workers", 1, "--far", 0.01, "--json", "figures.json",
                        "--save-threshold", "--png-save-path", "roc.png")
    assert result.returncode == 0 and f"Thresholds: {tmp_path / 'weights.json'}" in result.stdout, result.stderr
    record, figures = read(weights), json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert record["thresholds"]["best accuracy"] == figures["threshold"]
    assert list(record["thresholds"]) == ["best accuracy"]  # ten impostor pairs in the other fold resolve no FAR
    assert figures["val"] is None and "val" not in record and record["impostors"]["measured"].keys() == {
        "0.1", "0.01", "0.001"}  # all pairs of two people, some 1,900
    assert record.keys() >= {"backbone", "weights_sha256", "input_shape", "letterbox_image", "flip", "accuracy",
                             "accuracy_std", "thresholds", "benchmark", "date", "training"}
    assert record["training"] == "kept" and record["benchmark"] == "LFW"

    pair = [ROOT / "img" / "1_001.jpg", ROOT / "img" / "1_002.jpg"]
    arcface = Arcface(model_path=weights, cuda=False)
    predict.compare(arcface, *pair, SimpleNamespace(save=None, show=False))
    assert f"Verdict: same person (threshold {arcface.threshold:.3f} = best accuracy on LFW)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"FAR 0\.01 was not measured .*weights\.pth.*impostor pairs"):
        Arcface(model_path=weights, cuda=False, operating_point="far-0.01")


def test_predict_says_that_it_is_not_sure_of_two_pictures_and_of_a_gallery(published_weights, tmp_path, capsys):
    weights = shutil.copyfile(published_weights, tmp_path / "weights.pth")
    image, other = (ROOT / "img" / f"{number}_001.jpg" for number in (1, 2))
    distance = Arcface(model_path=weights, cuda=False).detect_image(image, other)
    save_thresholds(weights, {
        "thresholds": {"best accuracy": distance + 0.1, "FAR 0.001": distance - 0.1},
        "impostors": {"measured": {"0.1": distance + 0.1, "0.01": distance - 0.1}}})
    arcface = Arcface(model_path=weights, cuda=False)
    predict.compare(arcface, image, other, SimpleNamespace(save=tmp_path / "pair.png", show=False))
    assert (f"Verdict: not sure: one person by this threshold, not below {distance - 0.1:.3f} = FAR 0.001 "
            f"(threshold {distance + 0.1:.3f} = best accuracy on LFW)") in capsys.readouterr().out
    (tmp_path / "people").mkdir()
    shutil.copyfile(other, tmp_path / "people" / "biden.jpg")
    predict.identify(arcface, image, SimpleNamespace(gallery=tmp_path / "people", top=3, show=False,
                                                     save=tmp_path / "people.png"))
    assert (f"Verdict: not sure: perhaps biden (threshold {distance - 0.1:.3f} for 1 person, 1 picture, so that at "
            "most 1% of strangers are named, by the impostor pairs of LFW)") in capsys.readouterr().out
    for name in ("pair.png", "people.png"):
        with Image.open(tmp_path / name) as picture:
            found = {colour for _, colour in picture.getcolors(picture.width * picture.height)}
        assert [tuple(bytes.fromhex(colour[1:])) in found for colour in (AMBER, GREEN, RED)] == [True, False, False]


def test_predict_says_why_it_does_not_use_the_thresholds_of_other_weights(published_weights, call_script, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(torch.load(published_weights, weights_only=True), weights)  # with checksums: it is whole
    save_thresholds(weights, {"thresholds": THRESHOLDS})
    write(weights, json.dumps(read(weights) | {"weights_sha256": "0" * 64}))
    printed = call_script("predict.py", *(ROOT / "img" / f"1_00{n}.jpg" for n in (1, 2)), "--no-cuda",
                          "--model-path", weights, "--no-show").stdout.splitlines()
    assert sum("SHA-256" in line and "weights.json" in line for line in printed) == 1
    assert printed[-1] == f"Verdict: same person (threshold {DEFAULT_THRESHOLD:.3f} by default, not measured for " \
                          "these weights)"
