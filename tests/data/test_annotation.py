"""utils/data/annotation.py and txt_annotation.py: from a folder of faces to a list that training can trust."""
import os
import re
import shutil

import numpy as np
import pytest
from conftest import assert_user_error
from PIL import Image

from utils.data.annotation import (
    check_trainable,
    classes_path,
    read_annotation,
    read_names,
    scan_folder,
    write_annotation,
)
from utils.machine.errors import UserError


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def make_people(root, **pictures):
    for name, count in pictures.items():
        for number in range(count):
            draw(root / name / f"{number}.png", number)
    return root


def scan(root):
    return scan_folder(root, lambda iterable, total: iterable)


def reasons(scanned, root):
    return {path.relative_to(root).as_posix(): reason for path, reason in scanned.skipped}


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def test_labels_go_by_sorted_folder_name_and_paths_are_sorted(tmp_path):
    for name in ("zoe", "Adam", "bob", "10", "9", "李雷"):
        for file in ("b.png", "a.png", "B.png"):
            draw(tmp_path / name / file)
    people = scan(tmp_path).people
    assert list(people) == ["10", "9", "Adam", "bob", "zoe", "李雷"]
    assert people["bob"] == [str(tmp_path / "bob" / file) for file in ("B.png", "a.png", "b.png")]
    assert scan(tmp_path).people == people


def test_scan_then_write_then_read_gives_labels_without_gaps(tmp_path):
    root = make_people(tmp_path / "faces", ann=2, bob=3, cy=1)
    (root / "aaa_empty").mkdir()  # takes no label
    people = scan(root).people
    output = tmp_path / "list" / "cls_train.txt"
    write_annotation(people, output)
    paths, labels = read_annotation(output)
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
    write_annotation(scan(root).people, tmp_path / "cls_train.txt")
    paths, labels = read_annotation(tmp_path / "cls_train.txt")
    assert paths[:2] == expected and labels == [0, 0, 1]


@pytest.mark.parametrize("suffix", ["jpg", "JPG", "jpeg", "JPEG", "jfif", "png", "PNG", "bmp", "webp", "tif", "TIFF"])
def test_every_picture_extension_is_taken_in_any_case(tmp_path, suffix):
    draw(tmp_path / "ann" / f"face.{suffix}")
    assert [os.path.basename(path) for path in scan(tmp_path).people["ann"]] == [f"face.{suffix}"]


def test_strays_never_become_classes_and_each_is_told_with_its_reason(tmp_path):
    make_people(tmp_path, ann=2, bob=2)
    for folder in (tmp_path, tmp_path / "ann"):
        write(folder / "README.md", "notes")
        write(folder / "Thumbs.db", "\0")
        write(folder / ".DS_Store", "\0")
    draw(tmp_path / "ann" / ".hidden.png")
    draw(tmp_path / "ann" / "nested" / "face.png")
    draw(tmp_path / ".cache" / "face.png")
    draw(tmp_path / "face beside the folders.png")
    (tmp_path / "cy").mkdir()
    (tmp_path / "dee").mkdir()
    write(tmp_path / "dee" / "only.txt", "x")
    write(tmp_path / "bob" / "empty.jpg", "")
    write(tmp_path / "bob" / "text.jpg", "not a picture")
    whole = draw(tmp_path / "bob" / "truncated.jpg").read_bytes()
    (tmp_path / "bob" / "truncated.jpg").write_bytes(whole[:-100])

    scanned = scan(tmp_path)
    assert {name: len(images) for name, images in scanned.people.items()} == {"ann": 2, "bob": 2}
    found = reasons(scanned, tmp_path)
    assert found.keys() == {
        "README.md", "Thumbs.db", ".DS_Store", "face beside the folders.png", ".cache", "cy", "dee", "dee/only.txt",
        "ann/README.md", "ann/Thumbs.db", "ann/.DS_Store", "ann/.hidden.png", "ann/nested",
        "bob/empty.jpg", "bob/text.jpg", "bob/truncated.jpg"}
    assert "beside" in found["README.md"] and "hidden" in found[".cache"] and "folder" in found["ann/nested"]
    assert "no picture" in found["cy"] and "no picture" in found["dee"]
    assert "truncated" in found["bob/truncated.jpg"] and "not a picture" in found["bob/text.jpg"]
    assert str(tmp_path) not in "".join(found.values())


@pytest.mark.parametrize("break_", ["\n", "\r", "\r\n"])
def test_a_line_break_in_a_name_is_skipped(tmp_path, break_):
    make_people(tmp_path, ann=1)
    draw(tmp_path / "ann" / f"a{break_}b.png")
    draw(tmp_path / f"bob{break_}by" / "face.png")
    scanned = scan(tmp_path)
    assert scanned.people == {"ann": [str(tmp_path / "ann" / "0.png")]}
    assert [reason for _, reason in scanned.skipped if "line break" in reason] == ["a line break in the name"] * 2


def test_a_dangling_link_is_skipped_and_a_link_to_a_folder_followed(tmp_path):
    make_people(tmp_path / "elsewhere", ann=1)
    root = make_people(tmp_path / "faces", bob=1)
    (root / "ann").symlink_to(tmp_path / "elsewhere" / "ann")
    (root / "bob" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    scanned = scan(root)
    assert list(scanned.people) == ["ann", "bob"]
    assert reasons(scanned, root) == {"bob/gone.jpg": "does not exist"}


def test_progress_sees_every_picture(tmp_path):
    seen = []
    make_people(tmp_path, ann=2, bob=3)
    scan_folder(tmp_path, lambda iterable, total: (seen.append((item, total)) or item for item in iterable))
    assert len(seen) == 5 and all(total == 5 for _, total in seen)


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
    write_annotation(people, tmp_path / "cls_train.txt")
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
    assert read_annotation(write(tmp_path / "list.txt", text)) == (["/a.jpg", "/小 b.jpg"], [0, 1])


@pytest.mark.parametrize("line", [
    "no semicolon", "anna;/c.jpg", "-1;/c.jpg", "1.5;/c.jpg", ";/c.jpg", "1;", "1;  ", "²;/c.jpg"])
def test_a_bad_line_is_an_error_that_names_file_line_and_remedy(tmp_path, line):
    path = write(tmp_path / "list.txt", f"0;/a.jpg\n\n{line}\n1;/b.jpg\n")
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line 3: .*txt_annotation\.py") as caught:
        read_annotation(path)
    assert "\n" not in str(caught.value)


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
        monkeypatch.setattr(f"utils.machine.files.os.{step}", fail)
        with pytest.raises(KeyboardInterrupt):
            write_annotation({"ann": ["/a.jpg"]}, output)
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
    paths, labels = read_annotation(tmp_path / "cls_train.txt")
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
