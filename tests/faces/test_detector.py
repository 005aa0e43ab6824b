"""utils/faces/detector.py on real photos."""
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from photos import CROPS, PHOTOS, difference, side_by_side
from PIL import Image

from utils.common.errors import UserError
from utils.faces.alignment import TEMPLATE, align, similarity
from utils.faces.detector import ROTATIONS, FaceDetector
from utils.faces.images import open_image

EYES = [[(194, 93), (238, 91)], [(102, 153), (155, 159)], [(120, 73), (148, 76)]]  # of PHOTOS, by eye


def crop(detector, source):
    image = open_image(source)
    return align(image, detector.refine(image, detector.detect(image)[0]).landmarks)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_landmarks_are_exact_and_in_the_templates_order(detector, index):
    image = open_image(PHOTOS[index])
    face, = detector.detect(image)
    landmarks = detector.refine(image, face).landmarks
    left, top, width, height = face.box
    assert 0.6 <= face.score <= 1 and ((landmarks > (left, top)) & (landmarks < (left + width, top + height))).all()
    assert np.abs(landmarks[:2] - EYES[index]).max() < 0.1 * np.linalg.norm(np.subtract(*EYES[index]))
    fitted = similarity(landmarks, TEMPLATE)
    assert np.abs(landmarks @ fitted[:, :2].T + fitted[:, 2] - TEMPLATE).max() < 8  # a wrong order is off by 30


def test_crops_equal_those_aligned_by_hand(detector):
    for photo, expected in zip(PHOTOS, map(open_image, CROPS)):
        others = [difference(crop(detector, other), expected) for other in PHOTOS if other != photo]
        assert difference(crop(detector, photo), expected) < 30 < min(others)


@pytest.mark.parametrize("scale", [0.16, 0.5, 2.2, 5])
def test_landmarks_do_not_depend_on_the_photos_size(detector, scale):
    image = open_image(PHOTOS[0])
    expected = detector.refine(image, detector.detect(image)[0]).landmarks
    other = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    found = (detector.refine(other, detector.detect(other)[0]).landmarks + 0.5) / scale - 0.5
    assert np.abs(found - expected).max() < 0.08 * 44  # of the distance between the eyes


def test_faces_that_fill_a_large_photo_and_small_ones_in_it_are_found(detector):
    face = open_image(PHOTOS[0]).crop((140, 20, 290, 200))
    large, = detector.detect(face.resize((2500, 3000)))
    assert large.score > 0.8  # 0.7 at 1280 pixels, at which others are lost or found twice
    crowd = Image.new("RGB", (4000, 3000), "darkgreen")
    places = [(left, top) for left in range(100, 3900, 400) for top in range(100, 2900, 400)]
    for place in places:
        crowd.paste(face.resize((80, 96)), place)
    assert len(detector.detect(crowd)) == len(places)


def test_the_main_face_is_large_and_near_the_middle(detector):
    group = side_by_side(PHOTOS[0], PHOTOS[2])
    large, small = detector.detect(group)
    assert large.area > small.area and large.box[0] < 400 < small.box[0]
    first, second = detector.detect(group.crop((200, 0, *group.size)))  # the larger face is at the edge now
    assert first.area < second.area


@pytest.mark.parametrize("degrees", ROTATIONS)
@pytest.mark.parametrize("photo", PHOTOS)
def test_a_photo_that_lies_on_its_side_or_head_is_rotated(detector, photo, degrees):
    image = open_image(photo)
    upright, faces, rotated = detector.detect_upright(image.transpose(ROTATIONS[360 - degrees]))
    assert rotated == degrees and np.array_equal(upright, image)
    assert np.array_equal(faces[0].box, detector.detect(image)[0].box)


def test_upright_photos_stay_as_they_are_even_if_faces_are_covered(detector, shared):
    masked = sorted((shared / "faces_train").glob("[a-f]*/rofm_*1.jpg"))[:12]
    for source in (*PHOTOS, *sorted((shared / "lfw_raw_folds1-3").glob("A*/*_0001.jpg"))[:20], *masked):
        assert detector.detect_upright(open_image(source))[2] == 0, source


def test_another_file_in_the_models_place_is_a_user_error(face_model):
    face_model.write_bytes(b"a model")
    with pytest.raises(UserError, match="not the published file"):
        FaceDetector()


@pytest.mark.parametrize("content", [None, {}, {"__version__": "4.12.0", "FaceDetectorYN": cv2.FaceDetectorYN}])
def test_no_opencv_opencv_4_and_a_folder_called_cv2_are_one_line_with_the_remedy(monkeypatch, content):
    monkeypatch.setitem(sys.modules, "cv2", None if content is None else SimpleNamespace(**content))
    with pytest.raises(UserError, match=r'^no face detection without OpenCV 5 \(.*\): pip install "[^\n]*$'):
        FaceDetector()
