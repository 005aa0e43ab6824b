"""Arcface and predict.py on photos, in which a face is found and aligned."""
import shutil
import sys

import pytest
from conftest import ROOT
from photos import CROPS, PHOTOS, side_by_side
from PIL import Image

from arcface import Arcface
from utils.common.errors import UserError
from utils.faces.face_crop import NoDetector
from utils.faces.images import open_image

WEIGHTS = "--model-path", ROOT / "model_data" / "arcface_mobilefacenet.pth", "--device", "cpu"


@pytest.fixture
def group(tmp_path):
    """photo_1 and photo_3 side by side. The face on the left is larger."""
    side_by_side(PHOTOS[0], PHOTOS[2]).save(tmp_path / "two faces.png")
    return tmp_path / "two faces.png"


@pytest.fixture
def people(tmp_path):
    """A gallery of two people: ann (photo_1) and bob (photo_3)."""
    for name, photo in (("ann", PHOTOS[0]), ("bob", PHOTOS[2])):
        (tmp_path / "people" / name).mkdir(parents=True)
        shutil.copy(photo, tmp_path / "people" / name / "1.jpg")
    return tmp_path / "people"


def test_arcface_distinguishes_people_in_photos(face_model, arcface):
    same, *others = (arcface.detect_image(PHOTOS[first], PHOTOS[second]) for first, second in ((0, 1), (0, 2), (1, 2)))
    assert same < 0.9 and min(others) > 1.1
    assert arcface.detect_image(PHOTOS[0], CROPS[0]) < 0.4


def test_predict_on_two_photos(run_script, face_model, group, tmp_path):
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # an EXIF block that declares five entries and holds none; Pillow warns
    open_image(PHOTOS[2]).transpose(Image.Transpose.ROTATE_180).save(tmp_path / "on its head.jpg", exif=damaged,
                                                                     quality=95)
    result = run_script("predict.py", group, "on its head.jpg", "--face", 2, 1, *WEIGHTS, "--save", "out.png")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "Verdict: same person" in result.stdout and Image.open(tmp_path / "out.png").height > 700
    assert "on its head.jpg: rotated by 180 degrees clockwise\n" in result.stdout
    assert f"{group}: 2 faces, number 2 counts\n" in result.stdout


def test_each_image_has_its_own_face(face_model, group, published_weights):
    first_and_second = Arcface(model_path=published_weights, cuda=False, face=(1, 2))
    assert min(first_and_second.detect_image(PHOTOS[0], group), first_and_second.detect_image(group, group)) > 1.1
    swapped = Arcface(model_path=published_weights, cuda=False, face=[2, 1])
    match = swapped.verify(group, PHOTOS[2])
    assert match.same and not swapped.verify(group, PHOTOS[0]).same
    assert swapped.draw(group, PHOTOS[2], match).height > 700
    for one_face in (PHOTOS[2], ROOT / "img" / "1_001.jpg"):  # a photo, an aligned crop
        with pytest.raises(UserError, match="has no face 2, only 1: give another --face"):
            swapped.find(one_face)


def test_the_query_has_its_own_face_and_a_gallery_the_main_one(face_model, group, people, published_weights):
    arcface = Arcface(model_path=published_weights, cuda=False, face=(2, 5))
    found = arcface.identify(group, people)
    assert found[0].name == "bob" and arcface.draw_candidates(group, found).width > 300


def test_a_gallery_of_photos_without_a_detector_is_one_error(monkeypatch, arcface, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "people").mkdir()
    for photo in PHOTOS:
        shutil.copy(photo, tmp_path / "people")
    with pytest.raises(NoDetector, match="--align no"):
        arcface.open_gallery(tmp_path / "people")


def test_a_gallery_photo_of_several_faces_is_left_out_or_remarked(face_model, arcface, people, group):
    like = people / "bob" / "like.png"
    side_by_side(PHOTOS[0], PHOTOS[1]).save(like)
    shutil.move(group, people / "bob" / "group.png")  # in which another face is larger than bob's
    for _ in range(2):
        gallery = arcface.open_gallery(people)
        assert gallery.paths == ["ann/1.jpg", "bob/1.jpg", "bob/group.png"]
        assert gallery.skipped == [f"{like} shows 2 faces, two of like size: crop it to one person"]
        found = {candidate.name: candidate for candidate in arcface.identify(PHOTOS[0], gallery)}
        assert found["bob"].remarks == (f"{people / 'bob' / 'group.png'}: 2 faces, number 1 counts",)


def test_a_tiny_face_makes_the_verdict_not_sure_and_is_a_remark(face_model, arcface, people, call_script, tmp_path):
    photo, tiny = open_image(PHOTOS[1]), tmp_path / "tiny.png"
    photo.resize((photo.width // 7, photo.height // 7)).save(tiny)  # 14 pixels between the eyes
    match = arcface.verify(PHOTOS[0], tiny)
    assert match.verdict == "not sure"
    assert str(tiny) in match.remarks[0] and "pixels between the eyes" in match.remarks[0]
    printed = call_script("predict.py", PHOTOS[0], tiny, *WEIGHTS).stdout
    assert f"{match.remarks[0]}\n" in printed and "Verdict: not sure (threshold " in printed
    assert arcface.identify(tiny, people)[0].verdict == "not sure"
    assert "Verdict: not sure: " in call_script("predict.py", tiny, "--gallery", people, *WEIGHTS).stdout
    shutil.move(tiny, people / "cid.png")
    found = {candidate.name: candidate for candidate in arcface.identify(PHOTOS[1], people)}
    assert found["cid"].verdict == "not sure" and "people/cid.png: only" in found["cid"].remarks[0]
    assert found["ann"].verdict == "same" and found["ann"].remarks == ()


def test_every_face_of_a_photo_is_identified_from_left_to_right(face_model, arcface, people, tmp_path, call_script):
    side_by_side(PHOTOS[2], PHOTOS[1]).save(tmp_path / "group.jpg")
    assert [candidate.name for candidate in arcface.identify_all(tmp_path / "group.jpg", people)] == ["bob", "ann"]
    result = call_script("predict.py", "group.jpg", "--gallery", "people", "--all-faces", *WEIGHTS, "--save", "all.jpg")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("   ")]
    assert [(row[0], row[-2]) for row in rows] == [("1", "bob"), ("2", "ann")]
    with Image.open(tmp_path / "all.jpg") as drawing:
        assert drawing.format == "JPEG" and max(drawing.size) >= 672
