"""The training set, its validation split and batches, unreadable images and killed loader workers."""
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import jpeg
from PIL import Image
from recording import record, write_set
from torch.utils.data import DataLoader, Dataset

from nets.head import IGNORE
from utils.common.errors import UserError
from utils.data.annotation import pack
from utils.data.dataset import (
    MAX_UNREADABLE,
    EpochBatches,
    FaceDataset,
    batches_of,
    make_loaders,
    print_overlap,
    read_training_set,
    read_unlabeled,
    split_validation,
)

CPU = torch.device("cpu")


@pytest.fixture
def faces(tmp_path):
    """Return (paths, labels) of nine images, image i all of color i."""
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2], dtype=torch.int32)
    paths = [tmp_path / f"{number}.png" for number in range(len(labels))]
    for number, path in enumerate(paths):
        Image.new("RGB", (112, 112), (number, 0, 0)).save(path)
    return [str(path) for path in paths], labels


def dataset_of(faces, indices):
    paths, labels = faces
    return FaceDataset(pack(paths), labels, torch.tensor(indices), [112, 112])


def spoil(*paths):
    for path in paths:
        with open(path, "wb") as file:
            file.write(b"not an image")


def loader_settings(**changes):
    return SimpleNamespace(**{"input_shape": [112, 112], "num_workers": 0, "val_split": 0,
                              "seed": 3, "batch_size": 3, "shard_head": False} | changes)


def place(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    return folder


@pytest.mark.parametrize("unreadable, position, index", [([4], 1, 6), ([8, 2], 3, 4)])
def test_the_next_image_of_the_same_split_replaces_one_that_cannot_be_read(faces, capsys, unreadable, position, index):
    dataset = dataset_of(faces, [2, 4, 6, 8])
    spoil(*(faces[0][number] for number in unreadable))
    pixels, label, found = dataset[position]
    assert found == index == pixels[0, 0, 0] and label == faces[1][index]
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == len(unreadable) and all("does not decode" in line for line in printed)


def test_after_a_hundred_in_a_row_it_gives_up(faces):
    dataset = dataset_of(faces, [1, 2])
    spoil(*faces[0][:3])
    with pytest.raises(UserError, match=rf"{MAX_UNREADABLE} images in a row cannot be read, .*\.png does not"):
        dataset[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_are_of_disjoint_images_and_replace_unreadable_ones(faces, workers):
    paths, labels = faces
    spoil(paths[2])
    loader, val_loader = make_loaders(pack(paths), labels, loader_settings(num_workers=workers, val_split=0.3), CPU)
    assert make_loaders(pack(paths), labels, loader_settings(), CPU)[1] is None
    trained, validated = (torch.cat([indices for _, _, indices in batches_of(part)]) for part in (loader, val_loader))
    assert 2 not in trained and 2 not in validated and not set(trained.tolist()) & set(validated.tolist())
    for images, of_batch, indices in batches_of(loader):
        assert torch.equal(images[:, 0, 0, 0], indices.byte()) and torch.equal(of_batch, labels[indices].long())


class Killed(Dataset):
    """Its loader worker is killed at image 5."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_worker_is_a_user_error_when_the_next_batch_is_awaited(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    batches = batches_of(DataLoader(Killed(), batch_size=2, num_workers=1))
    assert next(batches).tolist() == [0, 1]
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # else the error could be raised anywhere
    with pytest.raises(UserError, match="killed, most often because memory ran out: lower --num-workers"):
        list(batches)


def test_batches_cover_the_epoch_once_and_depend_on_the_epoch():
    batches = EpochBatches(count=20, batch_size=6, seed=1)
    first = list(batches)
    assert [len(batch) for batch in first] == [6, 6, 6]
    assert len({index for batch in first for index in batch}) == 18
    batches.epoch = 1
    assert list(batches) != first
    assert list(EpochBatches(count=20, batch_size=6, seed=2)) != first
    assert len(list(EpochBatches(count=5, batch_size=64, seed=1))) == 1


def test_batches_started_in_the_middle_are_the_rest_of_the_epoch():
    batches = EpochBatches(count=20, batch_size=6, seed=1)
    whole = list(batches)
    batches.start = 2
    assert list(batches) == whole[2:] and len(batches) == 1


@pytest.mark.parametrize("fraction", [0, 0.5, 0.99])
def test_the_validation_split_leaves_every_identity_a_training_image(fraction):
    labels = [0] * 50 + [1] * 2 + [2] + [3] * 30
    training, validation = split_validation(labels, fraction, seed=3)
    training, validation = training.tolist(), validation.tolist()
    assert sorted(training + validation) == list(range(len(labels)))
    assert training == sorted(training) and validation == sorted(validation)
    assert {labels[i] for i in training} == {0, 1, 2, 3}
    assert len(validation) == min(int(fraction * len(labels)), len(labels) - 4)


def test_unlabeled_images_are_trained_on_and_do_not_change_the_validation_set():
    labels = torch.arange(30, dtype=torch.int32) % 6
    training, validation = split_validation(labels, 0.2, 7)
    more = split_validation(torch.cat([labels, torch.full((9,), IGNORE, dtype=torch.int32)]), 0.2, 7)
    assert torch.equal(more[1], validation) and len(validation) == 6
    assert torch.equal(more[0], torch.cat([training, torch.arange(30, 39)]))


def test_unlabeled_images_are_found_however_deep(tmp_path, capsys):
    folder = place(tmp_path / "more", "b.jpg", "a/deep/est/c.png", "a/d.JPEG", ".hidden/e.jpg", "a/f.heic", "a/g.txt",
                   os.fsdecode(b"b\xff.jpg"))
    (folder / "a" / "up").symlink_to(folder)
    paths, _ = read_unlabeled(folder)
    assert {path.removeprefix(f"{folder}/") for path in paths} == {"b.jpg", "a/d.JPEG", "a/deep/est/c.png",
                                                                   os.fsdecode(b"b\xff.jpg")}
    printed = capsys.readouterr().out
    assert "4 unlabeled images" in printed and "not read as images: 1 .heic, 1 .txt:" in printed
    for name in ("empty", "missing"):
        with pytest.raises(UserError, match=f"{name}.*--unlabeled"):
            read_unlabeled(tmp_path / name)


def test_unlabeled_images_follow_those_of_a_rec_file(tmp_path):
    records = write_set(tmp_path / "rec", [(number, record(label, jpeg(number), number))
                                           for number, label in enumerate([0, 0, 1, 1], 1)])
    folder = place(tmp_path / "more", "a.jpg", "b.jpg")
    settings = SimpleNamespace(annotation_path=str(records), datasets_path=None, unlabeled=str(folder))
    images, labels, class_names, sha256 = read_training_set(settings)
    assert labels.tolist() == [0, 0, 1, 1, IGNORE, IGNORE] and class_names == ["0", "1"]
    dataset = FaceDataset(images, labels, torch.arange(6), (8, 8))
    assert [dataset[index][1:] for index in (1, 3, 5)] == [(0, 1), (1, 3), (IGNORE, 5)]
    place(folder, "c.jpg")
    assert read_training_set(settings)[3] != sha256
    settings.datasets_path = "elsewhere"
    with pytest.raises(UserError, match="leave out --datasets-path"):
        read_training_set(settings)


def test_identities_that_are_in_a_benchmark_too_are_reported(capsys):
    print_overlap(["AnnLee", "bob", "José", "0"], "LFW", ["Ann_Lee", "Jose\u0301", "Bobby"])
    assert capsys.readouterr().out.startswith("2 of 4 people to train on, AnnLee first, are also in LFW")
    print_overlap(["Ann Lee"], "LFW", ["Ann"])
    assert capsys.readouterr().out == ""
