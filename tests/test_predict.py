"""predict.py as a user runs it: what it prints and writes, and how a mistake ends."""
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, assert_user_error, is_png


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


def test_weights_of_another_backbone_are_a_user_error_with_the_remedy(call_script, weights, same):
    assert_user_error(call_script("predict.py", *same, *weights, "--backbone", "iresnet18"),
                      weights[1], "does not fit", "--backbone mobilefacenet")


def test_a_file_of_another_kind_as_weights_is_one_line_on_stderr(run_script, tmp_path):
    for name, content in (("pickle.pth", pickle.dumps({"a": 1}, protocol=4)), ("text.pth", b"a text\n")):
        (tmp_path / name).write_bytes(content)
        assert_user_error(run_script("predict.py", "a.jpg", "b.jpg", "--model-path", name), name)


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
