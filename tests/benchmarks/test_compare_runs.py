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
        write_log(tmp_path / "logs" / name, [0.5, 0.4] if name == "a" else [0.3, 0.2])
    pictures = []
    for runs, columns in ((["one=logs/a"], 1), (["one=logs/a", "两=logs/b"], 1), (["one=logs/a"], 2)):
        result = run_script("benchmarks/compare_runs.py", *runs, "--columns", *["val_loss"] * columns)
        assert result.returncode == 0, result.stderr
        pictures.append(Image.open(tmp_path / "runs.png").convert("RGB"))
    assert pictures[2].width == 2 * pictures[0].width
    orange, blue = (255, 127, 14), (31, 119, 180)  # of the second and the first curve
    assert [{orange, blue} & set(picture.getdata()) for picture in pictures] == [{blue}, {orange, blue}, {blue}]


def test_mistakes_are_one_line(run_script, tmp_path):
    write_log(tmp_path / "logs" / "a", [0.5])
    assert_user_error(run_script("benchmarks/compare_runs.py", "one=nowhere"), "nowhere/log.csv", "does not exist")
    assert_user_error(run_script("benchmarks/compare_runs.py", "logs/a"), "NAME=FOLDER")
    assert_user_error(run_script("benchmarks/compare_runs.py", "one=logs/a", "--columns", "lfw_accuracy"),
                      "logs/a/log.csv", "lfw_accuracy")
