"""eval_LFW.py as a user runs it: what it prints and writes, and how a mistake ends."""
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_user_error, is_png

from utils.evaluation.metrics import VerificationMetrics
from utils.training.validation import read_benchmarks


def assert_published_lines(printed, metrics):
    """The three lines of the published script are there, with the metrics of the JSON file."""
    number = r"(\d\.\d{5})"
    for pattern, names in ((rf"^Accuracy: {number}\+-{number}$", ("accuracy", "accuracy_std")),
                           (rf"^Best_thresholds: {number}$", ("threshold",)),
                           (rf"^Validation rate: {number}\+-{number} @ FAR={number}$", ("val", "val_std", "far"))):
        found = re.search(pattern, printed, re.MULTILINE)
        assert found and found.groups() == tuple(f"{metrics[name]:.5f}" for name in names), printed


def test_eval_prints_the_published_lines_and_writes_its_files(run_script, weights, tiny_lfw, tmp_path):
    result = run_script("eval_LFW.py", *weights, *tiny_lfw, "--device", "cpu", "--png-save-path", "out/roc.png",
                        "--json", "metrics.json", "--mistakes", "mistakes.png", "--num-workers", "1", "--far", 0.2)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics.keys() >= {*VerificationMetrics._fields, "aligned", "settings"}
    assert_published_lines(result.stdout, metrics)
    assert metrics["accuracy"] >= 0.75 and 0.8 < metrics["threshold"] < 1.5
    assert metrics["folds"] == len(metrics["fold_accuracies"]) == 2 and metrics["pairs"] == 12
    assert metrics["aligned"] is True and metrics["settings"]["lfw_dir"] == str(tmp_path / "lfw")
    assert "un-aligned" not in result.stdout
    assert is_png(tmp_path / "out" / "roc.png") and is_png(tmp_path / "mistakes.png")


def test_eval_says_that_250x250_images_are_not_aligned(call_script, weights, shared, pairs_path, tmp_path):
    folder = shared / "lfw_raw_folds1-3"
    result = call_script("eval_LFW.py", *weights, "--lfw-dir", folder, "--lfw-pairs", pairs_path, "--device", "cpu",
                         "--json", "metrics.json", "--far", 0.2)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"^{re.escape(str(folder))} .*un-aligned 250x250", result.stdout, re.MULTILINE)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert_published_lines(result.stdout, metrics)
    assert metrics["aligned"] is False and metrics["accuracy"] < 1
    assert is_png(tmp_path / "model_data" / "roc_test.png")


def test_train_says_that_250x250_images_are_not_aligned(shared, pairs_path, capsys):
    for folder, unaligned in ((shared / "lfw_raw_folds1-3", True), (shared / "lfw" / "images", False)):
        found, = read_benchmarks(SimpleNamespace(eval=None, lfw_dir=folder, lfw_pairs=pairs_path, lfw_eval=None))
        assert len(found.genuine) == 12 and ("un-aligned 250x250" in capsys.readouterr().out) == unaligned


def test_eval_without_weights_is_a_user_error(call_script):
    assert_user_error(call_script("eval_LFW.py", "--model-path", "model_data/gone.pth"), "eval_LFW.py",
                      "model_data/gone.pth")


def test_eval_finds_weights_and_pairs_beside_the_code(call_script):
    """Only the images are missing."""
    result = call_script("eval_LFW.py", "--device", "cpu")
    assert_user_error(result, "lfw")
    assert result.stdout.startswith(f"{ROOT / 'model_data' / 'arcface_mobilefacenet.pth'} (mobilefacenet)")


@pytest.mark.parametrize("arguments, words", [
    (["--backbone", "resnet7"], ["resnet7", "mobilefacenet"]),
    (["--device", "tpu"], ["tpu", "cpu"]), (["--device", "gpu7"], ["gpu7", "cpu"]), (["--device", "mps"], ["mps"]),
    (["--batch-size", "0"], ["--batch-size"]), (["--num-workers", "-1"], ["--num-workers"]),
    (["--far", "1.5"], ["--far"]), (["--far", "nan"], ["--far"]), (["--input-shape", "64", "64"], ["64", "112x112"]),
    (["--input-shape", "112"], ["--input-shape"]), (["--input-shape", "a", "b"], ["--input-shape"]),
    (["--lfw-dir", "gone"], ["gone", "--lfw-dir"]), (["--lfw-pairs", "gone.txt"], ["gone.txt", "--lfw-pairs"]),
    (["--json", "pairs.txt/x.json"], ["pairs.txt/x.json"]), (["--png-save-path", "lfw"], ["lfw"]),
    (["--mistakes", "."], ["."])])
def test_eval_with_a_wrong_setting_is_a_user_error(call_script, weights, tiny_lfw, arguments, words):
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw, *arguments), *words)


def test_eval_with_missing_images_names_one_and_counts_them(call_script, weights, tiny_lfw, tmp_path):
    lost = len(list((tmp_path / "lfw" / "Abel_Pacheco").iterdir()))
    shutil.rmtree(tmp_path / "lfw" / "Abel_Pacheco")
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw), f"lacks {lost} of", "Abel_Pacheco_0001.jpg")


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "truncated"])
def test_eval_with_an_undecodable_image_is_a_user_error(call_script, weights, tiny_lfw, tmp_path, content):
    path = tmp_path / "lfw" / "Abel_Pacheco" / "Abel_Pacheco_0004.jpg"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw, "--device", "cpu"), path)


def test_eval_with_weights_of_another_backbone_is_a_user_error_with_the_remedy(call_script, weights, tiny_lfw):
    assert_user_error(call_script("eval_LFW.py", *tiny_lfw, *weights, "--backbone", "iresnet18"),
                      weights[1], "does not match", "--backbone mobilefacenet")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_without_cuda_is_a_user_error(call_script, weights, tiny_lfw, tmp_path, device):
    for script, arguments in (("eval_LFW.py", [*weights, *tiny_lfw]), ("train.py", [])):
        assert_user_error(call_script(script, *arguments, "--device", device), device, "--device cpu")
