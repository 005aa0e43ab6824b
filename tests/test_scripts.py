"""The scripts as a user runs them: what they print and write, and how a mistake ends."""
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_user_error
from PIL import Image

from utils.data.dataset import EpochBatches
from utils.evaluation.metrics import Verification
from utils.training.benchmarks import read_benchmarks


@pytest.fixture(scope="session")
def lines(shared):
    """Twelve lines of the official list, all of its first fold: genuine, impostor, genuine, impostor, by threes."""
    first_fold = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:601]
    return first_fold[:3] + first_fold[300:303] + first_fold[3:6] + first_fold[303:306]


@pytest.fixture
def pairs_path(tmp_path, lines):
    """A list of 2 folds of 3 + 3 pairs."""
    return write_rows(tmp_path / "pairs.txt", ["2 3", *lines])


@pytest.fixture
def tiny_lfw(tmp_path, shared, lines, pairs_path):
    """That list, and a folder of just its pictures, made in tmp_path."""
    for line in lines:
        fields = line.split()
        first, second = fields[:2], [fields[-2] if len(fields) == 4 else fields[0], fields[-1]]
        for name, number in (first, second):
            (tmp_path / "lfw" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(shared / "lfw" / "images" / name / f"{name}_{int(number):04d}.jpg", tmp_path / "lfw" / name)
    return "--lfw-dir", tmp_path / "lfw", "--lfw-pairs", pairs_path


@pytest.fixture
def weights(published_weights):
    return "--model-path", published_weights


@pytest.fixture
def same(shared):
    folder = shared / "lfw" / "images" / "Abel_Pacheco"
    return folder / "Abel_Pacheco_0001.jpg", folder / "Abel_Pacheco_0004.jpg"


def draw_people(folder, people=2, pictures=4):
    """Pictures of noise and the annotation file that lists them. -> its lines."""
    folder.mkdir(exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for label in range(people):
        for number in range(pictures):
            path = folder / f"{label}_{number}.png"
            Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(path)
            rows.append(f"{label};{path}")
    return rows


def write_rows(path, rows):
    path.write_text("\n".join([*rows, ""]), encoding="utf-8")
    return path


def is_png(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 60


# predict.py

def test_predict_prints_distance_similarity_and_verdict_and_saves(run_script, weights, same, tmp_path):
    result = run_script("predict.py", *same, *weights, "--no-cuda", "--threshold", 1.24, "--save",
                        "out/comparison.png", timeout=60)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    distance = float(re.search(r"Distance: (\d\.\d{3})", result.stdout)[1])
    similarity = float(re.search(r"Similarity: (-?\d\.\d{3})", result.stdout)[1])
    assert 0.1 < distance < 1.24 and abs(similarity - (1 - distance ** 2 / 2)) < 2e-3
    assert "Verdict: same person (threshold 1.240 on the distance)" in result.stdout
    assert is_png(tmp_path / "out" / "comparison.png")


def test_predict_obeys_the_threshold(call_script, weights, same):
    result = call_script("predict.py", *same, *weights, "--no-cuda", "--threshold", "0.05")
    assert "Verdict: different people (threshold 0.050 on the distance)" in result.stdout


def test_predict_asks_again_after_a_bad_path_and_goes_on_until_an_empty_line(run_script, weights, same, tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    answers = ["gone.jpg", f"  {same[0]} ", "text.jpg", same[1], same[0], same[0], ""]
    result = run_script("predict.py", *weights, "--no-cuda", stdin="".join(f"{answer}\n" for answer in answers))
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert result.stdout.count("image_1 filename:") == 4 and result.stdout.count("image_2 filename:") == 3
    assert "gone.jpg does not exist" in result.stdout and "text.jpg does not decode" in result.stdout
    assert result.stdout.count("Distance: ") == result.stdout.count("Verdict: ") == 2
    assert "Distance: 0.000" in result.stdout


def test_predict_understands_paths_as_people_type_them(call_script, weights, same, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(same[0], tmp_path / "my face's.jpg")
    shutil.copy(same[1], tmp_path / "other.jpg")
    answers = [f'"{tmp_path}/my face\'s.jpg"', "'other.jpg'", "~/my face's.jpg", f"{tmp_path}/my\\ face\\'s.jpg",
               r".\other.jpg", "other.jpg "]
    result = call_script("predict.py", *weights, "--no-cuda", stdin=[*answers, ""])
    assert result.returncode == 0 and result.stdout.count("Distance: ") == 3, result.stdout
    assert result.stdout.count("Distance: 0.000") == 2
    assert "an empty line or Ctrl-C ends" in result.stdout


def test_output_to_a_pipe_does_not_die_of_a_letter_or_of_its_reader(weights, same, tmp_path):
    people = tmp_path / "people"
    people.mkdir()
    shutil.copy(same[1], people / "王.jpg")
    command = [sys.executable, ROOT / "predict.py", *weights, "--no-cuda", "--no-show", same[0], "--gallery", people]
    environment = os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert result.returncode == 0 and b"\\u738b" in result.stdout, result.stderr
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read() and process.wait(120) == 1
    process.stderr.close()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_predict_ends_quietly_at_the_end_of_input(call_script, weights, same, count):
    result = call_script("predict.py", *weights, "--no-cuda", stdin=[str(same[0])] * count)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.count("Distance: ") == count // 2


@pytest.mark.parametrize("stdin", [[], [1]])
def test_predict_ends_quietly_on_ctrl_c(call_script, weights, same, stdin):
    result = call_script("predict.py", *weights, "--no-cuda", stdin=[str(same[0]) for _ in stdin] + [KeyboardInterrupt])
    assert result.returncode in (0, 130) and result.stderr == ""


def test_predict_without_weights_is_a_user_error(call_script):
    for path in ("model_data/gone.pth", "gone.pth"):
        assert_user_error(call_script("predict.py", "a.jpg", "b.jpg", "--model-path", path), "predict.py", path)


def test_the_scripts_run_from_any_folder(run_script, same, tmp_path):
    """The bundled weights and their threshold are beside the code, the pictures where the caller is."""
    for number, path in enumerate(same):
        shutil.copy(path, tmp_path / f"{number}.jpg")
    result = run_script("predict.py", "0.jpg", "1.jpg", "--no-cuda", "--no-show")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{ROOT / 'model_data' / 'arcface_mobilefacenet.pth'} (mobilefacenet)")
    assert "= best accuracy on LFW" in result.stdout


@pytest.mark.parametrize("arguments, words", [
    (["one.jpg"], ["two pictures"]), (["1.jpg", "2.jpg", "3.jpg"], ["two pictures"]), (["--sav", "x.png"], ["--sav"]),
    (["--batch-size", "0"], ["--batch-size"]), (["--threshold", "near"], ["--threshold", "near"]),
    (["--backbone", "resnet7"], ["resnet7", "mobilefacenet"])])
def test_predict_with_a_wrong_flag_is_a_user_error(call_script, weights, arguments, words):
    assert_user_error(call_script("predict.py", *weights, *arguments), *words)


def test_predict_with_a_bad_picture_is_a_user_error(call_script, weights, same, tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "cut.jpg").write_bytes(same[0].read_bytes()[:2000])
    (tmp_path / "folder.jpg").mkdir()
    for bad in ("gone.jpg", "text.jpg", "cut.jpg", "folder.jpg"):
        for pair in ((same[0], bad), (bad, same[0])):
            assert_user_error(call_script("predict.py", *pair, *weights, "--no-cuda"), bad)


def test_predict_with_a_bad_save_path_is_a_user_error(call_script, weights, same, tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (".", "file/picture.png"):
        assert_user_error(call_script("predict.py", *same, *weights, "--no-cuda", "--save", path), path)
    assert (tmp_path / "file").read_text() == "kept" and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("script", ["predict.py", "eval_LFW.py"])
def test_weights_of_another_backbone_are_a_user_error_with_the_remedy(call_script, weights, tiny_lfw, same, script):
    arguments = same if script == "predict.py" else tiny_lfw
    assert_user_error(call_script(script, *arguments, *weights, "--backbone", "iresnet18"),
                      weights[1], "does not fit", "--backbone mobilefacenet")


def test_a_file_of_another_kind_as_weights_is_one_line_on_stderr(run_script, tmp_path):
    for name, content in (("pickle.pth", pickle.dumps({"a": 1}, protocol=4)), ("text.pth", b"a text\n")):
        (tmp_path / name).write_bytes(content)
        assert_user_error(run_script("predict.py", "a.jpg", "b.jpg", "--model-path", name), name)


# eval_LFW.py

def assert_published_lines(printed, figures):
    """The three lines of the published script are there, with the figures of the JSON file."""
    number = r"(\d\.\d{5})"
    for pattern, names in ((rf"^Accuracy: {number}\+-{number}$", ("accuracy", "accuracy_std")),
                           (rf"^Best_thresholds: {number}$", ("threshold",)),
                           (rf"^Validation rate: {number}\+-{number} @ FAR={number}$", ("val", "val_std", "far"))):
        found = re.search(pattern, printed, re.MULTILINE)
        assert found and found.groups() == tuple(f"{figures[name]:.5f}" for name in names), printed


def test_eval_prints_the_published_lines_and_writes_its_files(run_script, weights, tiny_lfw, tmp_path):
    result = run_script("eval_LFW.py", *weights, *tiny_lfw, "--device", "cpu", "--png-save-path", "out/roc.png",
                        "--json", "figures.json", "--mistakes", "mistakes.png", "--num-workers", "1", "--far", 0.2)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures.keys() >= {*Verification._fields, "aligned", "settings"}
    assert_published_lines(result.stdout, figures)
    assert figures["accuracy"] >= 0.75 and 0.8 < figures["threshold"] < 1.5
    assert figures["folds"] == len(figures["fold_accuracies"]) == 2 and figures["pairs"] == 12
    assert figures["aligned"] is True and figures["settings"]["lfw_dir"] == str(tmp_path / "lfw")
    assert "un-aligned" not in result.stdout
    assert is_png(tmp_path / "out" / "roc.png") and is_png(tmp_path / "mistakes.png")


def test_eval_says_that_250x250_pictures_are_not_aligned(call_script, weights, shared, pairs_path, tmp_path):
    folder = shared / "lfw_raw_folds1-3"
    result = call_script("eval_LFW.py", *weights, "--lfw-dir", folder, "--lfw-pairs", pairs_path, "--device", "cpu",
                         "--json", "figures.json", "--far", 0.2)
    assert result.returncode == 0, result.stderr
    assert re.search(rf"^{re.escape(str(folder))} .*un-aligned 250x250", result.stdout, re.MULTILINE)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert_published_lines(result.stdout, figures)
    assert figures["aligned"] is False and figures["accuracy"] < 1
    assert is_png(tmp_path / "model_data" / "roc_test.png")


def test_train_says_that_250x250_pictures_are_not_aligned(shared, pairs_path, capsys):
    for folder, unaligned in ((shared / "lfw_raw_folds1-3", True), (shared / "lfw" / "images", False)):
        found, = read_benchmarks(SimpleNamespace(eval=None, lfw_dir=folder, lfw_pairs=pairs_path, lfw_eval=None))
        assert len(found.genuine) == 12 and ("un-aligned 250x250" in capsys.readouterr().out) == unaligned


def test_eval_without_weights_is_a_user_error(call_script):
    assert_user_error(call_script("eval_LFW.py", "--model-path", "model_data/gone.pth"), "eval_LFW.py",
                      "model_data/gone.pth")


def test_eval_finds_weights_and_pairs_beside_the_code(call_script):
    """The pictures, which are the caller's and not there, are what ends it."""
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


@pytest.mark.parametrize("first_line, word", [
    ("", "line 1"), ("ten 300", "line 1"), ("10", "line 1"), ("2 4", "promises 16"), ("0 300", "pairs.txt"),
    ("-2 -3", "pairs")])
def test_eval_with_a_bad_first_line_is_a_user_error(call_script, weights, tiny_lfw, tmp_path, lines, first_line, word):
    write_rows(tmp_path / "pairs.txt", [first_line, *lines])
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw), word)


@pytest.mark.parametrize("line", ["Ann 1", "Ann 1 two", "Ann 1 Bob two", "Ann 1 Bob 2 3"])
def test_eval_with_a_bad_pair_is_told_the_line(call_script, weights, tiny_lfw, tmp_path, lines, line):
    write_rows(tmp_path / "pairs.txt", ["2 3", *lines[:4], line, *lines[5:]])
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw), "pairs.txt, line 6")


@pytest.mark.parametrize("rows", [["0 300"], ["10 0"], ["0 0"]])
def test_eval_with_no_pairs_is_a_user_error(call_script, weights, tiny_lfw, tmp_path, rows):
    write_rows(tmp_path / "pairs.txt", rows)
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw), "pairs.txt")


def test_eval_with_missing_pictures_names_one_and_counts_them(call_script, weights, tiny_lfw, tmp_path):
    lost = len(list((tmp_path / "lfw" / "Abel_Pacheco").iterdir()))
    shutil.rmtree(tmp_path / "lfw" / "Abel_Pacheco")
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw), f"lacks {lost} of", "Abel_Pacheco_0001.jpg")


@pytest.mark.parametrize("content", [b"", b"not a picture", None], ids=["empty", "text", "truncated"])
def test_eval_with_an_undecodable_picture_is_a_user_error(call_script, weights, tiny_lfw, tmp_path, content):
    path = tmp_path / "lfw" / "Abel_Pacheco" / "Abel_Pacheco_0004.jpg"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    assert_user_error(call_script("eval_LFW.py", *weights, *tiny_lfw, "--device", "cpu"), path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_without_cuda_is_a_user_error(call_script, weights, tiny_lfw, tmp_path, device):
    for script, arguments in (("eval_LFW.py", [*weights, *tiny_lfw]), ("train.py", [])):
        assert_user_error(call_script(script, *arguments, "--device", device), device, "--device cpu")


# train.py

@pytest.fixture
def annotation(tmp_path):
    return write_rows(tmp_path / "cls_train.txt", draw_people(tmp_path / "faces"))


def test_train_without_an_annotation_is_a_user_error(run_script, tmp_path):
    assert_user_error(run_script("train.py"), "train.py", "cls_train.txt", "txt_annotation.py")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments, words", [
    (["--backbone", "resnet7"], ["resnet7", "mobilefacenet"]),
    (["--device", "tpu"], ["tpu", "cpu"]), (["--device", "cpu", "--fp16"], ["--fp16", "--bf16"]),
    (["--fp16", "--bf16"], ["--fp16", "--bf16"]), (["--input-shape", "64", "64"], ["64", "112x112"]),
    (["--batch-size", "1"], ["--batch-size"]), (["--batch-size", "many"], ["--batch-size", "many"]),
    (["--epochs", "0"], ["--epochs"]), (["--init-epoch", "100"], ["--init-epoch"]),
    (["--val-split", "1"], ["--val-split"]), (["--optimizer-type", "lion"], ["lion", "sgd"]),
    (["--model-path", "gone.pth"], ["gone.pth"]), (["--pretrained"], ["mobilefacenet_backbone_weights.pth"]),
    (["--model-path", "cls_train.txt"], ["cls_train.txt"]), (["--init-lr", "nan"], ["--init-lr"]),
    (["--init-lr", "0"], ["--init-lr"]), (["--lr-decay-type", "step", "--min-lr-ratio", "0"], ["--min-lr-ratio"]),
    (["--distill-weight", "0.5"], ["--teacher"]), (["--teacher-backbone", "mobilenet"], ["--teacher"]),
    (["--lfw-eval", "--lfw-pairs", "gone.txt"], ["gone.txt", "--lfw-pairs"])])
def test_train_with_a_wrong_setting_is_a_user_error(call_script, annotation, tmp_path, arguments, words):
    assert_user_error(call_script("train.py", "--device", "cpu", *arguments), *words)
    assert not (tmp_path / "logs").exists()


def test_train_asked_for_an_absent_lfw_is_a_user_error(call_script, annotation, pairs_path):
    result = call_script("train.py", "--device", "cpu", "--lfw-eval", "--lfw-dir", "gone", "--lfw-pairs", pairs_path)
    assert_user_error(result, "gone", "--lfw-dir")


def test_train_from_weights_of_another_backbone_is_a_user_error(call_script, annotation, weights):
    assert_user_error(call_script("train.py", "--device", "cpu", *weights, "--backbone", "iresnet18"),
                      weights[1], "--backbone mobilefacenet")


@pytest.mark.parametrize("change, words", [
    (lambda rows: rows[:4], ["two people"]), (lambda rows: [], ["no picture", "txt_annotation.py"]),
    (lambda rows: [rows[0], rows[4]], ["two people", "two pictures"]),
    (lambda rows: [*rows[:2], "a line that is none", *rows[2:]], ["line 3", "txt_annotation.py"]),
    (lambda rows: [*rows, "one;/a.jpg"], ["line 9", "txt_annotation.py"]),
    (lambda rows: [*rows, "7;/a.jpg"], ["2 is not among them"])],
    ids=["one person", "empty", "one picture each", "bad line", "bad label", "gap"])
def test_train_with_a_bad_annotation_is_a_user_error(call_script, annotation, tmp_path, change, words):
    write_rows(annotation, change(annotation.read_text(encoding="utf-8").split("\n")[:-1]))
    assert_user_error(call_script("train.py", "--device", "cpu"), "cls_train.txt", *words)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_train_meeting_bad_pictures_lists_them_saves_and_goes_on_as_asked(run_script, annotation, tmp_path, workers):
    listed = annotation.read_text(encoding="utf-8")
    _, last_batch = EpochBatches(count=8, batch_size=4, seed=11)  # the first is also drawn as batch.png, by no worker
    bad = [Path(listed.splitlines()[number].partition(";")[2]) for number in last_batch[:2]]
    for path in bad:
        path.write_text("not a picture")
    refused = run_script("train.py", "--epochs", 1, "--no-lfw-eval", "--device", "cpu", "--batch-size", 4, "--seed", 11,
                         "--val-split", 0, "--num-workers", workers)
    run, = (tmp_path / "logs").iterdir()
    assert_user_error(refused, "train.py", "2 of 8 pictures do not open", bad[0], "bad_pictures.csv",
                      "--max-bad-pictures", "the state after step 1 is saved, go on with: python",
                      f"--resume logs/{run.name}")
    assert torch.load(run / "last.pt", weights_only=True)["step"] == 1
    assert annotation.read_text(encoding="utf-8") == listed
    resumed = run_script("train.py", "--resume", "--max-bad-pictures", 0.5)
    assert resumed.returncode == 0 and resumed.stderr == "", resumed.stderr
    rows = (run / "bad_pictures.csv").read_text(encoding="utf-8").splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == [str(path) for path in bad]


def test_train_without_its_pictures_names_the_line_and_leaves_no_run_behind(call_script, annotation, tmp_path):
    (tmp_path / "faces").rename(tmp_path / "elsewhere")
    annotation.write_text("\n" + annotation.read_text())
    result = call_script("train.py", "--no-lfw-eval", "--device", "cpu", "--num-workers", 0)
    assert_user_error(result, "cls_train.txt, line 2", tmp_path / "faces" / "0_0.png", "--datasets-path")
    assert not (tmp_path / "logs").exists()


def test_train_that_cannot_write_is_a_user_error(run_script, annotation, tmp_path):
    (tmp_path / "a file").write_text("kept")
    result = run_script("train.py", "--no-lfw-eval", "--device", "cpu", "--num-workers", 0, "--save-dir", "a file")
    assert_user_error(result, "a file")
    assert (tmp_path / "a file").read_text() == "kept"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux, to have fewer cores than workers")
def test_train_with_fewer_cores_than_workers_keeps_to_one_line_on_stderr(run_script, annotation, tmp_path):
    (tmp_path / "faces" / "1_2.png").write_text("not a picture")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        result = run_script("train.py", "--epochs", 1, "--no-lfw-eval", "--device", "cpu", "--batch-size", 8,
                            "--max-bad-pictures", 0)
    finally:
        os.sched_setaffinity(0, cores)
    assert_user_error(result, "1_2.png")


# all

@pytest.mark.parametrize("script", ["predict.py", "eval_LFW.py", "train.py", "txt_annotation.py"])
def test_help_explains_every_flag_and_an_unknown_one_points_to_it(call_script, script):
    result = call_script(script, "--help")
    assert result.returncode == 0 and result.stderr == ""
    flags = re.findall(r"^  (--[\w-]+)", result.stdout, re.MULTILINE)
    assert len(flags) >= 2
    for described in re.split(r"\n  (?=-)", result.stdout)[1:]:
        assert described.startswith("-h") or "(default: " in " ".join(described.split()), described
    assert_user_error(call_script(script, "--no-such-flag"), "--no-such-flag", "--help")


def test_predict_fps_measures_with_the_bundled_weights(run_script):
    result = run_script("predict.py", "--fps", "--batch-size", 4, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert re.search(r"batch 1: [\d.]+ ms a picture, [\d.]+ images/s", result.stdout)
    assert re.search(r"batch 4: [\d.]+ ms a picture", result.stdout)


def test_the_readme_command_tells_the_sample_people_apart(run_script):
    same = run_script("predict.py", "img/1_001.jpg", "img/1_002.jpg", cwd=ROOT)
    different = run_script("predict.py", "img/1_001.jpg", "img/2_001.jpg", cwd=ROOT)
    assert "Verdict: same person" in same.stdout, same.stderr
    assert "Verdict: different people" in different.stdout, different.stderr
