"""eval_LFW.py as a user runs it: what it prints and writes, and how a mistake ends."""
import re
import shutil
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
from conftest import ROOT, assert_user_error, is_png, read_json, write_rows
from PIL import Image

from utils.common.files import hash_file
from utils.evaluation.metrics import VerificationMetrics
from utils.evaluation.pairs import embed_pairs, pair_metrics, read_pairs
from utils.training.validation import read_benchmarks


def test_eval_prints_the_published_lines_and_writes_its_files(run_script, weights, tiny_lfw, face_model, tmp_path):
    result = run_script("eval_LFW.py", *weights, *tiny_lfw, "--device", "cpu", "--png-save-path", "out/roc.png",
                        "--json", "metrics.json", "--mistakes", "mistakes.png", "--num-workers", "1", "--far", 0.4)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics.keys() >= {*VerificationMetrics._fields, "aligned", "settings"}
    number = r"(\d\.\d{5})"
    for pattern, names in ((rf"^Accuracy: {number}\+-{number}$", ("accuracy", "accuracy_std")),
                           (rf"^Best_thresholds: {number}$", ("threshold",)),
                           (rf"^Validation rate: {number}\+-{number} @ FAR={number}$", ("val", "val_std", "far"))):
        found = re.search(pattern, result.stdout, re.MULTILINE)
        assert found and found.groups() == tuple(f"{metrics[name]:.5f}" for name in names), result.stdout
    assert metrics["accuracy"] >= 0.75 and 0.8 < metrics["threshold"] < 1.5
    assert metrics["folds"] == len(metrics["fold_accuracies"]) == 2 and metrics["pairs"] == 12
    assert metrics["settings"]["weights_sha256"] == hash_file(weights[1])
    assert metrics["aligned"] is True and metrics["settings"]["lfw_dir"] == str(tmp_path / "lfw")
    assert "not aligned" not in result.stdout
    assert is_png(tmp_path / "out" / "roc.png") and is_png(tmp_path / "mistakes.png")


def test_eval_prints_that_images_are_not_aligned(call_script, weights, shared, pairs_path, face_model, tmp_path):
    result = call_script("eval_LFW.py", *weights, "--lfw-dir", shared / "lfw_raw_folds1-3", "--lfw-pairs", pairs_path,
                         "--device", "cpu", "--json", "metrics.json", "--far", 0.2)
    assert result.returncode == 0 and "LFW: the images are not aligned" in result.stdout, result.stderr
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["aligned"] is False and is_png(tmp_path / "model_data" / "roc_test.png")


def test_train_prints_that_images_are_not_aligned(shared, pairs_path, face_model, capsys):
    for folder, unaligned in ((shared / "lfw_raw_folds1-3", True), (shared / "lfw" / "images", False)):
        read_benchmarks(SimpleNamespace(eval=None, lfw_dir=folder, lfw_pairs=pairs_path, lfw_eval=None), [])
        assert ("LFW: the images are not aligned" in capsys.readouterr().out) == unaligned


def test_without_a_detector_it_is_unknown_whether_images_are_aligned(call_script, weights, tiny_lfw, tmp_path,
                                                                     monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = call_script("eval_LFW.py", *weights, *tiny_lfw, "--device", "cpu", "--json", "metrics.json")
    assert result.returncode == 0 and "the alignment is not checked" in result.stdout, result.stderr
    assert read_json(tmp_path / "metrics.json")["aligned"] is None


@pytest.mark.parametrize("flags, options", [
    (["--flip"], {"flip": True}), (["--bf16"], {"bf16": True}), (["--no-letterbox-image"], {"letterbox": False})])
def test_eval_embeds_as_its_flags_say(call_script, arcface, weights, tiny_lfw, pairs_path, tmp_path, flags, options):
    """The images are not square here, so the letterbox changes them."""
    for path in (tmp_path / "lfw").glob("*/*"):
        Image.open(path).crop((0, 0, 112, 90)).save(path)
    result = call_script("eval_LFW.py", *weights, *tiny_lfw, "--device", "cpu", "--json", "metrics.json", *flags)
    assert result.returncode == 0, result.stderr
    threshold = read_json(tmp_path / "metrics.json")["threshold"]
    pairs = read_pairs(pairs_path, tmp_path / "lfw")
    thresholds = [pair_metrics(embed_pairs(arcface.net, pairs, **given), pairs)[0].threshold for given in (options, {})]
    assert threshold == pytest.approx(thresholds[0], abs=1e-5) and abs(threshold - thresholds[1]) > 1e-4


def test_eval_measures_own_pairs(call_script, weights, tiny_lfw, tmp_path):
    people = sorted(folder for folder in (tmp_path / "lfw").iterdir() if len(list(folder.iterdir())) > 1)
    images = [[path.relative_to(tmp_path / "lfw") for path in sorted(folder.iterdir())[:2]] for folder in people]
    rows = [f"{first} {second} 1" for first, second in images]
    rows += [f"{own[0]} {other[0]} 0" for own, other in pairwise(images)] * 1000
    write_rows(tmp_path / "own.txt", rows)
    copy = shutil.copy(weights[1], tmp_path / "copy.pth")
    result = call_script("eval_LFW.py", "--model-path", copy, "--lfw-dir", "lfw", "--lfw-pairs", "own.txt", "--device",
                         "cpu", "--save-threshold")
    assert result.returncode == 0 and f"own: {len(rows)} pairs in 2 folds" in result.stdout, result.stderr
    assert re.search(r"^Accuracy: [01]\.\d{5}", result.stdout, re.MULTILINE)
    record = read_json(tmp_path / "copy.json")
    assert record["benchmark"] == "own" and record["impostors"]["pairs"] == len(rows) - len(images)


def test_eval_finds_weights_and_pairs_beside_the_code(call_script):
    """Only the images are missing."""
    result = call_script("eval_LFW.py", "--device", "cpu")
    assert_user_error(result, "lacks 7701 of the 7701 images")
    assert result.stdout.startswith(f"{ROOT / 'model_data' / 'arcface_mobilefacenet.pth'} (mobilefacenet)")


@pytest.mark.parametrize("arguments, words", [
    (["--backbone", "resnet7"], ["resnet7", "mobilefacenet"]),
    (["--model-path", "gone.pth"], ["eval_LFW.py", "gone.pth"]), (["--device", "tpu"], ["tpu", "cpu"]),
    (["--batch-size", "0"], ["--batch-size"]), (["--num-workers", "-1"], ["--num-workers"]),
    (["--far", "nan"], ["--far"]), (["--input-shape", "64", "64"], ["64", "112x112"]),
    (["--lfw-dir", "gone"], ["gone", "--lfw-dir"]), (["--lfw-pairs", "gone.txt"], ["gone.txt", "--lfw-pairs"]),
    (["--json", "lfw_pair.txt/x.json"], ["lfw_pair.txt/x.json"]), (["--png-save-path", "lfw"], ["lfw"]),
    (["--mistakes", "m.gif"], ["m.gif", ".png"]), (["--bin", "x", "--download"], ["not allowed with"])])
def test_eval_with_a_wrong_setting_is_a_user_error(call_script, weights, tiny_lfw, arguments, words):
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw, *arguments), *words)
