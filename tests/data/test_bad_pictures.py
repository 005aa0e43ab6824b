"""A picture that fails in the middle of a run costs one picture, and a killed loader nothing."""
import csv
import multiprocessing
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.common.errors import UserError
from utils.data.annotation import pack
from utils.data.bad_pictures import FILE, BadPicture, BadPictures, most_allowed
from utils.data.dataset import EpochBatches, FaceDataset, batches_of, make_loaders

CPU = torch.device("cpu")


@pytest.fixture
def faces(tmp_path):
    """-> (paths, labels): two people with 4 pictures and one with 1, picture i all of colour i."""
    labels = [0, 1, 0, 1, 0, 1, 0, 1, 2]
    paths = [tmp_path / f"{number}.png" for number in range(len(labels))]
    for number, path in enumerate(paths):
        Image.new("RGB", (112, 112), (number, 0, 0)).save(path)
    return [str(path) for path in paths], labels


def dataset_of(faces):
    paths, labels = faces
    return FaceDataset(pack(paths), labels, [112, 112], True)


def spoil(*paths):
    for path in paths:
        with open(path, "wb") as file:
            file.write(b"no picture")


@pytest.mark.parametrize("bad, asked, expected", [
    ([2], 2, 4), ([2, 4], 2, 6), ([6], 6, 0), ([6, 0], 6, 2), ([8], 8, 0), ([8, 0], 8, 1), ([0, 2, 4, 6], 2, 3)])
def test_the_next_picture_of_its_person_stands_in_or_the_next_of_any(faces, bad, asked, expected):
    dataset = dataset_of(faces)
    spoil(*(faces[0][number] for number in bad))
    for _ in range(2):
        pixels, label, used = dataset[asked]
        assert used == expected and label == faces[1][expected] and pixels[0, 0, 0] == expected
    assert dataset[1 if 1 not in bad else 3][2] in (1, 3)


def test_what_was_replaced_is_told_with_its_reason(faces):
    dataset = dataset_of(faces)
    spoil(faces[0][2])
    os.unlink(faces[0][8])
    assert dataset.replaced([0, 2, 8], [0, 4, 0]) == [
        BadPicture(faces[0][2], 0, "does not decode (not a picture)", faces[0][4]),
        BadPicture(faces[0][8], 2, "does not exist", faces[0][0])]
    [found] = dataset.replaced([1], [3])
    assert "when read again" in found.reason


def test_where_nothing_opens_the_first_is_named(faces):
    spoil(*faces[0])
    with pytest.raises(UserError, match=r"9 pictures in turn do not open, the first: .*[/\\]5\.png does not decode"):
        dataset_of(faces)[5]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_hands_over_what_was_replaced(faces, workers):
    paths, labels = faces
    spoil(paths[2])
    loader, validation = make_loaders(pack(paths), torch.tensor(labels, dtype=torch.int32), SimpleNamespace(
        input_shape=[112, 112], letterbox_image=True, num_workers=workers, val_split=0, seed=3, batch_size=3), CPU)
    assert validation is None
    found = [(loader.dataset.replaced(loader.batch_sampler.indices_of(number), used.tolist()), labels_.tolist())
             for number, (_, labels_, used) in enumerate(batches_of(loader))]
    assert [one.picture for bad, _ in found for one in bad] == [paths[2]]
    assert sorted(label for _, of_batch in found for label in of_batch) == sorted(labels)


@pytest.mark.parametrize("pictures, share, most", [
    (40, 1e-3, 1), (1000, 1e-3, 1), (5000, 1e-3, 5), (5_000_000, 1e-3, 5000), (40, 0, 0), (40, 0.5, 20)])
def test_one_picture_may_be_bad_and_then_a_share(pictures, share, most):
    assert most_allowed(pictures, share) == most


def test_the_list_grows_is_gone_on_with_and_is_refused_beyond_the_share(tmp_path, capsys):
    bad = [BadPicture(f"faces;小 明/{n}, \"a\".jpg", n, "does not decode (truncated, by 3)", f"{n}b.jpg")
           for n in range(4)]
    BadPictures(tmp_path, 1000, 3e-3).note([])
    assert not (tmp_path / FILE).exists()
    BadPictures(tmp_path, 1000, 3e-3).note(bad[:2])
    again = BadPictures(tmp_path, 1000, 3e-3)
    assert list(again.found.values()) == bad[:2]
    again.note(bad[:3])
    assert capsys.readouterr().out.count(bad[0].picture) == 1  # it was known
    assert again.refusal(bad) and not again.refusal([])
    with pytest.raises(UserError, match=r"^4 of 1000 .*faces;小 明/0.* first \(does not decode.*bad_pictures\.csv.*"
                                        r"--max-bad-pictures"):
        BadPictures(tmp_path, 1000, 3e-3).note([bad[0]])  # met again by a run that goes on
    with open(tmp_path / FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and rows[0] == {"picture": bad[0].picture, "label": "0", "reason": bad[0].reason,
                                          "replaced_by": "0b.jpg"}


class Killed(torch.utils.data.Dataset):
    """Its loader's process is killed at picture 5."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_loader_is_a_user_error_where_the_next_batch_is_awaited(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    batches = batches_of(torch.utils.data.DataLoader(Killed(), batch_size=2, num_workers=1))
    assert next(batches).tolist() == [0, 1]
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # else it would be raised anywhere
    with pytest.raises(UserError, match="killed, most often for want of memory: lower --num-workers"):
        list(batches)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_loader_killed_between_two_epochs_is_one_too(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    loader = torch.utils.data.DataLoader(range(4), batch_size=2, num_workers=1, persistent_workers=True)
    assert len(list(batches_of(loader))) == 2
    [process] = [child for child in multiprocessing.active_children() if child.daemon]
    process.kill()
    with pytest.raises(UserError, match="killed, most often for want of memory"):
        list(batches_of(loader))


def test_batches_too_large_for_so_few_pictures_are_told_with_the_size_that_would_do():
    assert EpochBatches(640, 64, 1).advice() == EpochBatches(6400, 64, 1).advice() == []
    [advice] = EpochBatches(300, 64, 1).advice()
    assert "only 4 batch(es)" in advice and "leave out 44" in advice and "--batch-size 30 gives 10" in advice
    assert "--batch-size 10 gives 10" in EpochBatches(100, 400, 1).advice()[0]
    assert "add pictures" in EpochBatches(4, 2, 1).advice()[0]
    for count in np.random.default_rng(0).integers(20, 2000, 50).tolist():
        for size in (2, 7, 64, 500):
            for advice in EpochBatches(count, size, 1).advice():
                fitting = int(advice.partition("--batch-size ")[2].split()[0])
                assert EpochBatches(count, fitting, 1).advice() == [] and 2 <= fitting < size
