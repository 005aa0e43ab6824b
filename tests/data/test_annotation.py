"""utils/data/annotation.py and txt_annotation.py: from a folder of faces to a list that training can trust."""
import os
import re
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import assert_user_error
from scanning import draw, make_people, scan

from utils.common.errors import UserError
from utils.data import annotation
from utils.data.annotation import (
    check_there,
    check_trainable,
    classes_path,
    pack,
    read_annotation,
    read_names,
    write_annotation,
)


def read(path, root=None):
    """read_annotation's answer as two lists."""
    paths, labels = read_annotation(path, root)
    assert labels.dtype == torch.int32
    return list(paths), labels.tolist()


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def test_scan_then_write_then_read_gives_labels_without_gaps(tmp_path):
    root = make_people(tmp_path / "faces", ann=2, bob=3, cy=1)
    (root / "aaa_empty").mkdir()  # takes no label
    people = scan(root).people
    output = tmp_path / "list" / "cls_train.txt"
    write_annotation(people.items(), output)
    paths, labels = read(output)
    assert labels == [0, 0, 1, 1, 1, 2]
    assert paths == [image for images in people.values() for image in images]
    assert all(os.path.isabs(path) and os.path.isfile(path) for path in paths)
    assert classes_path(output).read_bytes() == b"0;ann\n1;bob\n2;cy\n"


@pytest.mark.parametrize("name", ["two words", "semi;colon", "小明", "a;b; c", "#1", "0;0", " lead", "trail ", "'q\"",
                                  "line\u2028separator", "form\x0cfeed", "next\x85line"])
def test_awkward_names_survive_the_round_trip(tmp_path, name):
    root = tmp_path / "faces"
    expected = [str(draw(root / name / f"{name}.{suffix}")) for suffix in ("JPG", "Png")]
    draw(root / "龙 comes last" / "x.bmp")
    write_annotation(scan(root).people.items(), tmp_path / "cls_train.txt")
    paths, labels = read(tmp_path / "cls_train.txt")
    assert paths[:2] == expected and labels == [0, 0, 1]


@pytest.mark.parametrize("output, classes", [
    ("cls_train.txt", "cls_classes.txt"), ("casia_train.txt", "casia_classes.txt"),
    ("my.list.txt", "my.list_classes.txt"), ("some where/cls_train.txt", "some where/cls_classes.txt")])
def test_the_class_list_lies_beside_the_annotation(tmp_path, output, classes):
    assert classes_path(tmp_path / output) == tmp_path / classes


@pytest.mark.parametrize("text", ["0;ann\n1;a;b\n2;王小明\n", "\ufeff0;ann\n1;a;b\n2;王小明"])
def test_labels_have_the_names_of_the_class_list(tmp_path, text):
    write(tmp_path / "cls_classes.txt", text)
    assert read_names(tmp_path / "cls_train.txt", 3) == ["ann", "a;b", "王小明"]


def test_what_is_written_is_read_again(tmp_path):
    people = {"ann": ["a.jpg"], " a; b ": ["b.jpg"], "\u2028王": ["c.jpg"]}
    write_annotation(people.items(), tmp_path / "cls_train.txt")
    assert read_names(tmp_path / "cls_train.txt", 3) == list(people)


@pytest.mark.parametrize("text", [
    None, "", "0;ann\n1;bob\n", "0;ann\n1;bob\n2;cy\n3;dan\n", "1;ann\n2;bob\n3;cy\n", "0;ann\n2;cy\n1;bob\n",
    "ann\nbob\ncy\n", "0;ann\n1;\n2;cy\n", b"0;ann\n1;bob\n2;\xff\n"])
def test_a_class_list_that_does_not_fit_leaves_the_labels_as_they_are(tmp_path, text):
    if text is not None:
        (tmp_path / "cls_classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_names(tmp_path / "cls_train.txt", 3) == ["0", "1", "2"]


@pytest.mark.parametrize("text", [
    "0;/a.jpg\r\n1;/小 b.jpg\r\n", "\ufeff0;/a.jpg\n1;/小 b.jpg\n", "0;/a.jpg\n1;/小 b.jpg",
    "\ufeff0;/a.jpg\r\n\r\n1;/小 b.jpg\r\n\r\n", "00;/a.jpg\n 1 ;/小 b.jpg\n"])
def test_windows_line_ends_byte_order_mark_and_blank_lines_read_fine(tmp_path, text):
    assert read(write(tmp_path / "list.txt", text)) == (["/a.jpg", "/小 b.jpg"], [0, 1])


@pytest.mark.parametrize("root", ["/old/set", "C:\\old set", "old"])
def test_a_list_of_pictures_that_have_moved_is_read_with_their_new_root(tmp_path, root):
    divider = "\\" if "\\" in root else "/"
    pictures = ["李 雷;x/1.jpg", "bob/a b.png"]
    listed = [f"{label};{root}{divider}{picture.replace('/', divider)}\n" for label, picture in enumerate(pictures)]
    paths, labels = read(write(tmp_path / "list.txt", "".join(listed)), tmp_path / "new")
    assert paths == [str(tmp_path / "new" / picture) for picture in pictures] and labels == [0, 1]


def test_missing_pictures_are_found_at_the_start_and_one_of_many_may_be_missing(tmp_path):
    paths = [str(draw(tmp_path / "faces" / f"{number}.png")) for number in range(3)] * 100
    path = write(tmp_path / "list.txt", "".join(f"\r\n0;{picture}\r\n" for picture in paths))
    check_there(paths, path, 1e-3)
    check_there([*paths[:150], "/gone.jpg", *paths[151:]], path, 1e-3)
    with pytest.raises(UserError, match=r"list\.txt, line 302: /gone\.jpg does not exist, nor do 49 of 99 others .*"
                                        "--datasets-path"):
        check_there([*paths[:150], *["/gone.jpg"] * 150], path, 1e-3)
    check_there([*paths[:150], *["/gone.jpg"] * 150], path, 0.5)
    with pytest.raises(UserError, match="line 2: /gone"):
        check_there(["/gone.jpg", *paths[1:]], path, 0)


@pytest.mark.parametrize("line", [
    "no semicolon", "anna;/c.jpg", "-1;/c.jpg", "1.5;/c.jpg", ";/c.jpg", "1;", "1;  ", "²;/c.jpg"])
def test_a_bad_line_is_an_error_that_names_file_line_and_remedy(tmp_path, line):
    path = write(tmp_path / "list.txt", f"0;/a.jpg\n\n{line}\n1;/b.jpg\n")
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line 3: .*txt_annotation\.py") as caught:
        read_annotation(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_lines_of_every_kind_are_read_alike_however_the_file_is_cut(tmp_path, monkeypatch, block):
    monkeypatch.setattr(annotation, "BLOCK", block)
    rng, lines, expected = np.random.default_rng(0), [], []
    for label in rng.permutation(np.repeat(np.arange(120), 5)).tolist():
        path = ["/a b.jpg", "李/1;2.png", " lead", ";x", "C:\\é.jpg", "/" + "x" * 300, "\u2028y"][rng.integers(7)]
        expected.append((path, label))
        lines.append([f"{label};{path}", f" {label} ;{path}", f"{label:010d};{path}", f"٣{label};{path}"][rng.choice(
            4, p=[.7, .1, .1, .1])])
        if lines[-1].startswith("٣"):
            expected[-1] = (path, int(f"3{label}"))
        lines += [["", "  ", "\t"][rng.integers(3)]] * (rng.random() < 0.1)
    for end in ("\n", "\r\n", "\r"):
        monkeypatch.setattr(annotation, "check_gaps", lambda labels, path: None)
        paths, labels = read(write(tmp_path / "list.txt", end.join(lines) + end * (end != "\r\n")))
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
    assert (peak - path.stat().st_size - 40 * annotation.BLOCK / 8) / 200_000 < 80


def test_packed_paths_are_a_sequence_and_their_subsets_share_the_text():
    names = ["/a.jpg", "", "李 雷/1.jpg", "b;c"]
    paths = pack(names)
    assert list(paths) == names and len(paths) == 4 and paths[-1] == "b;c"
    chosen = paths.subset(torch.tensor([2, 0, 2]))
    assert list(chosen) == [names[2], names[0], names[2]] and chosen.text.data_ptr() == paths.text.data_ptr()
    with pytest.raises(IndexError):
        paths[4]


@pytest.mark.parametrize("labels, gap", [([0, 2], 1), ([1, 2], 0), ([0, 1, 3, 7], 2)])
def test_a_gap_in_the_labels_is_an_error_that_names_the_gap(tmp_path, labels, gap):
    path = write(tmp_path / "list.txt", "".join(f"{label};/a.jpg\n" for label in labels))
    with pytest.raises(UserError, match=rf"{max(labels)}.* {gap} is not among them"):
        read_annotation(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_annotation_is_an_error(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"list\.txt holds no picture.*txt_annotation\.py"):
        read_annotation(tmp_path / "list.txt")


def test_a_missing_annotation_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"list\.txt does not exist: run txt_annotation\.py first"):
        read_annotation(tmp_path / "list.txt")


def test_an_annotation_that_is_no_utf8_text_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_bytes("0;/José.jpg\n".encode("latin-1"))
    for path in (tmp_path / "list.txt", tmp_path):  # a folder is none either
        with pytest.raises(UserError, match=re.escape(str(path))):
            read_annotation(path)


@pytest.mark.parametrize("labels", [[0, 0], [0, 0, 1, 1], [0, 1, 1, 2, 2], [0] * 5 + [1], [0, 1, 2, 3]])
def test_training_needs_two_people_with_two_pictures_each(labels):
    if labels.count(1) >= 2:
        check_trainable(labels, "list.txt")
    else:
        with pytest.raises(UserError, match=r"list\.txt .*two people"):
            check_trainable(labels, "list.txt")


def test_an_interrupted_write_leaves_the_old_annotation_and_no_rubbish(tmp_path, monkeypatch):
    output = write(tmp_path / "cls_train.txt", "0;/precious.jpg\n")

    def fail(*_):
        raise KeyboardInterrupt
    for step in ("fsync", "replace"):
        monkeypatch.setattr(f"utils.common.files.os.{step}", fail)
        with pytest.raises(KeyboardInterrupt):
            write_annotation([("ann", ["/a.jpg"])], output)
        monkeypatch.undo()
        assert output.read_text() == "0;/precious.jpg\n"
        assert os.listdir(tmp_path) == ["cls_train.txt"]


def test_script_writes_the_list_and_sums_up(run_script, tmp_path):
    root = make_people(tmp_path / "datasets", ann=1, **{"bob; the 小明": 2, "cy": 6})
    write(root / "README.md", "notes")
    write(root / "cy" / "broken.JPG", "not a picture")
    (root / "dee").mkdir()
    result = run_script("txt_annotation.py")
    assert result.returncode == 0, result.stderr
    assert "3 people, 9 images, 1 / 2 / 6 images per person (min / median / max), 3 skipped" in result.stdout
    for name, reason in (("README.md", "a file beside"), ("cy/broken.JPG", "not a picture"), ("dee", "no picture")):
        assert re.search(rf"^skipped {re.escape(str(root / name))}: .*{reason}", result.stdout, re.MULTILINE)
    assert "wrote cls_train.txt and cls_classes.txt" in result.stdout
    written = (tmp_path / "cls_train.txt").read_bytes()
    assert b"\r" not in written and written.endswith(b".png\n") and not written.startswith(b"\xef")
    assert written.decode("utf-8").count("\n") == 9
    assert (tmp_path / "cls_classes.txt").read_text(encoding="utf-8") == "0;ann\n1;bob; the 小明\n2;cy\n"
    paths, labels = read(tmp_path / "cls_train.txt")
    assert labels == [0, 1, 1, 2, 2, 2, 2, 2, 2] and all(os.path.isfile(path) for path in paths)

    run_script("txt_annotation.py", "--datasets-path", root, "--output", "new folder/second_train.txt")
    assert (tmp_path / "new folder" / "second_train.txt").read_bytes() == written
    assert (tmp_path / "new folder" / "second_classes.txt").is_file()


def test_script_reads_real_faces(run_script, shared, tmp_path):
    for person in sorted(path for path in (shared / "faces_train").iterdir() if path.is_dir())[:3]:
        (tmp_path / "datasets" / person.name).mkdir(parents=True)
        for picture in sorted(person.iterdir())[:4]:
            shutil.copy(picture, tmp_path / "datasets" / person.name)
    result = run_script("txt_annotation.py")
    assert "3 people, 12 images, 4 / 4 / 4 images" in result.stdout and "0 skipped" in result.stdout


def test_script_says_a_name_that_is_not_valid_unicode(run_script, tmp_path, monkeypatch):
    make_people(tmp_path / "datasets", ann=2)
    try:
        write(tmp_path / "datasets" / "ann" / "bad\udcff.png", "x")
    except OSError:
        pytest.skip("this file system allows valid Unicode only")
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as under most desktop locales
    result = run_script("txt_annotation.py")
    assert result.returncode == 0, result.stderr
    assert "not valid Unicode" in result.stdout and "1 people, 2 images" in result.stdout


def test_script_without_a_folder_of_faces_is_a_user_error(run_script, tmp_path):
    assert_user_error(run_script("txt_annotation.py"), tmp_path / "datasets", "--datasets-path")
    write(tmp_path / "file", "x")
    assert_user_error(run_script("txt_annotation.py", "--datasets-path", "file"), "file", "folder")


def test_script_keeps_the_old_list_when_no_person_is_found(run_script, tmp_path):
    write(tmp_path / "cls_train.txt", "0;/precious.jpg\n")
    draw(tmp_path / "datasets" / "face beside the folders.png")
    assert_user_error(run_script("txt_annotation.py"), "datasets", "one folder per person")
    assert (tmp_path / "cls_train.txt").read_text() == "0;/precious.jpg\n"


def test_script_that_cannot_write_is_a_user_error_and_leaves_everything(run_script, tmp_path):
    make_people(tmp_path / "datasets", ann=1)
    (tmp_path / "a folder").mkdir()
    write(tmp_path / "a folder" / "kept.txt", "kept")
    assert_user_error(run_script("txt_annotation.py", "--output", "a folder"), "a folder")
    assert sorted(os.listdir(tmp_path)) == ["a folder", "datasets"]
    assert os.listdir(tmp_path / "a folder") == ["kept.txt"]


@pytest.mark.parametrize("output, named", [(".", "."), ("", ""), ("a file/list.txt", "a file/list.txt"),
                                           ("x" * 300, "xxx")], ids=["dot", "empty", "in a file", "long"])
def test_script_with_an_output_that_cannot_be_is_a_user_error(run_script, tmp_path, output, named):
    make_people(tmp_path / "datasets", ann=1)
    write(tmp_path / "a file", "kept")
    assert_user_error(run_script("txt_annotation.py", "--output", output), named)
    assert sorted(os.listdir(tmp_path)) == ["a file", "datasets"]
    assert (tmp_path / "a file").read_text() == "kept"
