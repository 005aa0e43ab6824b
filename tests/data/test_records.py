"""utils/data/records.py: training straight from .rec files has the pictures that they give when written out."""
import io
import pickle
import shutil
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from conftest import jpeg
from PIL import Image
from recording import insightface_set, record, write_set

from utils.common.errors import UserError
from utils.data import records as module
from utils.data.dataset import FaceDataset, batches_of, make_loaders
from utils.data.records import MOST_SKIPPED, holds_records, read_records, read_records_of, unpack

MAGIC = bytes.fromhex("0a23d7ce")


@pytest.fixture(scope="module")
def pictures():
    """Six small JPEG files."""
    return [jpeg(seed) for seed in range(6)]


@pytest.fixture
def rec(tmp_path):
    """rec([(number, payload), ...], name="train", index=True) -> the folder of that file."""
    return lambda records, **how: write_set(tmp_path / "faces;小 明", records, **how)


def contents(found):
    return [found[index].getvalue() for index in range(len(found))]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("part", [1, 3, 1 << 16])
def test_the_pictures_are_those_of_the_records_and_labels_too(pictures, rec, monkeypatch, index, part):
    monkeypatch.setattr(module, "PART", part)
    folder = rec(insightface_set(pictures), index=index)
    found, labels, skipped = read_records_of(folder)
    assert contents(found) == pictures[1:6] and labels.tolist() == [0, 0, 0, 1, 1] and not skipped
    assert labels.dtype == torch.int32 and holds_records(folder) and not holds_records(folder / "train.rec")
    assert found.name(3) == f"{folder / 'train.rec'}, record {4 if index else 3}"
    chosen = found.subset(torch.tensor([4, 0]))
    assert contents(chosen) == [pictures[5], pictures[1]] and len(chosen) == 2
    assert contents(pickle.loads(pickle.dumps(chosen))) == contents(chosen)


@pytest.mark.parametrize("index", [True, False])
def test_records_in_parts_labels_behind_the_header_and_png_are_read(pictures, rec, index):
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "png")
    cut = [pictures[0] + bytes(-len(pictures[0]) % 4) + tail for tail in (
        MAGIC, MAGIC * 3 + b"ab", b"abcd" + MAGIC + b"efgh" + MAGIC)]
    kept = [*cut, png.getvalue(), pictures[1]]
    folder = rec([*((n, record(n, content)) for n, content in enumerate(cut)), (3, record([3., 9.], png.getvalue())),
                  (4, record([4.0, 35.0, 1.0], pictures[1]))], index=index)
    found, labels, _ = read_records_of(folder)
    assert contents(found) == kept and labels.tolist() == [0, 1, 2, 3, 4]
    assert FaceDataset(found, labels, [112, 112], True)[3][0].shape == (112, 112, 3)


def test_several_files_are_one_set_and_labels_without_pictures_leave_no_gap(pictures, rec):
    folder = rec([(1, record(7, pictures[0])), (2, record(7, pictures[1]))], name="part_0")
    rec([(1, record(900, pictures[2])), (2, record(8, pictures[3]))], name="part_1", index=False)
    found, labels, _ = read_records_of(folder)
    assert contents(found) == pictures[:4] and labels.tolist() == [0, 0, 2, 1]
    assert found.name(2) == f"{folder / 'part_1.rec'}, record 0"
    other = found.sha256(labels)
    assert other != found.subset(torch.tensor([1, 0, 2, 3])).sha256(labels)
    rec([(1, record(3, pictures[4]))])
    assert contents(read_records_of(folder)[0]) == [pictures[4]]  # train.rec alone, where it is there


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_folder_with_the_same_pictures_and_bad_records_are_bad_pictures(pictures, rec, workers):
    bad = (3, record(0, b"\xff\xd8\xffno picture"))
    records = [(n, record(n % 2, pictures[n])) for n in range(6)]
    records[3:3] = [bad]
    folder = rec([(number, payload) for number, (_, payload) in enumerate(records)])
    found, labels, skipped = read_records_of(folder)
    assert not skipped and len(found) == 7
    settings = SimpleNamespace(input_shape=[112, 112], letterbox_image=True, num_workers=workers, val_split=0, seed=1,
                               batch_size=7)
    loader, _ = make_loaders(found, labels, settings, torch.device("cpu"))
    [(images, of_batch, used)] = list(batches_of(loader))
    asked = loader.batch_sampler.indices_of(0)
    [one] = loader.dataset.replaced(asked, used.tolist())
    assert one.picture == f"{folder / 'train.rec'}, record 3" and one.reason == "does not decode (not a picture)"
    assert one.replaced_by.endswith("record 5") and of_batch.tolist() == labels[used].tolist()
    for image, index in zip(images, used.tolist()):
        assert torch.equal(image, loader.dataset.load(index))


@pytest.mark.parametrize("payload, reason", [
    (record(1.5, jpeg(0)), "the label 1.5"), (record(-1, jpeg(0)), "the label -1"), (record(2 ** 24, jpeg(0)), "label"),
    (record(float("nan"), jpeg(0)), "nan"), (record([-2., 1.], jpeg(0)), "-2"), (b"short", "shorter than its header"),
    (b"", "shorter than its header"), (record(0, b""), "neither JPEG nor PNG")])
def test_a_record_that_is_of_no_person_is_skipped_by_name(pictures, rec, payload, reason):
    folder = rec([(10, record(0, pictures[0])), (11, payload), (12, record(1, pictures[1]))])
    found, labels, skipped = read_records_of(folder)
    if "JPEG" in reason:  # its bytes are not looked at before it is needed
        assert len(found) == 3 and not skipped
        with pytest.raises(UserError, match=f"record 11 does not read .*{reason}"):
            found[1]
        return
    [(name, why)] = skipped
    assert name == f"{folder / 'train.rec'}, record 11" and reason in why
    assert contents(found) == pictures[:2] and labels.tolist() == [0, 1]


def test_heads_alone_find_what_whole_records_do(pictures, rec):
    records = [(n, payload) for n, payload in enumerate([*(payload for _, payload in insightface_set(pictures)),
                                                         record(2.5, b"x"), b"", record([1.0], pictures[0] + MAGIC)])]
    folder = rec(records)
    kept = []
    for number, _, payload in read_records(folder / "train.rec"):
        with suppress(ValueError):
            kept += [(number, *unpack(payload)[:2])] if unpack(payload)[1] else []
    found, labels, _ = read_records_of(folder)
    assert list(zip(found.number.tolist(), labels.tolist(), contents(found))) == kept


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("damage, words", [
    (lambda path: path.write_bytes(path.read_bytes()[:-8]), "ends within a record"),
    (lambda path: path.write_bytes(b"JUNK" + path.read_bytes()[4:]), "byte 0: no record begins here"),
    (lambda path: path.write_bytes(path.read_bytes() + b"more"), "train.rec"),
    (lambda path: path.write_bytes(path.read_bytes() + MAGIC), "train.rec"),
    (lambda path: path.unlink(), "does not exist: give --rec"), (lambda path: path.write_bytes(b""), "train.rec")])
def test_a_file_whose_records_cannot_be_told_apart_is_a_user_error(pictures, rec, index, damage, words):
    folder = rec([(number, record(number, pictures[number])) for number in range(3)], index=index)
    damage(folder / "train.rec")
    with pytest.raises(UserError) as caught:
        read_records_of(folder)
    assert words in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_something_else_is_a_user_error(rec, tmp_path):
    for count, words in ((3, "holds no picture of a person"), (MOST_SKIPPED + 2, "more than 1000")):
        shutil.rmtree(tmp_path / "faces;小 明", ignore_errors=True)
        with pytest.raises(UserError, match=words):
            read_records_of(rec([(number, record(0.5, b"sound")) for number in range(count)]))


def test_a_file_that_becomes_shorter_costs_pictures_and_no_run(pictures, rec):
    folder = rec([(number, record(0, pictures[number])) for number in range(3)])
    found, labels, _ = read_records_of(folder)
    content = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(content[:len(content) // 2])
    with pytest.raises(UserError, match=r"train\.rec, record 2 does not read .*download it again"):
        found[2]
    assert FaceDataset(found, labels, [112, 112], True)[2][2] == 0
