"""eval_LFW.py --download: scikit-learn's folder of LFW as it is, and what is said where it cannot be fetched."""
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_user_error
from PIL import Image

import eval_LFW
from utils.common.errors import UserError
from utils.evaluation.pairs import fetch_lfw, read_pairs


@pytest.fixture
def home(tmp_path, monkeypatch):
    """scikit-learn's folder, with a network that refuses every connection."""
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "scikit 小 data"))
    for name in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    folder = tmp_path / "scikit 小 data" / "lfw_home"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def lines(shared, tmp_path):
    """A list of 2 folds of 3 + 3 pairs."""
    rows = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:]
    chosen = rows[:3] + rows[300:303] + rows[3:6] + rows[303:306]
    (tmp_path / "pairs.txt").write_text("\n".join(["2 3", *chosen, ""]), encoding="utf-8")
    return chosen


def copy_people(shared, lines, folder):
    for name in {field for line in lines for field in line.split() if not field.isdecimal()}:
        shutil.copytree(shared / "lfw_raw_folds1-3" / name, folder / name)


def pack(home, folder, archive):
    """lfw.tgz and the lists beside it, as scikit-learn downloads them."""
    with tarfile.open(home / archive, "w:gz") as file:
        file.add(folder, folder.name)
    shutil.rmtree(folder)
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt"):
        (home / name).write_text("")


def test_pictures_that_scikit_learn_has_are_aligned_into_the_folder_of_lfw(
        home, shared, lines, tmp_path, monkeypatch, capsys):
    pytest.importorskip("cv2")
    copy_people(shared, lines, home / "lfw")
    shutil.copytree(shared / "yunet", tmp_path / "model_data")
    before = sorted(home.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["eval_LFW.py", "--download", "--lfw-pairs", "pairs.txt"])
    args = eval_LFW.parse_args()
    pairs = eval_LFW.read_benchmark(args)
    assert sorted(home.rglob("*")) == before and "lfw holds the aligned images; 0 without" in capsys.readouterr().out
    assert {path.parents[1] for path in pairs.paths} == {Path("lfw")} and len(pairs.genuine) == 12
    for path in pairs.paths:
        crop, by_hand = (np.asarray(Image.open(file).convert("L"), float)
                         for file in (path, shared / "lfw" / "images" / path.parent.name / path.name))
        assert crop.shape == (112, 112) and np.corrcoef(crop.ravel(), by_hand.ravel())[0, 1] > 0.8

    kept = pairs.paths[0]
    times = {path: path.stat().st_mtime_ns for path in pairs.paths}
    kept.unlink()
    eval_LFW.read_benchmark(args)
    assert kept.is_file() and all(path.stat().st_mtime_ns == time for path, time in times.items() if path != kept)


@pytest.mark.parametrize("variant, folder, archive", [
    ("original", "lfw", "lfw.tgz"), ("funneled", "lfw_funneled", "lfw-funneled.tgz")])
def test_an_archive_is_unpacked_into_folders_that_the_list_of_pairs_fits(
        home, shared, lines, tmp_path, capsys, variant, folder, archive):
    copy_people(shared, lines, home / folder)
    pack(home, home / folder, archive)
    found = fetch_lfw(variant)
    assert found == home / folder and f"fetching {archive}" in capsys.readouterr().out
    pairs = read_pairs(tmp_path / "pairs.txt", found)
    assert len(pairs.genuine) == 12 and all(path.is_file() for path in pairs.paths)


def test_without_a_network_one_line_says_what_to_put_where(run_script, shared, published_weights, home, tmp_path):
    shutil.copytree(shared / "yunet", tmp_path / "model_data")
    result = run_script("eval_LFW.py", "--download", "funneled", "--model-path", published_weights, "--device", "cpu")
    assert_user_error(result, "cannot fetch LFW", "lfw-funneled.tgz", home / "lfw_funneled", "<Person>_0001.jpg")
    assert not (home / "lfw_funneled").exists()


def test_an_archive_that_breaks_off_leaves_no_half_folder(home, shared, lines):
    copy_people(shared, lines, home / "lfw")
    pack(home, home / "lfw", "lfw.tgz")
    whole = (home / "lfw.tgz").read_bytes()
    (home / "lfw.tgz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot fetch LFW .*lfw\.tgz"):
        fetch_lfw("original")
    assert not (home / "lfw").exists()


def test_ctrl_c_leaves_no_half_folder(home, monkeypatch):
    def unpack_until_interrupted(**settings):
        (home / "lfw" / "Ann").mkdir(parents=True)
        raise KeyboardInterrupt
    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", unpack_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_lfw("original")
    assert not (home / "lfw").exists()
