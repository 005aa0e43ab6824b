"""predict.py as a user runs it: what it prints and writes, and how a mistake ends."""
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_user_error, is_png, read_json
from PIL import Image

import predict
from arcface import Arcface
from utils.common.errors import UserError
from utils.drawing.contact_sheets import AMBER, GREEN, RED
from utils.evaluation.gallery import CACHE_NAME
from utils.evaluation.thresholds import DEFAULT_THRESHOLD, save_thresholds

THRESHOLDS = {"best accuracy": 1.167, "FAR 0.01": 1.1, "FAR 0.001": 1.05}
PAIR = ROOT / "img" / "1_001.jpg", ROOT / "img" / "1_002.jpg"  # of one person


def test_predict_prints_distance_similarity_and_verdict_and_saves(run_script, weights, same, tmp_path):
    result = run_script("predict.py", *same, *weights, "--device", "cpu", "--threshold", 1.24, "--save",
                        "out/comparison.png", timeout=60)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    distance = float(re.search(r"Distance: (\d\.\d{3})", result.stdout)[1])
    similarity = float(re.search(r"Similarity: (-?\d\.\d{3})", result.stdout)[1])
    assert 0.1 < distance < 1.24 and abs(similarity - (1 - distance ** 2 / 2)) < 2e-3
    assert "Verdict: same person (threshold 1.240 on the distance)" in result.stdout
    assert is_png(tmp_path / "out" / "comparison.png")


def test_predict_asks_again_after_an_invalid_path_until_an_empty_line(call_script, weights, same, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    answers = ["gone.jpg", f"  {same[0]} ", "text.jpg", same[1], same[0], same[0], ""]
    result = call_script("predict.py", *weights, "--device", "cpu", stdin=map(str, answers))
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert result.stdout.count("image_1 filename:") == 4 and result.stdout.count("image_2 filename:") == 3
    assert "gone.jpg is not a file" in result.stdout and "text.jpg does not decode" in result.stdout
    assert result.stdout.count("Distance: ") == result.stdout.count("Verdict: ") == 2
    assert "Distance: 0.000" in result.stdout


def test_predict_reads_quoted_escaped_and_home_paths(call_script, weights, same, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(same[0], tmp_path / "my face's.jpg")
    shutil.copy(same[1], tmp_path / "other.jpg")
    answers = [f'"{tmp_path}/my face\'s.jpg"', "'other.jpg' ", "~/my face's.jpg", f"{tmp_path}/my\\ face\\'s.jpg"]
    result = call_script("predict.py", *weights, "--device", "cpu", stdin=[*answers, ""])
    assert result.returncode == 0 and result.stdout.count("Distance: ") == 2, result.stdout
    assert result.stdout.count("Distance: 0.000") == 1
    assert "an empty line or Ctrl-C ends" in result.stdout


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_predict_ends_quietly_at_the_end_of_input_and_on_ctrl_c(call_script, weights, same, end):
    result = call_script("predict.py", *weights, "--device", "cpu", stdin=[str(same[0])] * 3 + [end])
    assert result.returncode == 0 and result.stderr == "" and result.stdout.count("Distance: ") == 1


def test_the_scripts_run_from_any_folder(call_script, same, tmp_path):
    """The weights and their threshold are beside the code, and the images in the caller's folder."""
    for number, path in enumerate(same):
        shutil.copy(path, tmp_path / f"{number}.jpg")
    result = call_script("predict.py", "0.jpg", "1.jpg", "--device", "cpu", "--no-show")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{ROOT / 'model_data' / 'arcface_mobilefacenet.pth'} (mobilefacenet)")
    assert "= best accuracy on LFW" in result.stdout


@pytest.mark.parametrize("arguments, words", [
    (["one.jpg"], ["two images"]), (["1.jpg", "2.jpg", "3.jpg"], ["two images"]), (["--sav", "x.png"], ["--sav"]),
    (["--batch-size", "0"], ["--batch-size"]), (["--threshold", "nan"], ["--threshold", "nan"]),
    (["--gallery", "people"], ["one image"]), (["a.jpg", "--gallery", "p", "--top", "0"], ["--top"]),
    (["a.jpg", "b.jpg", "--model-path", "gone.pth"], ["predict.py", "gone.pth"]), (["gone.jpg", "2.jpg"], ["gone.jpg"]),
    (["--face", "0"], ["--face"]), (["--face", "two"], ["--face"]), (["a.jpg", "--face", "1", "2", "3"], ["--face"]),
    (["a.jpg", "b.jpg", "--fps"], ["--fps", "no images"]), (["a.jpg", "--all-faces"], ["--gallery"]),
    (["a.jpg", "b.jpg", "--save", "x.txt"], ["x.txt", ".png"]),
    (["--backbone", "resnet7"], ["resnet7", "mobilefacenet"]), (["--export", "face.pth"], ["face.pth", ".onnx"])])
def test_predict_with_a_wrong_flag_is_a_user_error(call_script, weights, arguments, words):
    assert_user_error(call_script("predict.py", *weights, *arguments), *words)


def test_weights_of_another_backbone_are_a_user_error_with_the_remedy(call_script, weights, same):
    assert_user_error(call_script("predict.py", *same, *weights, "--backbone", "iresnet18"),
                      weights[1], "does not fit", "--backbone mobilefacenet")


def test_predict_fps_measures_with_the_bundled_weights(call_script):
    result = call_script("predict.py", "--fps", "--batch-size", 4)
    assert result.returncode == 0, result.stderr
    assert re.search(r"batch 1: [\d.]+ ms an image, [\d.]+ images/s", result.stdout)
    assert re.search(r"batch 4: [\d.]+ ms an image", result.stdout)


def test_predict_prints_versions_the_device_and_the_weights_hash(call_script, published_weights):
    printed = call_script("predict.py", "--version", "--model-path", published_weights, "--device", "cpu").stdout
    assert f"torch {torch.__version__.partition('+')[0]}" in printed and " on cpu" in printed
    assert printed.splitlines()[-1] == "SHA-256 4c08e11a0a2bbf299910210da647c7d8105c348f4c533868e1710dbcf7b22480"


# thresholds

def test_predict_names_the_threshold_that_eval_saved(call_script, shared, published_weights, tmp_path, capfd):
    """Evaluate two folds of 12 + 12 pairs, then compare two images."""
    lines = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:601]
    rows = [*lines[:12], *lines[300:312], *lines[12:24], *lines[312:324]]
    (tmp_path / "lfw_pair.txt").write_text("\n".join(["2 12", *rows, ""]), encoding="utf-8")
    weights = shutil.copyfile(published_weights, tmp_path / "weights.pth")
    (tmp_path / "weights.json").write_text('{"training": "kept"}', encoding="utf-8")
    result = call_script("eval_LFW.py", "--model-path", weights, "--lfw-dir", shared / "lfw" / "images", "--lfw-pairs",
                         "lfw_pair.txt", "--device", "cpu", "--num-workers", 1, "--far", 0.01, "--json", "metrics.json",
                         "--save-threshold", "--png-save-path", "roc.png")
    assert result.returncode == 0 and f"Thresholds: {tmp_path / 'weights.json'}" in result.stdout, result.stderr
    record, metrics = (read_json(tmp_path / name) for name in ("weights.json", "metrics.json"))
    assert record["thresholds"] == {"best accuracy": metrics["threshold"]}  # twelve impostor pairs resolve no FAR
    assert metrics["val"] is None and "val" not in record and record["impostors"]["measured"].keys() == {
        "0.1", "0.01"}  # of all pairs of two people, some 2,700
    assert record.keys() >= {"backbone", "weights_sha256", "input_shape", "letterbox_image", "flip", "accuracy",
                             "accuracy_std", "thresholds", "benchmark", "date", "training"}
    assert record["training"] == "kept" and record["benchmark"] == "LFW"

    arcface = Arcface(model_path=weights, cuda=False)
    predict.compare(arcface, *PAIR, SimpleNamespace(save=None, show=False))
    assert f"Verdict: same person (threshold {arcface.threshold:.3f} = best accuracy on LFW)" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"FAR 0\.01 was not measured: .*weights\.pth.*impostor pairs"):
        Arcface(model_path=weights, cuda=False, operating_point="far-0.01")


def test_predict_is_not_sure_of_two_images_and_of_a_gallery(published_weights, tmp_path, capsys):
    weights = shutil.copyfile(published_weights, tmp_path / "weights.pth")
    image, other = PAIR[0], ROOT / "img" / "2_001.jpg"
    distance = Arcface(model_path=weights, cuda=False).detect_image(image, other)
    save_thresholds(weights, {
        "thresholds": {"best accuracy": distance + 0.1, "FAR 0.001": distance - 0.1},
        "impostors": {"measured": {"0.1": distance + 0.1, "0.01": distance - 0.1}}})
    arcface = Arcface(model_path=weights, cuda=False)
    predict.compare(arcface, image, other, SimpleNamespace(save=tmp_path / "pair.png", show=False))
    assert (f"Verdict: not sure: below the threshold, but not below {distance - 0.1:.3f} (FAR 0.001) "
            f"(threshold {distance + 0.1:.3f} = best accuracy on LFW)") in capsys.readouterr().out
    (tmp_path / "people").mkdir()
    shutil.copyfile(other, tmp_path / "people" / "biden.jpg")
    predict.identify(arcface, image, SimpleNamespace(gallery=tmp_path / "people", top=3, show=False, all_faces=False,
                                                     save=tmp_path / "people.png"))
    assert (f"Verdict: not sure: the nearest is biden (threshold {distance - 0.1:.3f} for a gallery of 1: at "
            "most 1% of unknown identities are identified, by the impostor pairs of LFW)") in capsys.readouterr().out
    for name in ("pair.png", "people.png"):
        with Image.open(tmp_path / name) as drawing:
            found = {color for _, color in drawing.getcolors(drawing.width * drawing.height)}
        assert [tuple(bytes.fromhex(color[1:])) in found for color in (AMBER, GREEN, RED)] == [True, False, False]


def test_predict_reports_that_the_thresholds_are_of_other_weights(published_weights, call_script, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(torch.load(published_weights, weights_only=True), weights)  # with checksums, so that the file is valid
    path = save_thresholds(weights, {"thresholds": THRESHOLDS})
    path.write_text(json.dumps(read_json(path) | {"weights_sha256": "0" * 64}))
    result = call_script("predict.py", *PAIR, "--device", "cpu", "--model-path", weights, "--no-show")
    printed = result.stdout.splitlines()
    assert sum("SHA-256" in line and "weights.json" in line for line in printed) == 1
    assert printed[-1] == f"Verdict: same person (threshold {DEFAULT_THRESHOLD:.3f} by default, not measured for " \
                          "these weights)"


# galleries

def test_predict_prints_a_table_of_people_and_saves_a_strip(call_script, weights, tmp_path):
    people = tmp_path / "people"
    for name, number in (("王小明", 1), ("Ann; Bob", 2)):
        (people / name).mkdir(parents=True)
        shutil.copy(ROOT / "img" / f"{number}_001.jpg", people / name)
    (people / "bad.jpg").write_text("no image")
    for embedded in (2, 0):
        result = call_script("predict.py", PAIR[1], "--gallery", "people", "--top", 2, "--save", "strip.jpg", *weights,
                             "--device", "cpu", "--threshold", 1.167)
        assert result.returncode == 0 and result.stderr == "", result.stderr
        lines = result.stdout.splitlines()
        assert any(line.startswith("skipped: people/bad.jpg does not decode") for line in lines)
        assert f"people: 2 people, 2 images, {embedded} embedded now" in lines
    first, second = (line for line in lines if re.match(" +[12] ", line))
    assert "same person" in first and "王小明" in first and "different people" in second
    assert float(first.split()[1]) < 1.167 < float(second.split()[1])
    assert "Verdict: 王小明 (threshold 1.167 on the distance)" in lines
    with Image.open(tmp_path / "strip.jpg") as strip:
        assert strip.width > strip.height > 112 and strip.format == "JPEG"
    assert (people / CACHE_NAME).is_file()
