"""txt_annotation.py: from a folder of faces to the list that train.py reads."""
import os
import re
import shutil

import pytest
from conftest import assert_user_error
from scanning import draw, make_identities

from utils.data.annotation import read_annotation
from utils.faces.face_crop import NoDetector


@pytest.fixture(autouse=True)
def no_detector(monkeypatch):
    """Noise shows no face, so call_script() needs no detector. run_script() is another process."""
    monkeypatch.setattr("txt_annotation.are_aligned", lambda paths: True)


def test_it_writes_the_list_and_sums_up(call_script, tmp_path):
    root = make_identities(tmp_path / "datasets", ann=1, **{"bob; the 小明": 2, "cy": 6})
    (root / "README.md").write_text("notes")
    (root / "cy" / "broken.JPG").write_text("not an image")
    (root / "aaa").mkdir()  # gets no label
    result = call_script("txt_annotation.py")
    assert result.returncode == 0, result.stderr
    assert "3 people, 9 images, 1 / 2 / 6 images per person (min / median / max), 3 skipped" in result.stdout
    for name, reason in (("README.md", "not the folder of a person"), ("cy/broken.JPG", "not a"), ("aaa", "no image")):
        assert re.search(rf"^skipped {re.escape(str(root / name))}: .*{reason}", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("wrote cls_train.txt and cls_classes.txt\n")
    written = (tmp_path / "cls_train.txt").read_bytes()
    assert b"\r" not in written and written.endswith(b".png\n") and not written.startswith(b"\xef")
    assert (tmp_path / "cls_classes.txt").read_text(encoding="utf-8") == "0;ann\n1;bob; the 小明\n2;cy\n"
    paths, labels = read_annotation(tmp_path / "cls_train.txt")
    assert labels.tolist() == [0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert all(os.path.isabs(path) and os.path.isfile(path) for path in paths)

    call_script("txt_annotation.py", "--datasets-path", root, "--output", "new folder/second_train.txt")
    assert (tmp_path / "new folder" / "second_train.txt").read_bytes() == written
    assert (tmp_path / "new folder" / "second_classes.txt").is_file()


def test_equal_images_are_reported_with_a_pair_of_their_files(call_script, tmp_path):
    root = make_identities(tmp_path / "datasets", ann=3, bob=2)
    for number in (0, 1):
        shutil.copy(root / "ann" / f"{number}.png", root / "bob" / f"copy {number}.png")
    shutil.copy(root / "ann" / "2.png", root / "ann" / "y.png")
    result = call_script("txt_annotation.py")
    pair = r"2 images are also under another person, .*ann/(\d).png and .*bob/copy \1.png first"
    assert re.search(pair, result.stdout), result.stdout
    assert "1 images are copies of another one of the same person" in result.stdout
    assert "copies" not in call_script("txt_annotation.py", "--no-check").stdout


def test_no_detector_is_needed(call_script, tmp_path, monkeypatch):
    def no_opencv(paths):
        raise NoDetector("no OpenCV")
    make_identities(tmp_path / "datasets", ann=2)
    monkeypatch.setattr("txt_annotation.are_aligned", no_opencv)
    result = call_script("txt_annotation.py")
    assert result.returncode == 0 and "not checked: no OpenCV" in result.stdout


def test_a_name_that_is_not_valid_unicode_is_printed(run_script, tmp_path, monkeypatch, face_model):
    make_identities(tmp_path / "datasets", ann=2)
    try:
        (tmp_path / "datasets" / "ann" / "bad\udcff.png").write_text("x")
    except OSError:
        pytest.skip("this file system allows valid Unicode only")
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as under most desktop locales
    result = run_script("txt_annotation.py")
    assert result.returncode == 0, result.stderr
    assert "not valid Unicode" in result.stdout and "1 people, 2 images" in result.stdout


def test_the_old_list_stays_when_no_person_is_found(call_script, tmp_path):
    (tmp_path / "cls_train.txt").write_text("0;/precious.jpg\n")
    assert_user_error(call_script("txt_annotation.py"), tmp_path / "datasets", "--datasets-path")
    draw(tmp_path / "datasets" / "face beside the folders.png")
    assert_user_error(call_script("txt_annotation.py"), "datasets", "one folder per person")
    assert (tmp_path / "cls_train.txt").read_text() == "0;/precious.jpg\n"
