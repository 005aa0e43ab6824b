"""insightface's train.rec and train.idx, written here byte by byte, and txt_annotation.py --rec."""
import io
import os
import struct
from pathlib import Path

import pytest
from conftest import assert_user_error, jpeg
from PIL import Image
from recording import insightface_set, record, write_set
from scanning import Bar

from utils.common.errors import UserError
from utils.data.annotation import check_trainable, read_annotation
from utils.data.records import MOST_SKIPPED, NOTE, extract


@pytest.fixture(scope="module")
def pictures():
    """Six small JPEG files."""
    return [jpeg(seed) for seed in range(6)]


@pytest.fixture
def rec(tmp_path):
    """rec([(number, payload), ...]) -> a folder with train.rec, and train.idx unless a number is None."""
    def write(records, name="faces;小 明"):
        return write_set(tmp_path / name, records, index=None not in dict(records))
    return write


def tree(folder):
    """{path within the folder: content} without the note."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != NOTE}


@pytest.mark.parametrize("order", ["as written", "header first", "no index"])
def test_pictures_come_out_byte_by_byte_and_records_without_one_do_not(tmp_path, pictures, rec, order):
    records = insightface_set(pictures)
    if order != "as written":
        records.insert(0, records.pop(5))
    folder = rec(records if order != "no index" else [(None, payload) for _, payload in records])
    assert extract(folder, tmp_path / "out", Bar) == (5, 0, [])
    assert tree(tmp_path / "out") == {f"{0 if number < 4 else 1}/{number}.jpg": pictures[number]
                                      for number in range(1, 6)}


def test_a_file_without_a_header_record_labels_behind_the_header_and_png_are_read(tmp_path, pictures, rec):
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "png")
    folder = rec([(0, record(7, pictures[0])), (1, record([9.0, 35.0, 1.0], pictures[1])),
                  (2, record(2 ** 24 - 1, png.getvalue()))])
    assert extract(folder, tmp_path / "out", Bar) == (3, 0, [])
    assert tree(tmp_path / "out") == {"7/0.jpg": pictures[0], "9/1.jpg": pictures[1], "16777215/2.png": png.getvalue()}


@pytest.mark.parametrize("index", [True, False])
def test_a_payload_with_the_magic_number_is_put_together_again(tmp_path, pictures, rec, index):
    magic = bytes.fromhex("0a23d7ce")
    contents = [pictures[0] + bytes(-len(pictures[0]) % 4) + tail for tail in (
        magic, magic * 3 + b"ab", b"abcd" + magic + b"efgh" + magic, b"a" + magic, magic[:3], b"12345" + magic * 2)]
    folder = rec([(number if index else None, record(number, content)) for number, content in enumerate(contents)])
    assert (folder / "train.rec").read_bytes().count(magic) > len(contents) + 5
    assert extract(folder, tmp_path / "out", Bar) == (6, 0, [])
    assert tree(tmp_path / "out") == {f"{n}/{n}.jpg": content for n, content in enumerate(contents)}


def test_only_what_the_index_lists_is_read_in_the_order_of_the_file(tmp_path, pictures, rec):
    folder = rec([(number, record(0, pictures[number])) for number in range(6)])
    lines = (folder / "train.idx").read_text().splitlines()
    (folder / "train.idx").write_text("\n".join([lines[5], lines[1], lines[3]]))
    assert extract(folder, tmp_path / "out", Bar) == (3, 0, [])
    assert tree(tmp_path / "out").keys() == {"0/1.jpg", "0/3.jpg", "0/5.jpg"}


def test_an_interrupted_extraction_goes_on_and_writes_only_what_is_missing_or_short(tmp_path, pictures, rec):
    folder, out = rec([(number, record(number % 2, pictures[number])) for number in range(6)]), tmp_path / "out"

    class Interrupting(Bar):
        def update(self, count):
            super().update(count)
            if self.n > self.total / 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(folder, out, Interrupting)
    begun = tree(out)
    assert 0 < len(begun) < 6 and all(name.endswith(".jpg") for name in begun)
    kept, short = sorted(begun)[:2]
    (out / short).write_bytes(begun[short][:-1])
    os.utime(out / kept, (1, 1))
    assert extract(folder, out, Bar) == (6, len(begun) - 1, [])
    assert tree(out) == {f"{number % 2}/{number}.jpg": pictures[number] for number in range(6)}
    assert (out / kept).stat().st_mtime == 1
    assert extract(folder, out, Bar) == (6, 6, [])


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path, pictures, rec):
    first, second = (rec([(0, record(0, pictures[0])), (1, record(0, pictures[n] + b"more" * n))], f"set{n}")
                     for n in (1, 2))
    (tmp_path / "mine" / "0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine is not empty .*--datasets-path"):
        extract(first, tmp_path / "mine", Bar)
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["0"]
    (tmp_path / "empty").mkdir()
    assert extract(first, tmp_path / "empty", Bar) == (2, 0, [])
    with pytest.raises(UserError, match=r"empty holds pictures of train.rec .*--datasets-path"):
        extract(second, tmp_path / "empty", Bar)
    (first / "train.idx").unlink()
    with pytest.raises(UserError, match=r"numbered by train.idx, this is .* numbered by place"):
        extract(first, tmp_path / "empty", Bar)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="file"):
        extract(first, tmp_path / "file", Bar)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("payload, reason", [
    (record(1.5, jpeg(0)), "the label 1.5"), (record(-1, jpeg(0)), "the label -1"), (record(2 ** 24, jpeg(0)), "label"),
    (record(float("nan"), jpeg(0)), "nan"), (record(float("inf"), jpeg(0)), "inf"), (record([-2., 1.], jpeg(0)), "-2"),
    (record(0, b"text"), "neither JPEG nor PNG"), (record(0, b""), "neither JPEG nor PNG"),
    (b"short", "shorter than its header"), (b"", "shorter than its header"),
    (struct.pack("<IfQQ", 1 << 31, 0, 0, 0) + jpeg(0), "shorter than its labels")])
def test_a_bad_record_is_skipped_by_name_and_the_others_are_kept(tmp_path, pictures, rec, payload, reason):
    folder = rec([(10, record(0, pictures[0])), (11, payload), (12, record(1, pictures[1]))])
    pictures_found, there, skipped = extract(folder, tmp_path / "out", Bar)
    assert (pictures_found, there) == (2, 0) and tree(tmp_path / "out").keys() == {"0/10.jpg", "1/12.jpg"}
    [(name, why)] = skipped
    assert name == f"{folder / 'train.rec'}, record 11" and reason in why


@pytest.mark.parametrize("count, words", [(3, "holds no picture of a person"), (MOST_SKIPPED + 2, "more than 1000")])
def test_a_file_of_something_else_is_a_user_error(tmp_path, rec, count, words):
    folder = rec([(number, record(0.5, b"sound")) for number in range(count)])
    with pytest.raises(UserError, match=rf"train\.rec.* {words}"):
        extract(folder, tmp_path / "out", Bar)


def cut(records, index):
    records.write_bytes(records.read_bytes()[:-8])


def cut_within_a_head(records, index):
    index.unlink()
    records.write_bytes(records.read_bytes() + b"\x0a\x23\xd7\xce")


def cut_between_records(records, index):
    records.write_bytes(records.read_bytes()[:int(index.read_text().split()[-1])])


def cut_index(records, index):
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))


def shift(records, index):
    index.write_text(index.read_text().replace("\t0\n", "\t4\n"))


def overwrite(records, index):
    index.unlink()
    records.write_bytes(b"JUNK" + records.read_bytes()[4:])


def set_kind(kind):
    def change(records, index):
        content = bytearray(records.read_bytes())
        content[7] = content[7] & 31 | kind << 5
        records.write_bytes(content)
    return change


def write_index(text):
    return lambda records, index: index.write_text(text)


@pytest.mark.parametrize("damage, words", [
    (cut, "the file ends within a record: download it again"), (cut_within_a_head, "the file ends within a record"),
    (cut_between_records, "train.idx tells of a record at byte"), (cut_index, "train.idx ends before"),
    (shift, "byte 4: no record begins here"),
    (overwrite, "byte 0: no record begins here"), (set_kind(3), "byte 0: a part of kind 3"),
    (set_kind(1), "byte 0: a part of kind 0"), (set_kind(4), "kind 4"),
    (write_index(""), "train.idx is not `number<TAB>offset` a line"), (write_index("1\n2\n"), "train.idx is not"),
    (write_index("1\tx\n"), "train.idx is not"), (write_index("1\t2\t3\n"), "train.idx is not"),
    (write_index("1\t-8\n"), "at byte -8"), (write_index(f"1\t{10 ** 15}\n"), f"at byte {10 ** 15}"),
    (write_index("1\t0\n1\t0\n"), "train.idx has the number 1 twice"),
    (lambda records, index: records.unlink(), "train.rec does not exist: give --rec")])
def test_a_file_whose_records_cannot_be_told_apart_is_a_user_error(tmp_path, pictures, rec, recwarn, damage, words):
    folder = rec([(number, record(0, pictures[number])) for number in range(3)])
    damage(folder / "train.rec", folder / "train.idx")
    with pytest.raises(UserError) as caught:
        extract(folder, tmp_path / "out", Bar)
    assert words in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not recwarn.list


def test_rec_gives_an_annotation_that_training_takes(run_script, shared, rec, tmp_path):
    people = sorted((shared / "faces_train").iterdir())[:2]
    faces = [(label, path.read_bytes()) for label, person in enumerate(people) for path in sorted(person.iterdir())[:3]]
    records = [(number, record(label, face, number)) for number, (label, face) in enumerate(faces, 1)]
    folder = rec([(0, record([7.0, 7.0], b"")), *records, (8, record(3, b"text"))])
    for there in (0, 6):
        result = run_script("txt_annotation.py", "--rec", folder, "--datasets-path", "out")
        assert result.returncode == 0 and result.stderr == "", result.stderr
        assert f"6 pictures of {folder} in out, {there} of them from before" in result.stdout
        assert f"skipped {folder / 'train.rec'}, record 8: neither JPEG nor PNG" in result.stdout
        assert "2 people, 6 images, 3 / 3 / 3 images per person (min / median / max), 0 skipped" in result.stdout
    paths, labels = read_annotation(tmp_path / "cls_train.txt")
    check_trainable(labels, "cls_train.txt")
    assert [(label, Path(path).read_bytes()) for label, path in zip(labels.tolist(), paths)] == faces


def test_rec_that_is_not_there_keeps_the_old_list(run_script, tmp_path):
    (tmp_path / "cls_train.txt").write_text("0;/precious.jpg\n")
    assert_user_error(run_script("txt_annotation.py", "--rec", "gone"), "gone/train.rec", "--rec")
    assert [path.name for path in tmp_path.iterdir()] == ["cls_train.txt"]
