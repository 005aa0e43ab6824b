"""Several benchmarks after every epoch: their columns, and which of them chooses best.pth."""
import csv
import math
import pickle

import pytest
from conftest import assert_user_error, read_json
from training_data import QUICK, make_args, only_run, write_faces

from utils.training.run import COLUMNS
from utils.training.validation import (
    MEAN,
    accuracy_columns,
    benchmark_columns,
    best_row,
    measure_benchmarks,
    read_benchmarks,
)
from utils.weights.checkpoint import load_embedder


@pytest.fixture
def packed(shared, tmp_path):
    """Write agedb_30.bin and cfp_fp.bin, each with ten folds of one genuine and one impostor pair of LFW images."""
    identities = [sorted(folder.iterdir())[:2] for folder in sorted((shared / "lfw" / "images").iterdir())]
    identities = [images for images in identities if len(images) == 2][:42]
    for name, first in (("agedb_30", 0), ("cfp_fp", 21)):
        images = [path.read_bytes() for index in range(first, first + 20, 2)
                  for path in (*identities[index], identities[index][0], identities[index + 1][0])]
        (tmp_path / f"{name}.bin").write_bytes(pickle.dumps((images, [True, False] * 10)))
    return tmp_path / "agedb_30.bin", tmp_path / "cfp_fp.bin"


def test_each_benchmark_has_its_columns_and_the_mean_if_asked_for(run_script, shared, packed, tmp_path):
    annotation = write_faces(shared, tmp_path / "cls_train.txt", identities=2, images=4)
    result = run_script("train.py", "--device", "cpu", "--batch-size", 4, "--annotation-path", annotation,
                        "--epochs", 1, "--num-workers", 0, "--val-split", 0, "--eval", *packed, "--best-by", "mean")
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "logs")
    with open(run / "log.csv", newline="", encoding="utf-8") as file:
        row, = csv.DictReader(file)
    accuracies = [float(row["eval/agedb_30_accuracy"]), float(row["eval/cfp_fp_accuracy"])]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies) and row["lfw_accuracy"] == ""
    assert float(row["mean_accuracy"]) == pytest.approx(sum(accuracies) / 2, abs=1e-5)
    assert row["eval/agedb_30_val_at_far"] == "", "ten impostor pairs measure no FAR of 0.001"
    best = read_json(run / "best.json")["training"]
    assert best["eval/cfp_fp_accuracy"] == pytest.approx(accuracies[1], abs=1e-5)


def test_without_best_by_mean_no_mean_is_measured(shared, pairs_path, published_weights):
    args = make_args("--lfw-dir", shared / "lfw" / "images", "--lfw-pairs", pairs_path, "--num-workers", 0)
    row = measure_benchmarks(load_embedder(published_weights), read_benchmarks(args, []), args)
    assert tuple(row) == benchmark_columns("lfw")


def rows(*accuracies):
    return [{"epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 1 / epoch} | accuracy
            for epoch, accuracy in enumerate(accuracies, 1)]


def test_the_first_benchmark_decides_or_the_mean():
    first = {"eval/agedb_30_accuracy": 0.7, "lfw_accuracy": 0.9}
    second = {"eval/agedb_30_accuracy": 0.8, "lfw_accuracy": 0.6}
    assert best_row(rows(first, second))["epoch"] == 2
    assert best_row(rows(dict(reversed(first.items())), dict(reversed(second.items()))))["epoch"] == 1
    assert best_row(rows(first | {"mean_accuracy": 0.8}, second | {"mean_accuracy": 0.7}))["epoch"] == 1
    assert best_row(rows({"lfw_accuracy": math.nan}, {"lfw_accuracy": math.nan}))["epoch"] == 1  # by validation loss


@pytest.mark.parametrize("values, best", [
    ([(0.5, 0.7), (0.4, 0.8), (0.3, 0.8)], 2), ([(0.5, math.nan), (0.3, math.nan), (0.3, math.nan)], 2),
    ([(math.nan, math.nan)] * 3, 3), ([(0.1, math.nan), (0.4, 0.5), (0.2, 0.4)], 2)])
def test_without_a_benchmark_the_validation_loss_decides(values, best):
    assert best == best_row([{"epoch": epoch, "train_loss": 1.0, "val_loss": loss, "lfw_accuracy": accuracy}
                             for epoch, (loss, accuracy) in enumerate(values, 1)])["epoch"]


def test_no_file_shares_a_column_with_lfw_or_with_the_run():
    names = ["lfw", *(f"eval/{name}" for name in ("lfw", "LFW", "val", "train", "mean"))]
    columns = [column for name in names for column in benchmark_columns(name)]
    ours = {*COLUMNS, MEAN}
    assert columns[:2] == ["lfw_accuracy", "val_at_far"]
    assert len(set(columns)) == 12 and ours.isdisjoint(columns[2:])
    assert accuracy_columns(dict.fromkeys([*COLUMNS, *columns], 0.5)) == columns[::2]


@pytest.mark.parametrize("flags, words", [
    (["--eval", "gone.bin"], ["gone.bin"]), (["--eval", "lfw", "--lfw-eval"], ["--eval", "--lfw-eval"]),
    (["--eval", "agedb_30.bin", "agedb_30.bin"], ["agedb_30", "twice"]),
    (["--eval", "cls_train.txt"], ["cls_train.txt"])])
def test_a_benchmark_that_does_not_read_is_a_user_error(call_script, shared, packed, tmp_path, flags, words):
    write_faces(shared, tmp_path / "cls_train.txt", identities=2, images=4)
    quick = [flag for flag in QUICK if flag != "--no-lfw-eval"]
    assert_user_error(call_script("train.py", *quick, *flags), *words)
    assert not (tmp_path / "logs").exists()
