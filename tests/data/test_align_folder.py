"""txt_annotation.py --align-to: from a folder of photographs to one of aligned crops."""
import shutil

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from utils.common.errors import UserError
from utils.data.align_folder import NO_FACE, SEVERAL, SMALL, align_folder, read_report, report_path
from utils.data.annotation import read_annotation
from utils.faces.images import open_image

PHOTO, OTHER = ROOT / "img" / "photo_1.jpg", ROOT / "img" / "photo_3.jpg"


@pytest.fixture
def photographs(tmp_path):
    """Every kind of picture that a person's folder may hold."""
    folder = tmp_path / "photo graphs"
    for person in ("ann", "李 雷;x"):
        (folder / person).mkdir(parents=True)
    shutil.copy(PHOTO, folder / "ann" / "a.jpg")
    open_image(OTHER).save(folder / "ann" / "a.png")
    shutil.copy(OTHER, folder / "李 雷;x" / "b.JPG")
    Image.new("RGB", (200, 200), "navy").save(folder / "ann" / "sky.png")
    two = Image.new("RGB", (620, 500))
    two.paste(open_image(PHOTO), (0, 0))
    two.paste(open_image(OTHER), (400, 0))
    two.save(folder / "ann" / "two.png")
    small = Image.new("RGB", (200, 200), "grey")
    small.paste(open_image(PHOTO).resize((80, 100)), (60, 60))
    small.save(folder / "ann" / "small.png")
    (folder / "ann" / "text.jpg").write_text("no picture")
    (folder / "stray.jpg").write_text("beside the folders")
    return folder


CROPS = {"ann/a.jpg", "ann/a.png.jpg", "ann/two.png.jpg", "ann/small.png.jpg", "李 雷;x/b.JPG.jpg"}


def run(photographs, detector, destination="crops"):
    return align_folder(photographs, photographs.parent / destination, detector, lambda iterable, total: iterable)


def contents(folder):
    """{name: (content, time of change)} of every file in it."""
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


def test_crops_are_written_and_originals_never_touched(photographs, detector):
    before = contents(photographs)
    written, already, _ = run(photographs, detector)
    assert (written, already) == (5, 0) and contents(photographs) == before
    assert contents(photographs.parent / "crops").keys() == CROPS
    for name in CROPS:
        with Image.open(photographs.parent / "crops" / name) as crop:
            assert crop.size == (112, 112) and crop.format == "JPEG"
    first, second = (np.asarray(Image.open(photographs.parent / "crops" / "ann" / name), float)
                     for name in ("a.jpg", "a.png.jpg"))
    by_hand = [np.asarray(open_image(ROOT / "img" / name), float) for name in ("1_001.jpg", "2_001.jpg")]
    assert np.abs(first - by_hand[0]).mean() < 30 and np.abs(second - by_hand[1]).mean() < 30


def test_every_remark_is_in_the_report(photographs, detector):
    remarks = run(photographs, detector)[2]
    assert remarks.pop("ann/text.jpg").startswith("left out: does not decode")
    assert remarks == {"ann/sky.png": f"left out: {NO_FACE}", "ann/two.png": SEVERAL, "ann/small.png": SMALL,
                       "stray.jpg": "left out: a file beside the person folders"}
    report = read_report(photographs.parent / "crops")
    assert report.items() > remarks.items() and len(report) == len(remarks) + 2  # and the header


def test_a_second_run_goes_on_and_keeps_the_remarks(photographs, detector):
    crops = photographs.parent / "crops"
    first = run(photographs, detector)[2]
    (crops / "ann" / "a.png.jpg").unlink()
    (crops / "ann" / "a.jpg").write_bytes(b"mine")
    before = contents(crops)
    written, already, remarks = run(photographs, detector)
    assert (written, already) == (1, 4) and remarks == first and contents(crops).keys() == CROPS
    assert before.items() < contents(crops).items()


def test_an_interrupted_run_leaves_whole_crops_and_a_report(photographs, detector):
    def interrupted(iterable, total):
        for number, item in enumerate(iterable):
            if number == 2:
                raise KeyboardInterrupt
            yield item
    crops = photographs.parent / "crops"
    with pytest.raises(KeyboardInterrupt):
        align_folder(photographs, crops, detector, interrupted)
    assert report_path(crops).is_file() and contents(crops).keys() <= CROPS
    run(photographs, detector)
    assert contents(crops).keys() == CROPS


def test_a_crop_never_overwrites_another(photographs, detector):
    shutil.copy(PHOTO, photographs / "ann" / "a.png.jpg")
    _, _, remarks = run(photographs, detector)
    assert "a.png.jpg" in remarks["ann/a.png"] and "ann/a.png.jpg" not in remarks
    crop = np.asarray(Image.open(photographs.parent / "crops" / "ann" / "a.png.jpg"), float)
    assert np.abs(crop - np.asarray(open_image(ROOT / "img" / "1_001.jpg"), float)).mean() < 30


@pytest.mark.parametrize("destination", [".", "ann", "new/er", "..", "link"])
def test_a_destination_within_the_originals_or_around_them_is_refused(photographs, detector, destination):
    (photographs.parent / "elsewhere").symlink_to(photographs)
    where = photographs.parent / "elsewhere" / "new" if destination == "link" else photographs / destination
    before = contents(photographs)
    with pytest.raises(UserError, match="--align-to"):
        align_folder(photographs, where, detector, lambda iterable, total: iterable)
    assert contents(photographs) == before


def test_the_script_writes_crops_and_their_annotation(run_script, face_model, photographs, tmp_path):
    result = run_script("txt_annotation.py", "--datasets-path", photographs, "--align-to", "crops")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "5 crops written to crops, 0 were there; left out: 3, no face: 1, several faces: 1" in result.stdout
    assert str(report_path(tmp_path / "crops")) in result.stdout and "of several faces the one" in result.stdout
    paths, labels = read_annotation(tmp_path / "cls_train.txt")
    assert {path.removeprefix(f"{tmp_path}/crops/") for path in paths} == CROPS and labels.tolist() == [0, 0, 0, 0, 1]
