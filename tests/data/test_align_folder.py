"""txt_annotation.py --align-to: from a folder of photos to one of aligned crops."""
import shutil

import pytest
from conftest import assert_user_error
from photos import CROPS as ALIGNED
from photos import PHOTOS, difference, side_by_side
from PIL import Image, PngImagePlugin

from utils.common.errors import UserError
from utils.data.align_folder import align_folder, report_path
from utils.data.annotation import read_annotation
from utils.faces.images import open_image

PHOTO, _, OTHER = PHOTOS
CROPS = {"ann/a.jpg", "ann/a.png.jpg", "ann/two.png.jpg", "ann/small.png.jpg", "李 雷;x/b.JPG.jpg"}


@pytest.fixture
def photos(tmp_path, face_model):
    """Every kind of image that an identity's folder may hold."""
    folder = tmp_path / "photo s"
    for name in ("ann", "李 雷;x"):
        (folder / name).mkdir(parents=True)
    shutil.copy(PHOTO, folder / "ann" / "a.jpg")
    open_image(OTHER).save(folder / "ann" / "a.png")
    shutil.copy(OTHER, folder / "李 雷;x" / "b.JPG")
    Image.new("RGB", (200, 200), "navy").save(folder / "ann" / "sky.png")
    side_by_side(PHOTO, OTHER).save(folder / "ann" / "two.png")
    small = Image.new("RGB", (200, 200), "gray")
    small.paste(open_image(PHOTO).resize((80, 100)), (60, 60))
    small.save(folder / "ann" / "small.png")
    (folder / "ann" / "text.jpg").write_text("not an image")
    (folder / "stray.jpg").write_text("beside the folders")
    return folder


@pytest.fixture
def crops(tmp_path):
    return tmp_path / "crops"


def contents(folder):
    """Return {name: (content, time of change)} of every file in the folder."""
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


def remarks(crops):
    lines = report_path(crops).read_text(encoding="utf-8").splitlines()[1:]
    return {photo: remark.strip('"') for photo, _, remark in (line.partition(",") for line in lines)}


def test_crops_and_remarks_are_written_and_photos_never_touched(photos, crops):
    before = contents(photos)
    assert align_folder(photos, crops) == {"written": 5, "left out": 3, "removed": 0}
    assert contents(photos) == before
    assert contents(crops).keys() == CROPS
    for name in CROPS:
        with Image.open(crops / name) as crop:
            assert crop.size == (112, 112) and crop.format == "JPEG"
    for name, aligned in (("a.jpg", ALIGNED[0]), ("a.png.jpg", ALIGNED[2])):
        assert difference(open_image(crops / "ann" / name), open_image(aligned)) < 30
    found = remarks(crops)
    assert found.pop("ann/text.jpg").startswith("left out: does not decode")
    assert found.pop("ann/small.png").endswith("pixels between the eyes")
    assert found == {"ann/sky.png": "left out: shows no face", "ann/two.png": "2 faces, number 1 counts",
                     "stray.jpg": "left out: not the folder of a person"}


def test_a_second_run_keeps_crops_and_remarks_and_leaves_files_of_others(photos, crops):
    align_folder(photos, crops)
    first = remarks(crops)
    (crops / "ann" / "a.png.jpg").unlink()
    (crops / "ann" / "a.jpg").write_bytes(b"mine")
    (crops / "ann" / "mine.jpg").write_bytes(PHOTO.read_bytes())
    comment = PngImagePlugin.PngInfo()
    comment.add_text("comment", "mine")
    Image.new("RGB", (112, 112)).save(crops / "ann" / "mine.png", pnginfo=comment)
    before = contents(crops)
    assert align_folder(photos, crops) == {"written": 1, "kept": 3, "removed": 0, "left out": 4}
    assert remarks(crops) == first | {"ann/a.jpg": f"left out: {crops}/ann/a.jpg is not by --align-to"}
    assert before.items() < contents(crops).items()


def test_a_replaced_photo_has_a_new_crop(photos, crops):
    align_folder(photos, crops)
    shutil.copy(OTHER, photos / "ann" / "a.jpg")
    assert align_folder(photos, crops)["written"] == 1
    assert difference(open_image(crops / "ann" / "a.jpg"), open_image(ALIGNED[2])) < 30
    Image.new("RGB", (400, 500), "navy").save(photos / "ann" / "a.jpg")
    align_folder(photos, crops)
    assert not (crops / "ann" / "a.jpg").exists() and remarks(crops)["ann/a.jpg"] == "left out: shows no face"


def test_the_crop_of_a_photo_that_is_gone_is_removed_and_reported(photos, crops):
    align_folder(photos, crops)
    (photos / "ann" / "a.jpg").unlink()
    shutil.rmtree(photos / "李 雷;x")
    counts = align_folder(photos, crops)
    assert counts["removed"] == 2 and counts["kept"] == 3
    assert contents(crops).keys() == CROPS - {"ann/a.jpg", "李 雷;x/b.JPG.jpg"}
    assert "the photo is gone" in remarks(crops)["ann/a.jpg"]
    shutil.rmtree(photos / "ann")
    with pytest.raises(UserError, match="holds no photo"):  # such as a disk that is not mounted
        align_folder(photos, crops)
    assert len(contents(crops)) == 3


def test_the_crops_of_another_tree_are_never_removed(photos, crops, tmp_path):
    align_folder(photos, crops)
    before = contents(crops)
    (tmp_path / "others" / "eve").mkdir(parents=True)
    shutil.copy(PHOTO, tmp_path / "others" / "eve")
    with pytest.raises(UserError, match="crops of other photos: give --align-to another folder"):
        align_folder(tmp_path / "others", crops)
    assert contents(crops) == before


@pytest.mark.parametrize("destination", [".", "new/er", "..", "link"])
def test_a_destination_within_the_photos_or_around_them_is_a_user_error(photos, destination):
    (photos.parent / "elsewhere").symlink_to(photos)
    where = photos.parent / "elsewhere" / "new" if destination == "link" else photos / destination
    before = contents(photos)
    with pytest.raises(UserError, match="--align-to"):
        align_folder(photos, where)
    assert contents(photos) == before


def test_photos_without_a_face_are_a_user_error(call_script, tmp_path, face_model):
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    Image.new("RGB", (200, 200), "navy").save(tmp_path / "photos" / "ann" / "sky.png")
    result = call_script("txt_annotation.py", "--datasets-path", "photos", "--align-to", "crops")
    assert_user_error(result, "no crop was written or kept", str(report_path(tmp_path / "crops")))
    assert not (tmp_path / "cls_train.txt").exists()
    (tmp_path / "photos" / "ann" / "sky.png").rename(tmp_path / "photos" / "ann" / "sky.HEIC")
    with pytest.raises(UserError, match=r"sky\.HEIC: not an image by its extension.* convert it to JPEG"):
        align_folder(tmp_path / "photos", tmp_path / "crops")


def test_the_script_writes_crops_and_their_annotation(call_script, photos, tmp_path):
    result = call_script("txt_annotation.py", "--datasets-path", photos, "--align-to", "crops")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "crops: 5 crops written, 0 kept, 0 removed, 3 left out; " in result.stdout
    assert str(report_path(tmp_path / "crops")) in result.stdout and "use --align-to" not in result.stdout
    paths, labels = read_annotation(tmp_path / "cls_train.txt")
    assert {path.removeprefix(f"{tmp_path}/crops/") for path in paths} == CROPS and labels.tolist() == [0, 0, 0, 0, 1]
    result = call_script("txt_annotation.py", "--datasets-path", photos)
    assert "if these are photos, use --align-to" in result.stdout
