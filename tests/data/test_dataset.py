"""Pictures without labels: which are found, how they are joined to the others, and what a run makes of them."""
import csv
import os
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_user_error, jpeg
from recording import record, write_set
from training_data import QUICK, only_run, weights, write_faces

from nets.head import IGNORE
from utils.common.errors import UserError
from utils.data.annotation import pack
from utils.data.dataset import FaceDataset, Joined, read_training_set, read_unlabeled, split_validation


def place(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    return folder


def test_all_pictures_below_a_folder_are_found_however_deep(tmp_path):
    folder = place(tmp_path / "more", "b.jpg", "a/deep/est/c.png", "a/d.JPEG", ".hidden/e.jpg", "a/f.heic", "a/g.txt")
    place(tmp_path / "elsewhere", "g.jpg")
    (folder / "z").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "up").symlink_to(folder)  # without end, if it were followed again and again
    pictures, _, lines = read_unlabeled(folder)
    found = [path.removeprefix(f"{folder}/") for path in pictures]
    assert found == ["b.jpg", "a/d.JPEG", "a/deep/est/c.png", "z/g.jpg"]
    line, = lines
    assert "1 .heic" in line and "txt" not in line


def test_what_cannot_be_named_in_text_is_left_out_and_told(tmp_path):
    folder = place(tmp_path / "more", "ok.jpg", "line\nbreak.jpg", "line\nbreak/a.jpg", os.fsdecode(b"b\xff/a.jpg"),
                   os.fsdecode(b"b\xff.jpg"))
    (folder / "loop").symlink_to(folder / "loop")  # to itself
    pictures, _, (line,) = read_unlabeled(folder)
    assert list(pictures) == [f"{folder}/ok.jpg"]
    assert "4 files and folders" in line and line.isascii() and "\n" not in line
    with pytest.raises(UserError, match="not valid Unicode"):
        read_unlabeled(folder / os.fsdecode(b"b\xff"))


def test_a_set_is_told_by_where_its_pictures_lie_in_it(tmp_path):
    first, moved = place(tmp_path / "1", "a/x.jpg", "y.jpg"), place(tmp_path / "2", "a/x.jpg", "y.jpg")
    other = place(tmp_path / "3", "a/x.jpg", "z.jpg")
    sha256 = [read_unlabeled(folder)[1] for folder in (first, moved, other)]
    assert sha256[0] == sha256[1] != sha256[2]


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(UserError, match=f"{name}.*--unlabeled"):
            read_unlabeled(tmp_path / name)


def test_joined_pictures_are_those_of_the_first_and_then_those_of_the_second():
    joined = Joined(pack(["a", "b", "c"]), pack(["d", "e"]))
    assert len(joined) == 5 and list(joined) == [joined.name(index) for index in range(5)] == list("abcde")
    for indices, expected in (([0, 2, 3, 4], "acde"), ([1], "b"), ([3], "d"), ([], "")):
        part = joined.subset(torch.tensor(indices, dtype=torch.int64))
        assert "".join(pickle.loads(pickle.dumps(part))) == expected
    for index in (5, -1):
        with pytest.raises(IndexError):
            joined[index]


def test_pictures_without_labels_are_trained_on_and_change_nothing_of_the_validation_set():
    labels = torch.arange(30, dtype=torch.int32) % 6
    training, validation = split_validation(labels, 0.2, 7)
    more = split_validation(torch.cat([labels, torch.full((9,), IGNORE, dtype=torch.int32)]), 0.2, 7)
    assert torch.equal(more[1], validation) and len(validation) == 6
    assert torch.equal(more[0], torch.cat([training, torch.arange(30, 39)]))


def test_they_join_the_pictures_of_a_rec_file_too(tmp_path, capsys):
    records = write_set(tmp_path / "rec", [(number, record(label, jpeg(number), number))
                                           for number, label in enumerate([0, 0, 1, 1], 1)])
    folder = place(tmp_path / "more", "a.jpg", "b.jpg")
    (folder / "a.jpg").write_bytes(b"no picture")
    found = read_training_set(SimpleNamespace(rec=str(records), annotation_path="", unlabeled=str(folder)))
    assert "2 pictures without labels" in capsys.readouterr().out and found.names == ["0", "1"]
    dataset = FaceDataset(found.pictures.subset(torch.tensor([1, 3, 4, 5])), found.labels[[1, 3, 4, 5]], (8, 8), True)
    # Where a picture without a label does not open, another without one stands in for it.
    assert [dataset[index][1:] for index in range(4)] == [(0, 0), (1, 1), (IGNORE, 3), (IGNORE, 3)]
    bad, = dataset.replaced([2], [3])
    assert (bad.picture, bad.label, bad.replaced_by) == (f"{folder}/a.jpg", IGNORE, f"{folder}/b.jpg")


@pytest.fixture(scope="module")
def faces_without_labels(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabeled")
    source = next(path for path in sorted((shared / "faces_unlabelled").iterdir()) if path.is_dir())
    for path in sorted(source.rglob("*.jpg"))[:12]:
        target = folder / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return folder


def test_a_student_learns_from_them_and_its_accuracy_is_of_the_labelled_alone(
        run_script, shared, published_weights, tmp_path, faces_without_labels):
    annotation = write_faces(shared, tmp_path / "cls_train.txt", people=2, pictures=6)
    moved = tmp_path / "moved"
    shutil.copytree(faces_without_labels, moved)
    arguments = [*QUICK, "--annotation-path", annotation, "--num-workers", 0, "--val-split", 0, "--teacher",
                 published_weights, "--teacher-flip", "--label-weight", 1, "--m", 0, "--init-lr", 0.02, "--no-scale-lr",
                 "--model-path", published_weights]
    result = run_script("train.py", *arguments, "--unlabeled", faces_without_labels, "--epochs", 3)
    assert result.returncode == 0, result.stderr
    assert "12 pictures without labels" in result.stdout and "2 people, 24 pictures to train on" in result.stdout
    run = only_run(tmp_path / "logs")
    rows = list(csv.DictReader(run.joinpath("log.csv").open(encoding="utf-8")))
    # 12 of 24 pictures have labels: were all counted, no accuracy could be above a half.
    assert 0.6 < float(rows[-1]["train_accuracy"]) <= 1
    assert weights(run)["head.weight"].shape[0] == 2
    shutil.rmtree(moved / sorted(path.name for path in moved.iterdir())[0])
    place(moved, "other.jpg")
    result = run_script("train.py", "--resume", run, "--unlabeled", moved, "--epochs", 4, "--force")
    assert result.returncode == 0 and "not those of" in result.stdout, result.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (["--unlabeled", "."], ["--unlabeled", "--teacher"]), (["--teacher-flip"], ["--teacher-flip", "--teacher"]),
    (["--unlabeled", "missing", "--teacher", "{}"], ["missing", "--unlabeled"])])
def test_what_makes_no_sense_is_one_line(run_script, shared, published_weights, tmp_path, arguments, words):
    annotation = write_faces(shared, tmp_path / "cls_train.txt")
    arguments = [argument.format(published_weights) for argument in arguments]
    assert_user_error(run_script("train.py", *QUICK, "--annotation-path", annotation, *arguments), *words)
