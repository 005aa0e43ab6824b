"""A folder of one folder per identity: its images, what is left out, and what looks like a mistake."""
import os
import unicodedata

import pytest
from scanning import draw, make_identities, scan


def test_labels_go_by_sorted_folder_name_and_paths_are_sorted(tmp_path):
    for name in ("zoe", "Adam", "bob", "10", "9", "李雷"):
        for file in ("b.png", "a.png", "B.png"):
            draw(tmp_path / name / file)
    identities = scan(tmp_path).identities
    assert list(identities) == ["10", "9", "Adam", "bob", "zoe", "李雷"]
    assert identities["bob"] == [str(tmp_path / "bob" / file) for file in ("B.png", "a.png", "b.png")]
    assert scan(tmp_path, check=False).identities == identities


def test_two_unicode_forms_of_a_name_are_one_identity(tmp_path):
    for form in ("NFC", "NFD"):
        draw(tmp_path / unicodedata.normalize(form, "José") / f"{form}.png")
    draw(tmp_path / "Zoé" / "1.png")
    if len(os.listdir(tmp_path)) == 2:
        pytest.skip("this file system has one form only")
    identities = scan(tmp_path).identities
    assert list(identities) == ["José", "Zoé"]
    assert sorted(map(os.path.basename, identities["José"])) == ["NFC.png", "NFD.png"]


def test_every_image_extension_is_taken_in_any_case(tmp_path):
    for suffix in ("JPG", "TIFF", "bmp", "jfif", "jpeg", "png", "webp"):
        draw(tmp_path / "ann" / f"face.{suffix}")
    assert len(scan(tmp_path).identities["ann"]) == 7


def test_what_is_no_image_is_skipped_with_its_reason(tmp_path):
    make_identities(tmp_path, ann=2, bob=2)
    for folder in (tmp_path, tmp_path / "ann"):
        (folder / "README.md").write_text("notes")
        (folder / ".DS_Store").write_text("\0")
    draw(tmp_path / "ann" / ".hidden.png")
    draw(tmp_path / "ann" / "nested" / "face.png")
    draw(tmp_path / ".cache" / "face.png")
    draw(tmp_path / "face beside the folders.png")
    (tmp_path / "cy").mkdir()
    (tmp_path / "ann" / "phone.HEIC").write_text("x")
    (tmp_path / "bob" / "empty.jpg").write_text("")
    (tmp_path / "bob" / "text.jpg").write_text("not an image")
    (tmp_path / "bob" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    for loop in (tmp_path / "loop", tmp_path / "ann" / "loop.png"):
        loop.symlink_to(loop.name)
    whole = draw(tmp_path / "bob" / "truncated.jpg").read_bytes()
    (tmp_path / "bob" / "truncated.jpg").write_bytes(whole[:-100])

    scanned = scan(tmp_path)
    assert {name: len(images) for name, images in scanned.identities.items()} == {"ann": 2, "bob": 2}
    for name, reason in {
            "README.md": "not the folder", "loop": "not the folder", "ann/loop.png": "not a file",
            "face beside the folders.png": "not the folder",
            "cy": "no image", "ann/README.md": "extension", "ann/nested": "--datasets-path",
            "ann/phone.HEIC": "convert it", "bob/empty.jpg": "decode",
            "bob/text.jpg": "decode", "bob/gone.jpg": "not a file", "bob/truncated.jpg": "truncated"}.items():
        assert reason in scanned.skipped.pop(name), name
    assert not scanned.skipped
