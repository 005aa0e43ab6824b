"""Training straight from insightface's train.rec and train.idx."""
import io
import pickle

import pytest
import torch
from conftest import jpeg
from PIL import Image
from recording import insightface_set, record, write_set

from utils.common.errors import UserError
from utils.data.dataset import FaceDataset
from utils.data.records import read_records

MAGIC = bytes.fromhex("0a23d7ce")


@pytest.fixture(scope="module")
def images():
    """Six small JPEG files."""
    return [jpeg(seed) for seed in range(6)]


@pytest.fixture
def rec(tmp_path):
    return lambda records: write_set(tmp_path / "faces;小 明", records)


def contents(found):
    return [found[index].getvalue() for index in range(len(found))]


def test_the_images_and_labels_are_those_of_the_records(images, rec):
    folder = rec(insightface_set(images))
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(reversed(lines)))  # the images keep the order of train.rec
    found, labels, _ = read_records(folder)
    assert contents(found) == images[1:6]
    assert labels.tolist() == [0, 0, 0, 1, 1] and labels.dtype == torch.int32
    assert found[3].filename == f"{folder / 'train.rec'}, byte {found.offsets[3]}"
    assert contents(pickle.loads(pickle.dumps(found))) == contents(found)


def test_records_in_parts_several_labels_and_png_are_read(images, rec):
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "png")
    split = [images[0] + bytes(-len(images[0]) % 4) + tail for tail in (
        MAGIC, MAGIC * 3 + b"ab", b"abcd" + MAGIC + b"efgh" + MAGIC)]
    folder = rec([*((n, record(n, content)) for n, content in enumerate(split)), (3, record([3., 9.], png.getvalue())),
                  (4, record([4.0, 35.0, 1.0], images[1]))])
    found, labels, _ = read_records(folder)
    assert contents(found) == [*split, png.getvalue(), images[1]] and labels.tolist() == [0, 1, 2, 3, 4]
    assert FaceDataset(found, labels, torch.arange(5), [112, 112])[3][0].shape == (112, 112, 3)


@pytest.mark.parametrize("change", [lambda images: [(1, record(0, images[0])), (2, record(0, images[1]))],
                                    lambda images: [(1, record(0, images[0])), (2, record(1, images[2]))]])
def test_the_hash_differs_by_labels_and_by_images(images, rec, change):
    before = read_records(rec([(1, record(0, images[0])), (2, record(1, images[1]))]))[2]
    assert before != read_records(rec(change(images)))[2]


@pytest.mark.parametrize("damage, words", [
    (lambda rec, idx: rec.write_bytes(rec.read_bytes()[:-8]), "train.rec, byte"),
    (lambda rec, idx: rec.write_bytes(b"JUNK" + rec.read_bytes()[4:]), "train.rec, byte 0"),
    (lambda rec, idx: rec.write_bytes(b""), "download both again"),
    (lambda rec, idx: idx.unlink(), "train.idx not found"),
    (lambda rec, idx: idx.write_text(idx.read_text()[:-8]), "byte"),
    (lambda rec, idx: idx.write_text("0\t0\n1\t999999999\n"), "byte"),
    (lambda rec, idx: idx.write_bytes(b"\xff\xfe"), "does not hold insightface's train.rec and train.idx")])
def test_files_that_are_damaged_or_do_not_fit_are_a_user_error(images, rec, damage, words):
    folder = rec([(number, record(number, images[number])) for number in range(3)])
    damage(folder / "train.rec", folder / "train.idx")
    with pytest.raises(UserError) as caught:
        read_records(folder)
    assert words in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_images_is_a_user_error(rec):
    with pytest.raises(UserError, match="holds no image"):
        read_records(rec([(number, record(0, b"")) for number in range(3)]))
