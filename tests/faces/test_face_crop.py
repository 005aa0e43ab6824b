"""utils/faces/face_crop.py: the main face of an image, the remarks on it, and crops that show no face."""
import sys

import numpy as np
import pytest
from conftest import ROOT
from photos import CROPS, PHOTOS, difference, side_by_side
from PIL import Image, ImageDraw, ImageFilter

from arcface import Arcface
from utils.common import files
from utils.common.errors import UserError
from utils.faces import face_crop
from utils.faces.alignment import TEMPLATE
from utils.faces.detector import MODEL_PATH, Face
from utils.faces.face_crop import CroppedFace, FaceCrop, NoDetector, are_aligned, has_crop_size
from utils.faces.images import open_image


@pytest.fixture
def detected(detector, monkeypatch):
    """Give FaceCrop the detector."""
    monkeypatch.setattr(face_crop, "shared_detector", lambda: detector)


@pytest.fixture(params=["OpenCV", "network"])
def without(request, monkeypatch, tmp_path):
    """Hide the detector from FaceCrop. Return what is missing."""
    if request.param == "OpenCV":
        monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(files, "REPOSITORY", tmp_path)  # whose model_data/ may have the detector's model
    monkeypatch.chdir(tmp_path)
    return request.param


def found(size, score=0.9, others=()):
    """A CroppedFace with `size` pixels between the eyes. others: areas of more faces, relative to this one."""
    face = Face(np.array((0, 0, 2 * size, 2 * size), float), TEMPLATE * size / 35.24, score)
    rivals = [Face(np.array((0, 0, 2 * size, 2 * size * area), float), TEMPLATE, 0.9) for area in others]
    return CroppedFace(None, None, [face, *rivals], 1, face)


# Which images are photos

@pytest.mark.parametrize("size, crop", [
    ((112, 112), True), ((96, 112), True), ((128, 128), True), ((250, 250), False), ((160, 160), False),
    ((112, 60), False), ((400, 500), False)])
def test_small_square_images_have_the_size_of_aligned_crops(size, crop):
    assert has_crop_size(size) is crop


def test_auto_leaves_crops_and_aligns_photos(detected):
    crop = open_image(CROPS[0])
    assert np.array_equal(FaceCrop().find(crop).crop, crop)
    assert difference(FaceCrop().find(PHOTOS[0]).crop, crop) < 30
    assert FaceCrop(align=False).find(PHOTOS[0]).crop.size == (400, 500)
    again = FaceCrop(align=True).find(crop).crop
    assert not np.array_equal(again, crop) and difference(again, crop) < 30


@pytest.mark.parametrize("side, margin", [(250, None), (160, 32), (182, 44), (112, 10)])
def test_unaligned_images_of_any_size_are_recognized(detected, detector, shared, side, margin):
    photos = [open_image(path) for path in sorted((shared / "lfw_raw_folds1-3").glob("*/*_0001.jpg"))[::60][:12]]
    if margin:  # as facenet's MTCNN crops them
        for index, photo in enumerate(photos):
            left, top, width, height = detector.detect(photo)[0].box
            x, y = np.multiply((width, height), margin / (side - margin) / 2)
            photos[index] = photo.crop((left - x, top - y, left + width + x, top + height + y)).resize((side, side))
    assert not are_aligned(photos)


def test_aligned_images_are_recognized(detected, shared):
    assert are_aligned(sorted((shared / "lfw" / "images").glob("*/*.jpg")))
    for kind in ("cfp", "rofm", "bly"):  # frontal and profile, with masks, 64x64 at source
        assert are_aligned(sorted((shared / "faces_train").glob(f"*/{kind}_*.jpg"))[:40])
    assert are_aligned([open_image(path).resize((224, 224)) for path in CROPS])
    assert are_aligned([np.zeros((112, 112, 3), np.uint8)])


# The main face, and the remarks on it

def test_the_kth_face_of_a_photo(detected, tmp_path):
    group = tmp_path / "two faces.png"
    side_by_side(PHOTOS[0], PHOTOS[2]).save(group)
    for number, expected in ((1, CROPS[0]), (2, CROPS[2])):
        face = FaceCrop(face=number).find(group)
        assert difference(face.crop, open_image(expected)) < 30
        assert face.remarks == [f"2 faces, number {number} counts"]


def test_a_photo_without_a_face_is_a_user_error(detected, tmp_path):
    path = tmp_path / "sky.png"
    Image.new("RGB", (300, 300), "skyblue").save(path)
    for source, name in ((path, r"sky\.png"), (open_image(path), "the image")):
        for find in (FaceCrop().find, FaceCrop().find_all):
            with pytest.raises(UserError, match=rf"{name} shows no face.*--align no"):
                find(source)


def test_all_faces_come_from_left_to_right(detected):
    faces = FaceCrop().find_all(side_by_side(PHOTOS[2], PHOTOS[0], PHOTOS[2]))
    for number, (face, expected) in enumerate(zip(faces, (CROPS[2], CROPS[0], CROPS[2])), 1):
        assert difference(face.crop, open_image(expected)) < 30
        assert face.name == f"the image, face {number}" and face.remarks == []
    alone, = FaceCrop().find_all(CROPS[0])
    assert alone.face is None and alone.remarks == []


@pytest.mark.parametrize("face, remarks, uncertain, ambiguous", [
    (found(30), [], False, False),
    (found(17), ["only 17 pixels between the eyes"], True, False),
    (found(30, 0.65), ["perhaps no face (detector score 0.65)"], True, False),
    (found(30, others=[0.3]), ["2 faces, number 1 counts"], False, False),
    (found(30, others=[0.3, 0.6]), ["3 faces, number 1 counts"], False, True),
    (CroppedFace(None, None), [], False, False)])
def test_remarks_and_doubts_of_a_face(face, remarks, uncertain, ambiguous):
    assert (face.remarks, bool(face.doubts), face.ambiguous) == (remarks, uncertain, ambiguous)


# Without a detector

def test_a_photo_without_a_detector_is_an_error_and_an_aligned_crop_is_none(without):
    with pytest.raises(NoDetector, match=r"photo_1\.jpg needs face detection: .*--align no if") as caught:
        FaceCrop().find(PHOTOS[0])
    assert {"OpenCV": "pip install", "network": MODEL_PATH}[without] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert FaceCrop().find(CROPS[0]).crop.size == (112, 112)
    assert FaceCrop(align=False).find(PHOTOS[0]).crop.size == (400, 500)


# Crops that show no face

def noise():
    return np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)


def text():
    image = Image.new("RGB", (112, 112), "ivory")
    for line in range(9):
        ImageDraw.Draw(image).text((2, 2 + 12 * line), "the quick brown fox"[line:], "black")
    return np.asarray(image)


NOTHING = {
    "black": np.zeros((112, 112, 3), np.uint8), "white": np.full((112, 112, 3), 255, np.uint8),
    "color": np.tile(np.array((30, 90, 200), np.uint8), (112, 112, 1)), "small": np.zeros((96, 96, 3), np.uint8),
    "gradient": np.tile(np.linspace(20, 230, 112).astype(np.uint8)[:, None, None], (1, 112, 3)), "noise": noise(),
    "blurred": np.asarray(Image.fromarray(noise()).filter(ImageFilter.GaussianBlur(2))), "text": text(),
    "checkerboard": np.kron(np.indices((14, 14)).sum(0)[..., None] % 2, np.full((8, 8, 3), 255)).astype(np.uint8)}


@pytest.fixture(scope="module", params=["bundled", "published"])
def predictor(request, published_weights):
    weights = published_weights if request.param == "published" else ROOT / "model_data" / "arcface_mobilefacenet.pth"
    return Arcface(model_path=weights, cuda=False)


@pytest.mark.parametrize("kind", NOTHING)
def test_a_crop_without_a_face_gets_no_verdict(predictor, detected, kind, tmp_path):
    path = tmp_path / f"{kind}.png"
    Image.fromarray(NOTHING[kind]).save(path)
    for pair in ((path, CROPS[0]), (CROPS[0], path)):
        with pytest.raises(UserError, match=rf"{kind}\.png shows no face: give a photo"):
            predictor.verify(*pair)


def test_every_face_is_embedded_even_if_covered_blurred_or_in_profile(predictor, detected, shared):
    train = shared / "faces_train"
    faces = [*sorted((shared / "lfw" / "images").glob("B*/*.jpg"))[:40], *sorted(train.glob("*/rofm_*.jpg"))[:22],
             *sorted(train.glob("*/rofg_*00.jpg"))[:10], *sorted(train.glob("*/cfp_*12.jpg"))[:10],
             *sorted(train.glob("*/bly_*00.jpg"))[:10]]
    assert len(faces) == 90 and predictor.embed(faces).shape == (90, 128)


def test_without_a_detector_a_crop_that_may_show_no_face_is_an_error(predictor, without):
    unaligned = Arcface(model_path=predictor.model_path, cuda=False, align=False)
    assert predictor.embed([CROPS[0]]).shape == (1, 128)
    with pytest.raises(UserError, match=r"the image needs face detection: .*--align no"):
        predictor.embed([NOTHING["gradient"]])
    for kind in ("black", "white", "color", "noise", "text"):
        for embed in (predictor.embed, unaligned.embed):
            with pytest.raises(UserError, match="the image shows no face"):
                embed([NOTHING[kind]])
    assert unaligned.embed([NOTHING["gradient"]]).shape == (1, 128)
