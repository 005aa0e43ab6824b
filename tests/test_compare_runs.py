"""benchmarks/compare_runs.py: curves of several runs in one picture."""
import sys

from conftest import ROOT, assert_user_error
from PIL import Image

sys.path.insert(0, str(ROOT / "benchmarks"))
from compare_runs import read_curve


def write_log(folder, values):
    folder.mkdir(parents=True)
    rows = [f"{epoch},{value}" for epoch, value in enumerate(values, 1)]
    (folder / "log.csv").write_text("\n".join(["epoch,val_loss", *rows]) + "\n", encoding="utf-8")


def test_pieces_of_a_run_are_one_curve_and_epochs_without_a_number_are_left_out(tmp_path):
    write_log(tmp_path / "first", [0.5, "", 0.3])
    write_log(tmp_path / "second", [0.2])
    assert read_curve(f"{tmp_path}/first+{tmp_path}/second", "val_loss") == ((1, 3, 4), (0.5, 0.3, 0.2))


def test_the_picture_has_a_panel_for_each_column(run_script, tmp_path):
    for name in ("a", "b"):
        write_log(tmp_path / "logs" / name, [0.5, 0.4])
    sizes = []
    for columns in (["val_loss"], ["val_loss", "val_loss"]):
        result = run_script("benchmarks/compare_runs.py", "one=logs/a", "两=logs/b", "--columns", *columns)
        assert result.returncode == 0, result.stderr
        sizes.append(Image.open(tmp_path / "runs.png").size)
    assert sizes[1][0] == 2 * sizes[0][0] and sizes[1][1] == sizes[0][1]


def test_mistakes_are_one_line(run_script, tmp_path):
    write_log(tmp_path / "logs" / "a", [0.5])
    assert_user_error(run_script("benchmarks/compare_runs.py", "one=nowhere"), "nowhere/log.csv", "does not exist")
    assert_user_error(run_script("benchmarks/compare_runs.py", "logs/a"), "NAME=FOLDER")
    assert_user_error(run_script("benchmarks/compare_runs.py", "one=logs/a", "--columns", "lfw_accuracy"),
                      "logs/a/log.csv", "lfw_accuracy")
