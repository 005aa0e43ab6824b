"""benchmarks/compare_runs.py: curves of several runs in one plot."""
import json
import sys

import pytest
from conftest import ROOT, assert_user_error
from PIL import Image

sys.path.insert(0, str(ROOT / "benchmarks"))
from compare_runs import read_curves

ORANGE, BLUE = (255, 127, 14), (31, 119, 180)  # of the second and the first curve


def write_log(folder, values):
    folder.mkdir(parents=True)
    rows = [f"{epoch},{value}" for epoch, value in enumerate(values, 1)]
    (folder / "log.csv").write_text("\n".join(["epoch,val_loss", *rows]) + "\n", encoding="utf-8")


def test_epochs_without_a_value_are_left_out_and_those_of_phases_are_counted_on(tmp_path):
    write_log(tmp_path / "run", [0.5, "", 0.3])
    assert read_curves(f"a={tmp_path}/run", "val_loss") == [("a", (1, 3), (0.5, 0.3))]
    phases = [{"name": "first", "val_loss": [None]}, {"name": "second", "val_loss": [0.5, None, 0.25]}]
    (tmp_path / "x.json").write_text(json.dumps({"training": {"pieces": phases}}), encoding="utf-8")
    assert read_curves(str(tmp_path / "x.json"), "val_loss") == [("first", (), ()), ("second", (2, 4), (0.5, 0.25))]


@pytest.mark.parametrize(("runs", "columns", "colors"), [
    (["one=logs/a"], 1, {BLUE}), (["one=logs/a"], 2, {BLUE}),
    (["one=logs/a", "两 $\\frac$=logs/b"], 1, {BLUE, ORANGE})])
def test_the_plot_has_a_panel_for_each_column_and_a_curve_for_each_run(call_script, tmp_path, runs, columns, colors):
    write_log(tmp_path / "logs" / "a", [0.5, 0.4])
    write_log(tmp_path / "logs" / "b", [0.3, 0.2])
    result = call_script("compare_runs.py", *runs, "--columns", *["val_loss"] * columns)
    assert result.returncode == 0, result.stderr
    plot = Image.open(tmp_path / "runs.png").convert("RGB")
    assert plot.width == 660 * columns and {ORANGE, BLUE} & set(plot.getdata()) == colors


def test_a_mistake_is_one_line(call_script, tmp_path):
    write_log(tmp_path / "logs" / "a", [0.5])
    assert_user_error(call_script("compare_runs.py", "one=nowhere"), "nowhere/log.csv", "does not exist")
    result = call_script("compare_runs.py", "one=logs/a", "--columns", "lfw_accuracy")
    assert_user_error(result, "logs/a", "lfw_accuracy")
