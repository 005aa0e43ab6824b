"""The original images of LFW: fetched by scikit-learn or from a folder, and aligned into --lfw-dir."""
import tarfile

import numpy as np
import pytest
from conftest import assert_user_error, read_json, write_rows
from PIL import Image

from utils.common.errors import UserError
from utils.evaluation.pairs import align_lfw, fetch_lfw, read_pairs
from utils.faces.alignment import TEMPLATE


@pytest.fixture
def few_pairs(shared, tmp_path):
    """2 folds of 5 + 5 pairs: the ends of the first two folds' genuine and impostor lists."""
    lines = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:]
    chosen = [line for start in (0, 300, 600, 900) for line in lines[start:start + 5]]
    return write_rows(tmp_path / "lfw_pair.txt", ["2 5", *chosen])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """scikit-learn's folder, with a network that refuses every connection."""
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "scikit 小 data"))
    for name in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps the proxies of the first request
    folder = tmp_path / "scikit 小 data" / "lfw_home"
    folder.mkdir(parents=True)
    return folder


class Blind:
    """A detector that finds no face."""

    def detect(self, image):
        return []


def test_without_a_face_an_image_is_cropped_at_the_usual_place_and_crops_are_kept(tmp_path):
    path, crop_path = tmp_path / "raw" / "Ann" / "Ann_0001.jpg", tmp_path / "lfw" / "Ann" / "Ann_0001.jpg"
    path.parent.mkdir(parents=True)
    image = Image.new("RGB", (250, 250))
    image.paste("white", (103, 111, 107, 114))  # an eye
    image.save(path)

    def align_again():
        return align_lfw([path], tmp_path / "raw", tmp_path / "lfw", Blind())
    assert align_again() == {"without a face": 1}
    crop = np.asarray(Image.open(crop_path))
    row, column = np.unravel_index(crop[..., 0].argmax(), (112, 112))
    assert abs(column - TEMPLATE[0, 0]) < 3 and abs(row - TEMPLATE[0, 1]) < 3
    written = crop_path.stat().st_mtime_ns
    assert align_again() == {"kept": 1} and crop_path.stat().st_mtime_ns == written


def test_the_paths_of_an_own_list_are_kept(tmp_path):
    paths = [tmp_path / "raw" / name for name in ("a.png", "x/y/1.jpg", "z/y/1.jpg")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (250, 250)).save(path)
    align_lfw(paths, tmp_path / "raw", tmp_path / "new", Blind())
    assert all((tmp_path / "new" / path.relative_to(tmp_path / "raw")).is_file() for path in paths)
    for outside in (tmp_path / "a.png", tmp_path / "raw" / ".." / "a.png"):
        with pytest.raises(UserError, match=r"a\.png is not below .*raw"):
            align_lfw([outside], tmp_path / "raw", tmp_path / "new", Blind())


@pytest.mark.parametrize("flags, words", [
    (["--align-from", "raw", "--lfw-dir", "raw"], ["--align-from", "another --lfw-dir"]),
    (["--flip", "--save-threshold", "--lfw-dir", "none"], ["--save-threshold", "--flip"]),
    (["--input-shape", 100, 100, "--save-threshold"], ["--save-threshold", "--input-shape"])])
def test_flags_that_would_leave_wrong_images_or_thresholds_are_user_errors(call_script, shared, few_pairs, face_model,
                                                                           flags, words):
    lfw = [] if "--lfw-dir" in flags else ["--lfw-dir", shared / "lfw" / "images"]
    assert_user_error(call_script("eval_LFW.py", *lfw, "--lfw-pairs", few_pairs, "--device", "cpu", *flags), *words)


def test_eval_aligns_a_folder_of_originals(call_script, shared, published_weights, few_pairs, face_model, tmp_path):
    result = call_script("eval_LFW.py", "--align-from", shared / "lfw_raw_folds1-3", "--model-path", published_weights,
                         "--lfw-pairs", few_pairs, "--device", "cpu", "--json", "metrics.json")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert " images aligned, 0 without a face cropped at the usual place, 0 crops kept" in result.stdout
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["aligned"] is True and metrics["accuracy"] >= 0.9


def test_an_archive_is_unpacked_into_the_folder_that_the_list_fits(home, shared, few_pairs, capsys):
    names = {path.parent.name for path in read_pairs(few_pairs, shared / "lfw_raw_folds1-3").paths}
    with tarfile.open(home / "lfw.tgz", "w:gz") as file:
        for name in names:
            file.add(shared / "lfw_raw_folds1-3" / name, f"lfw/{name}")
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt"):
        (home / name).write_text("")
    assert fetch_lfw() == home / "lfw" and "fetching lfw.tgz" in capsys.readouterr().out
    assert len(read_pairs(few_pairs, fetch_lfw()).genuine) == 20


@pytest.mark.parametrize("end, error", [(EOFError, UserError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_unpacking_that_breaks_off_leaves_no_partial_folder(home, monkeypatch, end, error):
    def unpack_until_the_end(**settings):
        (home / "lfw" / "Ann").mkdir(parents=True)
        raise end
    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", unpack_until_the_end)
    with pytest.raises(error):
        fetch_lfw()
    assert not (home / "lfw").exists()


def test_without_a_network_one_line_names_the_archive_and_its_place(call_script, published_weights, home, face_model,
                                                                    monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of scikit-learn between its attempts
    result = call_script("eval_LFW.py", "--download", "--model-path", published_weights, "--device", "cpu")
    assert_user_error(result, "cannot fetch LFW", "lfw.tgz", home / "lfw", "<Person>_0001.jpg")
    assert not (home / "lfw").exists()
