"""The annotation file: what is written is read again, and every mistake in it is named."""
import os
import re
import tracemalloc

import numpy as np
import pytest
import torch
from scanning import draw, make_identities, scan

from utils.common.errors import UserError
from utils.data import annotation
from utils.data.annotation import (
    check_files_exist,
    check_trainable,
    classes_path,
    pack,
    read_annotation,
    read_names,
    write_annotation,
)


def read(path, root=None):
    """Return read_annotation's answer as two lists."""
    paths, labels = read_annotation(path, root)
    assert labels.dtype == torch.int32
    return list(paths), labels.tolist()


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def test_scan_then_write_then_read_gives_labels_without_gaps(tmp_path):
    root = make_identities(tmp_path / "faces", ann=2, bob=3, cy=1)
    (root / "aaa_empty").mkdir()  # gets no label
    identities = scan(root).identities
    output = tmp_path / "list" / "cls_train.txt"
    write_annotation(identities.items(), output)
    paths, labels = read(output)
    assert labels == [0, 0, 1, 1, 1, 2]
    assert paths == [image for images in identities.values() for image in images]
    assert all(os.path.isfile(path) for path in paths)
    assert classes_path(output).read_bytes() == b"0;ann\n1;bob\n2;cy\n"


@pytest.mark.parametrize("name", ["two words", "semi;colon", "小明", "a;b; c", "#1", "0;0", " lead", "trail ", "'q\"",
                                  "line\u2028separator", "form\x0cfeed", "next\x85line"])
def test_awkward_names_survive_the_round_trip(tmp_path, name):
    identities = {name: [f"/{name}/1.jpg", f"{name}.png"], "龙": ["x"]}
    write_annotation(identities.items(), tmp_path / "cls_train.txt")
    assert read(tmp_path / "cls_train.txt") == ([*identities[name], "x"], [0, 0, 1])
    assert read_names(tmp_path / "cls_train.txt", 2) == [name, "龙"]


@pytest.mark.parametrize("output, classes", [
    ("cls_train.txt", "cls_classes.txt"), ("casia_train.txt", "casia_classes.txt"),
    ("my.list.txt", "my.list_classes.txt"), ("some where/cls_train.txt", "some where/cls_classes.txt")])
def test_the_class_names_are_beside_the_annotation(tmp_path, output, classes):
    assert classes_path(tmp_path / output) == tmp_path / classes


@pytest.mark.parametrize("text", [
    None, "", "0;ann\n1;bob\n", "0;ann\n1;bob\n2;cy\n3;dan\n", "0;ann\n2;cy\n1;bob\n", "0;ann\n1;\n2;cy\n",
    b"0;ann\n1;bob\n2;\xff\n"])
def test_class_names_that_do_not_fit_leave_the_labels(tmp_path, text):
    if text is not None:
        (tmp_path / "cls_classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_names(tmp_path / "cls_train.txt", 3) == ["0", "1", "2"]


@pytest.mark.parametrize("text", [
    "0;/a.jpg\r\n1;/小 b.jpg\r\n", "\ufeff0;/a.jpg\n1;/小 b.jpg\n", "0;/a.jpg\n1;/小 b.jpg",
    "\ufeff0;/a.jpg\r\n\r\n1;/小 b.jpg\r\n\r\n", "00;/a.jpg\n  \n1;/小 b.jpg\n"])
def test_windows_line_ends_byte_order_mark_and_blank_lines_are_read(tmp_path, text):
    assert read(write(tmp_path / "list.txt", text)) == (["/a.jpg", "/小 b.jpg"], [0, 1])


@pytest.mark.parametrize("root", ["/old/set", "C:\\old set", "old"])
def test_images_that_have_moved_are_read_with_their_new_root(tmp_path, root):
    divider = "\\" if "\\" in root else "/"
    images = ["李 雷;x/1.jpg", "bob/a b.png"]
    lines = [f"{label};{root}{divider}{image.replace('/', divider)}\n" for label, image in enumerate(images)]
    paths, labels = read(write(tmp_path / "list.txt", "".join(lines)), tmp_path / "new")
    assert paths == [str(tmp_path / "new" / image) for image in images] and labels == [0, 1]


@pytest.mark.parametrize("block", [40, 320, 1 << 22])
def test_a_file_is_read_alike_however_it_is_cut_into_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(annotation, "BLOCK_BYTES", block)
    rng, lines, expected = np.random.default_rng(0), [], []
    for label in rng.permutation(np.repeat(np.arange(120), 5)).tolist():
        expected.append((["/a b.jpg", "李/1;2.png", " lead", ";x", "C:\\é.jpg", "\u2028y"][rng.integers(6)], label))
        lines += [f"{label:0{rng.integers(1, 9)}d};{expected[-1][0]}", *[["", "  "][rng.integers(2)]] * rng.integers(2)]
    for end in ("\n", "\r\n"):
        paths, labels = read(write(tmp_path / "list.txt", end.join(lines)))
        assert list(zip(paths, labels)) == expected


def test_a_list_takes_few_bytes_a_line_beside_its_text(tmp_path):
    path = write(tmp_path / "list.txt", "".join(f"{n // 50};/data/faces/{n // 50:07d}/{n:08d}.jpg\n"
                                                for n in range(200_000)))
    tracemalloc.start()
    try:
        read_annotation(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (peak - path.stat().st_size - 5 * annotation.BLOCK_BYTES) / 200_000 < 80


def test_packed_paths_are_a_sequence():
    names = ["/a.jpg", "", "李 雷/1.jpg", "b;c", os.fsdecode(b"b\xff.jpg")]
    paths = pack(names)
    assert list(paths) == names and len(paths) == 5 and paths[-2] == "b;c"
    with pytest.raises(IndexError):
        paths[5]


@pytest.mark.parametrize("line", ["no semicolon", "anna;/c.jpg", "-1;/c.jpg", "1.5;/c.jpg", ";/c.jpg", "1;",
                                  " 1;/c.jpg", "²;/c.jpg", "12345678901;/c.jpg"])
def test_an_invalid_line_is_an_error_that_names_file_line_and_remedy(tmp_path, line):
    path = write(tmp_path / "list.txt", f"0;/a.jpg\n\n{line}\n1;/b.jpg\n")
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line 3: .*txt_annotation\.py") as caught:
        read_annotation(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels, gap", [([0, 2], 1), ([1, 2], 0), ([0, 1, 3, 7], 2), ([0, 999_999_999], 1)])
def test_a_gap_in_the_labels_is_an_error_that_names_the_gap(tmp_path, labels, gap):
    path = write(tmp_path / "list.txt", "".join(f"{label};/a.jpg\n" for label in labels))
    with pytest.raises(UserError, match=rf"{max(labels)}.* {gap} is not among them"):
        read_annotation(path)


@pytest.mark.parametrize("content, words", [
    (None, "does not exist: run txt_annotation.py first"), (b"", "lists no image"), (b"\n\n", "lists no image"),
    (b"\xef\xbb\xbf", "lists no image"), ("0;/José.jpg\n".encode("latin-1"), "as UTF-8 text")])
def test_a_file_that_is_no_list_is_an_error(tmp_path, content, words):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{path}") + ".*" + re.escape(words)):
        read_annotation(path)
    with pytest.raises(UserError, match=f"cannot read {re.escape(str(tmp_path))}"):
        read_annotation(tmp_path)


def test_images_that_are_gone_are_found_before_training_but_one_may_be_missing(tmp_path):
    paths = [str(draw(tmp_path / "faces" / f"{number}.png")) for number in range(3)] * 100
    check_files_exist(paths, "list.txt")
    check_files_exist([*paths[:150], "/gone.jpg", *paths[151:]], "list.txt")
    with pytest.raises(UserError, match=r"^list\.txt: /gone\.jpg does not exist, nor do 49 of 99 .*--datasets-path"):
        check_files_exist([*paths[:150], *["/gone.jpg"] * 150], "list.txt")


@pytest.mark.parametrize("labels", [[0, 0], [0, 0, 1, 1], [0, 1, 1, 2, 2], [0] * 5 + [1], [0, 1, 2, 3]])
def test_training_needs_two_identities_with_two_images_each(labels):
    if labels.count(1) >= 2:
        check_trainable(torch.tensor(labels), "list.txt")
    else:
        with pytest.raises(UserError, match=r"list\.txt .*two people"):
            check_trainable(torch.tensor(labels), "list.txt")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_annotation_alone(tmp_path, monkeypatch, step):
    output = write(tmp_path / "cls_train.txt", "0;/precious.jpg\n")

    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(f"utils.common.files.os.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_annotation([("ann", ["/a.jpg"])], output)
    assert output.read_text() == "0;/precious.jpg\n"
    assert os.listdir(tmp_path) == ["cls_train.txt"]
