"""The annotation file: writing and reading it, and errors in it."""
import re

import pytest
import torch
from scanning import draw

from utils.common.errors import UserError
from utils.data.annotation import (
    check_files_exist,
    check_trainable,
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


@pytest.mark.parametrize("name", ["小 明", "a;b; c", "0;0", " lead", "trail ", "'q\"", "line\u2028separator"])
def test_awkward_names_survive_the_round_trip(tmp_path, name):
    identities = {name: [f"/{name}/1.jpg", f"{name}.png"], "龙": ["x"]}
    write_annotation(identities.items(), tmp_path / "cls_train.txt")
    assert read(tmp_path / "cls_train.txt") == ([*identities[name], "x"], [0, 0, 1])
    assert read_names(tmp_path / "cls_train.txt", 2) == [name, "龙"]


@pytest.mark.parametrize("text", [
    None, b"0;ann\n1;bob\n", b"0;ann\n2;cy\n1;bob\n", b"0;ann\n1;\n2;cy\n", b"0;ann\n1;bob\n2;\xff\n"])
def test_class_names_that_do_not_fit_leave_the_labels(tmp_path, text):
    if text is not None:
        (tmp_path / "cls_classes.txt").write_bytes(text)
    assert read_names(tmp_path / "cls_train.txt", 3) == ["0", "1", "2"]


@pytest.mark.parametrize("text", [
    "0;/a.jpg\r\n1;/小 b.jpg\r\n", "0;/a.jpg\n1;/小 b.jpg",
    "\ufeff0;/a.jpg\r\n\r\n1;/小 b.jpg\r\n\r\n", "00;/a.jpg\n  \n1;/小 b.jpg\n"])
def test_windows_line_ends_byte_order_mark_and_blank_lines_are_read(tmp_path, text):
    assert read(write(tmp_path / "list.txt", text)) == (["/a.jpg", "/小 b.jpg"], [0, 1])


@pytest.mark.parametrize("root", ["/old/set", "C:\\old set"])
def test_images_that_have_moved_are_read_with_their_new_root(tmp_path, root):
    divider = "\\" if "\\" in root else "/"
    images = ["李 雷;x/1.jpg", "bob/a b.png"]
    lines = [f"{label};{root}{divider}{image.replace('/', divider)}\n" for label, image in enumerate(images)]
    paths, labels = read(write(tmp_path / "list.txt", "".join(lines)), tmp_path / "new")
    assert paths == [str(tmp_path / "new" / image) for image in images] and labels == [0, 1]


@pytest.mark.parametrize("line", ["no semicolon", "anna;/c.jpg", "-1;/c.jpg", ";/c.jpg", "1;", " 1;/c.jpg",
                                  "²;/c.jpg", "12345678901;/c.jpg"])
def test_an_invalid_line_is_an_error_that_names_file_line_and_remedy(tmp_path, line):
    path = write(tmp_path / "list.txt", f"0;/a.jpg\n\n{line}\n1;/b.jpg\n")
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line 3: .*txt_annotation\.py") as caught:
        read_annotation(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels, gap", [([1, 2], 0), ([0, 1, 3, 7], 2), ([0, 999_999_999], 1)])
def test_a_gap_in_the_labels_is_an_error_that_names_the_gap(tmp_path, labels, gap):
    path = write(tmp_path / "list.txt", "".join(f"{label};/a.jpg\n" for label in labels))
    with pytest.raises(UserError, match=rf"{max(labels)}.* {gap} is not among them"):
        read_annotation(path)


@pytest.mark.parametrize("content, words", [
    (None, "cannot read"), (b"", "lists no image"), ("0;/a.jpg\n".encode("utf-16"), "line 1"), (b"\0" * 99, "line 1")])
def test_a_file_that_is_no_list_is_an_error(tmp_path, content, words):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{words}.*txt_annotation\.py") as caught:
        read_annotation(path)
    assert str(path) in str(caught.value)


def test_images_that_are_gone_are_found_before_training_but_one_may_be_missing(tmp_path):
    paths = [str(draw(tmp_path / "faces" / f"{number}.png")) for number in range(3)] * 100
    check_files_exist(paths, "list.txt")
    check_files_exist([*paths[:150], "/gone.jpg", *paths[151:]], "list.txt")
    with pytest.raises(UserError, match=r"^list\.txt: 50 of 100 images do not exist, /gone\.jpg .*--datasets-path"):
        check_files_exist([*paths[:150], *["/gone.jpg"] * 150], "list.txt")


def test_training_needs_two_identities_with_two_images_each():
    check_trainable(torch.tensor([0, 1, 1, 2, 2]), "list.txt")
    with pytest.raises(UserError, match=r"list\.txt .*two people"):
        check_trainable(torch.tensor([0] * 5 + [1]), "list.txt")
