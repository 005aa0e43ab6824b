"""benchmarks/compare_runs.py: curves of several runs in one picture."""
import json
import sys

import pytest
from conftest import ROOT, assert_user_error
from PIL import Image

sys.path.insert(0, str(ROOT / "benchmarks"))
from compare_runs import read_curve, read_pieces

from utils.common.errors import UserError


def write_log(folder, values):
    folder.mkdir(parents=True)
    rows = [f"{epoch},{value}" for epoch, value in enumerate(values, 1)]
    (folder / "log.csv").write_text("\n".join(["epoch,val_loss", *rows]) + "\n", encoding="utf-8")


def test_pieces_of_a_run_are_one_curve_and_epochs_without_a_number_are_left_out(tmp_path):
    write_log(tmp_path / "first", [0.5, "", 0.3])
    write_log(tmp_path / "second", [0.2])
    assert read_curve(f"{tmp_path}/first+{tmp_path}/second", "val_loss") == ((1, 3, 4), (0.5, 0.3, 0.2))


def test_the_pieces_of_a_weight_file_are_curves_whose_epochs_count_on(tmp_path):
    pieces = [{"name": "hints", "val_loss": [None]}, {"name": "all", "val_loss": [0.5, None, 0.25]}]
    (tmp_path / "x.json").write_text(json.dumps({"training": {"pieces": pieces}}), encoding="utf-8")
    assert read_pieces(tmp_path / "x.json", "val_loss") == [
        ("epoch 1: hints", (), ()), ("epochs 2 to 4: all", (2, 4), (0.5, 0.25))]
    for text in ("{", "[]", '{"training": {}}', '{"training": {"pieces": [{"name": "a", "val_loss": []}]}}'):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"x\.json holds no training\.pieces"):
            read_pieces(tmp_path / "x.json", "val_loss")


def test_the_weights_of_this_repository_have_figures_for_every_epoch_of_their_pieces():
    path = ROOT / "model_data" / "arcface_mobilefacenet.json"
    pieces = json.loads(path.read_text(encoding="utf-8"))["training"]["pieces"]
    assert [len(values) for _, _, values in read_pieces(path, "val_loss")] == [piece["epochs_done"] for piece in pieces]
    curves = read_pieces(path, "lfw_accuracy")
    for piece, (_, epochs, values) in zip(pieces, curves):
        assert len(piece["lfw_accuracy"]) == piece["epochs_done"] and len(epochs) == len(values)
    assert curves[-1][1][-1] == sum(piece["epochs_done"] for piece in pieces) == 56
    assert max(value for _, _, values in curves for value in values) == 0.93867


def test_the_picture_has_a_panel_for_each_column(call_script, tmp_path):
    for name in ("a", "b"):
        write_log(tmp_path / "logs" / name, [0.5, 0.4] if name == "a" else [0.3, 0.2])
    pictures = []
    for runs, columns in ((["one=logs/a"], 1), (["one=logs/a", "两 $\\frac$=logs/b"], 1), (["one=logs/a"], 2)):
        result = call_script("compare_runs.py", *runs, "--columns", *["val_loss"] * columns)
        assert result.returncode == 0, result.stderr
        pictures.append(Image.open(tmp_path / "runs.png").convert("RGB"))
    assert pictures[2].width == 2 * pictures[0].width
    orange, blue = (255, 127, 14), (31, 119, 180)  # of the second and the first curve
    assert [{orange, blue} & set(picture.getdata()) for picture in pictures] == [{blue}, {orange, blue}, {blue}]


def test_mistakes_are_one_line(call_script, tmp_path):
    write_log(tmp_path / "logs" / "a", [0.5])
    assert_user_error(call_script("compare_runs.py", "one=nowhere"), "nowhere/log.csv", "does not exist")
    assert_user_error(call_script("compare_runs.py", "logs/a"), "NAME=FOLDER")
    assert_user_error(call_script("compare_runs.py", "one=logs/a", "--columns", "lfw_accuracy"),
                      "logs/a/log.csv", "lfw_accuracy")
