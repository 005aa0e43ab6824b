"""utils/data/scan.py: what a folder of faces holds, and what looks like a mistake in it."""
import os
import shutil
import signal
import tracemalloc
from itertools import islice

import pytest
from PIL import Image
from scanning import Bar, draw, make_people, reasons, scan

from utils.common.errors import UserError
from utils.data import scan as module
from utils.data.annotation import pack, write_annotation
from utils.data.dataset import FaceDataset
from utils.data.scan_journal import scan_on


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


def test_a_root_whose_name_no_line_can_hold_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="a line break in the name: give the folder another"):
        scan(make_people(tmp_path / "a\nb", ann=1))


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


def test_progress_knows_the_people_from_the_start_and_sees_the_pictures(tmp_path):
    make_people(tmp_path, ann=2, bob=3)
    seen = []

    class Watched(Bar):
        def update(self, count):
            super().update(count)
            seen.append((self.n, self.total))

        def set_postfix_str(self, text, refresh):
            seen.append(text)

    scan(tmp_path, progress=Watched)
    assert (1, 2) in seen and (2, 2) in seen and "5 pictures" in seen


def jpeg(path, size=(112, 112), color="red", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def damage(path):
    """Bytes too many before the end: libjpeg warns of them and decodes."""
    path.write_bytes(path.read_bytes()[:-2] + b"\x12" * 40 + b"\xff\xd9")


def test_a_damaged_jpeg_that_decodes_is_listed_and_told_by_its_name_alone(tmp_path, capfd):
    damage(jpeg(tmp_path / "ann" / "1.jpg"))
    jpeg(tmp_path / "ann" / "2.jpg")
    jpeg(tmp_path / "bob" / "1.jpg")
    found = scan(tmp_path)
    assert [len(pictures) for pictures in found.people.values()] == [2, 1] and not found.skipped
    [(path, warning)] = found.damaged
    assert path == str(tmp_path / "ann" / "1.jpg") and "Corrupt JPEG data: 36 extraneous bytes" in warning
    assert any(line.startswith("1 damaged pictures decode in part") for line in found.hints)
    pixels = FaceDataset(pack([path]), [0], [112, 112], True)[0][0]
    assert pixels.shape == (112, 112, 3) and capfd.readouterr() == ("", "")


def test_other_processes_find_what_this_one_does_and_in_the_same_order(tmp_path, monkeypatch):
    for number in range(23):
        for other in range(number % 5):
            path = jpeg(tmp_path / f"{number:02d}" / f"{other}.jpg")
            if other == 2:
                damage(path)
            if other == 3:
                path.write_bytes(b"no picture")
    here = scan(tmp_path)
    monkeypatch.setattr(module, "FEW", 0)
    monkeypatch.setattr(module, "PART", 2)
    monkeypatch.setattr(module, "AHEAD", 2)
    assert scan(tmp_path) == here and len(here.damaged) == 8 and len(here.people) == 18
    assert scan(tmp_path, check=False).people["03"] == here.people["03"]
    assert len(scan(tmp_path, check=False).people["04"]) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_is_a_user_error(tmp_path, monkeypatch):
    make_people(tmp_path, ann=1)
    monkeypatch.setattr(module, "FEW", 0)
    monkeypatch.setattr("utils.data.dataset.decode_color_jpeg", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="was killed, most often for want of memory"):
        scan(tmp_path)


def test_a_set_at_the_wrong_depth_is_told(tmp_path):
    make_people(tmp_path / "sets" / "casia", ann=2, bob=2)
    make_people(tmp_path / "sets", cy=1)
    draw(tmp_path / "sets" / "loose.png")
    deep, loose = scan(tmp_path / "sets").hints
    assert deep.startswith("1 of the person folders hold folders") and deep.endswith(
        f"--datasets-path {tmp_path / 'sets' / 'casia'}")
    assert loose.startswith("1 pictures lie in") and "loose.png first" in loose
    assert scan(tmp_path / "sets" / "casia").hints == []


def test_photographs_and_formats_that_are_not_read_are_told(tmp_path):
    for number in range(5):
        jpeg(tmp_path / "ann" / f"{number}.jpg", (250, 250) if number else (112, 112))
    for name in ("a.HEIC", "b.heic", "c.jxl", "notes.txt"):
        write(tmp_path / "ann" / name, "x")
    formats, photographs = scan(tmp_path).hints
    assert "2 .heic, 1 .jxl: save them as .jpg or .png" in formats and "txt" not in formats
    assert photographs.startswith("4 of 5 pictures are larger than aligned crops") and "--align-to" in photographs
    (tmp_path / "ann" / "1.jpg").unlink()
    for number in range(4):
        jpeg(tmp_path / "bob" / f"{number}.jpg", (96, 112))
    assert scan(tmp_path).hints == [formats]


def scan_until(root, names, path, stop, check=True):
    """scan_on() until so many people came (all for None). -> (the people, the names of those that were scanned now)."""
    scanned = []

    def scan_now(left):
        for person in module.scan_people(root, left, Bar, check):
            scanned.append(person.name)
            yield person

    people = scan_on(str(root), names, path, check, scan_now)
    found = list(islice(people, stop))
    people.close()
    return found, scanned


def test_an_interrupted_scan_goes_on_where_it_was(tmp_path, capsys):
    root, path = make_people(tmp_path / "faces", a=2, b=1, c=3, d=1, e=2), tmp_path / "list.txt.scan"
    damage(jpeg(root / "b" / "李 雷.jpg", (250, 250)))
    write(root / "b" / "notes.txt", "x")
    names = list("abcde")
    whole, _ = scan_until(root, names, tmp_path / "other", None)
    first, scanned = scan_until(root, names, path, 3)
    assert first == whole[:3] and scanned == names[:3]
    with open(path, "ab") as file:
        file.write(b'["d", 17, ["0.p')  # a kill in the middle of a line
    again, scanned = scan_until(root, names, path, None)
    assert again == whole and scanned == names[3:]
    assert f"3 of 5 people are known from a scan that was interrupted (remove {path}" in capsys.readouterr().out
    assert scan_until(root, names, path, None) == (whole, [])


@pytest.mark.parametrize("change, anew", [
    (lambda root: draw(root / "b" / "new.png"), "bcd"), (lambda root: (root / "c" / "0.png").unlink(), "cd"),
    (lambda root: draw(root / "aa" / "0.png"), ["aa", *"bcd"]), (lambda root: shutil.rmtree(root / "a"), "bcd"),
    (lambda root: None, "")])
def test_what_has_changed_since_and_what_comes_after_is_scanned_anew(tmp_path, change, anew):
    root, path = make_people(tmp_path / "faces", a=1, b=1, c=2, d=1), tmp_path / "list.txt.scan"
    scan_until(root, list("abcd"), path, None)
    change(root)
    names = sorted(os.listdir(root))
    found, scanned = scan_until(root, names, path, None)
    assert scanned == list(anew) and found == scan_until(root, names, tmp_path / "other", None)[0]


def test_a_journal_of_another_folder_or_way_is_of_no_use(tmp_path):
    root, path = make_people(tmp_path / "faces", a=1, b=1), tmp_path / "list.txt.scan"
    shutil.copytree(root, tmp_path / "copy")
    scan_until(root, ["a", "b"], path, None)
    assert scan_until(tmp_path / "copy", ["a", "b"], path, 1)[1] == ["a"]
    assert scan_until(root, ["a", "b"], path, None)[1] == ["a", "b"]
    assert scan_until(root, ["a", "b"], path, None, check=False)[1] == ["a", "b"]
    path.write_bytes(b"\xff no journal\n")
    assert scan_until(root, ["a", "b"], path, None)[1] == ["a", "b"]


def test_a_scan_takes_no_memory_for_the_pictures_behind_it(tmp_path, monkeypatch):
    root = make_people(tmp_path / "faces", **{f"{n:03d}": 1 for n in range(3)})
    names = ["000", "001", "002"] * 300
    monkeypatch.setattr(module, "list_folder", lambda folder: ([f"{folder}/{n:08d}.jpg" for n in range(200)], []))

    def peak(names):
        tracemalloc.start()
        write_annotation(((one.name, one.pictures) for one in module.scan_people(root, names, Bar, check=False)),
                         tmp_path / "list.txt")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(names[:90]), peak(names)
    assert (many - few) / (810 * 200) < 2  # bytes a picture; a list of paths takes 150


def test_the_script_goes_on_and_leaves_no_journal(call_script, tmp_path, monkeypatch):
    root = make_people(tmp_path / "datasets", ann=2, bob=2)
    scan_until(root, ["ann", "bob"], tmp_path / "cls_train.txt.scan", 1)
    result = call_script("txt_annotation.py")
    assert result.returncode == 0, result.stderr
    assert "1 of 2 people are known" in result.stdout and "2 people, 4 images" in result.stdout
    assert sorted(os.listdir(tmp_path)) == ["cls_classes.txt", "cls_train.txt", "datasets"]
