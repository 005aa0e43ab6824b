"""utils/faces/detector.py, utils/faces/face_crop.py and what predict.py makes of them, on real photographs."""
import builtins
import hashlib
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from conftest import ROOT, assert_user_error
from PIL import ExifTags, Image

from arcface import Arcface
from utils.faces import detector as detector_module
from utils.faces.alignment import TEMPLATE, align, similarity
from utils.faces.detector import MODEL_PATH, FaceDetector, subject
from utils.faces.face_crop import FaceCrop, looks_aligned
from utils.faces.images import open_image
from utils.machine.errors import UserError

PHOTOS = [ROOT / "img" / f"photo_{number}.jpg" for number in (1, 2, 3)]
# The corners of the eyes and mouths and the tips of the noses of PHOTOS, read off by eye.
EYES = [[(194, 93), (238, 91)], [(102, 153), (155, 159)], [(120, 73), (148, 76)]]


@pytest.fixture(scope="module")
def aligned_crops():
    return [open_image(ROOT / "img" / name) for name in ("1_001.jpg", "1_002.jpg", "2_001.jpg")]


@pytest.fixture
def two_faces(tmp_path):
    """One photograph of photo_1's person, whose face is larger, and of photo_3's on the right of him."""
    left, right = open_image(PHOTOS[0]), open_image(PHOTOS[2])
    both = Image.new("RGB", (left.width + right.width, 500))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    both.save(tmp_path / "two faces.png")
    return tmp_path / "two faces.png"


@pytest.fixture
def no_face(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(tmp_path / "sky.png")
    return tmp_path / "sky.png"


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def refuse(*arguments, **settings):
        raise urllib.request.URLError("no network")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_opencv(monkeypatch, tmp_path):
    def refuse(name, *arguments, original=builtins.__import__):
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return original(name, *arguments)
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.chdir(tmp_path)


def crop(detector, source, number=0):
    image = open_image(source)
    return align(image, detector.refine(image, detector.detect(image)[number]).landmarks)


def difference(first, second):
    """Mean over the pixels of two crops: below 26 for one photograph, above 44 for two."""
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()


# The detector

@pytest.mark.parametrize("number", [0, 1, 2])
def test_landmarks_are_in_the_templates_order_and_exact(detector, number):
    image = open_image(PHOTOS[number])
    face, = detector.detect(image)
    landmarks = detector.refine(image, face).landmarks
    left, top, width, height = face.box
    assert 0.6 <= face.score <= 1 and ((landmarks > (left, top)) & (landmarks < (left + width, top + height))).all()
    assert np.abs(landmarks[:2] - EYES[number]).max() < 0.1 * np.linalg.norm(np.subtract(*EYES[number]))
    fitted = similarity(landmarks, TEMPLATE)
    assert np.abs(landmarks @ fitted[:, :2].T + fitted[:, 2] - TEMPLATE).max() < 8  # a wrong order is off by 30


def test_crops_are_those_aligned_by_hand(detector, aligned_crops):
    for photo, expected in zip(PHOTOS, aligned_crops):
        others = [difference(crop(detector, other), expected) for other in PHOTOS if other != photo]
        assert difference(crop(detector, photo), expected) < 30 < min(others)


@pytest.mark.parametrize("turn", [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT])
def test_a_photograph_turned_by_its_exif_is_seen_upright(detector, tmp_path, turn):
    orientation = {Image.Transpose.ROTATE_90: 6, Image.Transpose.FLIP_LEFT_RIGHT: 2}[turn]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = open_image(PHOTOS[0])
    upright.transpose(turn).save(tmp_path / "turned.png", exif=exif)
    assert difference(crop(detector, tmp_path / "turned.png"), crop(detector, PHOTOS[0])) < 1


@pytest.mark.parametrize("scale", [0.16, 0.5, 2.2, 5])
def test_landmarks_do_not_depend_on_the_photographs_size(detector, scale):
    image = open_image(PHOTOS[0])
    expected = detector.refine(image, detector.detect(image)[0]).landmarks
    other = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    face = max(detector.detect(other), key=lambda face: face.score)
    found = (detector.refine(other, face).landmarks + 0.5) / scale - 0.5
    assert np.abs(found - expected).max() < 0.08 * 44  # of the distance between the eyes


def test_faces_that_fill_a_large_photograph_and_small_ones_in_it_are_found(detector):
    face = open_image(PHOTOS[0]).crop((140, 20, 290, 200))
    large, = detector.detect(face.resize((2500, 3000)))
    assert large.score > 0.8  # 0.7 at 1280 pixels, where others are lost or found twice
    crowd = Image.new("RGB", (4000, 3000), "darkgreen")
    small = face.resize((80, 96))
    places = [(left, top) for left in range(100, 3900, 400) for top in range(100, 2900, 400)]
    for place in places:
        crowd.paste(small, place)
    assert len(detector.detect(crowd)) == len(places)


def test_faces_come_largest_first_and_nothing_without_one(detector, two_faces, no_face):
    large, small = detector.detect(two_faces)
    assert large.box[2] * large.box[3] > small.box[2] * small.box[3] and large.box[0] < 400 < small.box[0]
    assert detector.detect(no_face) == []


def test_the_subject_is_large_and_near_the_middle(detector, two_faces):
    image = open_image(two_faces)
    faces = detector.detect(image)
    assert subject(faces, image) is faces[0]
    left = image.crop((200, 0, image.width, image.height))  # the larger face is at its edge now
    faces = detector.detect(left)
    assert len(faces) == 2 and subject(faces, left) is faces[1]


def test_threads_share_a_detector(detector):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        crops = list(pool.map(lambda photo: np.asarray(crop(detector, photo)), PHOTOS * 4))
    for number, found in enumerate(crops):
        assert np.array_equal(found, crops[number % 3])


def test_without_opencv_the_remedy_is_the_pip_command(no_opencv):
    with pytest.raises(UserError, match=r"pip install -r requirements-align\.txt"):
        FaceDetector()


def test_without_the_model_and_a_network_it_is_told_what_to_put_where(no_network):
    with pytest.raises(UserError) as caught:
        FaceDetector()
    assert detector_module.MODEL_URL in str(caught.value) and MODEL_PATH in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_file_in_the_models_place_is_a_user_error(face_model):
    face_model.write_bytes(b"a model")
    with pytest.raises(UserError, match="not the published file"):
        FaceDetector()


def test_the_published_hash_is_that_of_the_model(face_model):
    assert hashlib.sha256(face_model.read_bytes()).hexdigest() == detector_module.MODEL_SHA256


# Which pictures are photographs

@pytest.mark.parametrize("size, aligned", [
    ((112, 112), True), ((96, 112), True), ((96, 96), True), ((128, 128), True), ((250, 250), False),
    ((160, 160), False), ((112, 60), False), ((400, 500), False)])
def test_small_square_pictures_are_aligned_crops(size, aligned):
    assert looks_aligned(size) is aligned


def test_auto_leaves_crops_and_aligns_photographs(face_model, aligned_crops):
    automatic = FaceCrop()
    assert np.array_equal(automatic(aligned_crops[0]), aligned_crops[0]) and automatic.detector is None
    assert difference(automatic(PHOTOS[0]), aligned_crops[0]) < 30
    assert FaceCrop(align=False)(PHOTOS[0]).size == (400, 500)
    again = FaceCrop(align=True)(aligned_crops[0])
    assert not np.array_equal(again, aligned_crops[0]) and difference(again, aligned_crops[0]) < 30


def test_the_kth_face_is_the_kth_largest(face_model, two_faces, aligned_crops):
    assert difference(FaceCrop(face=1)(two_faces), aligned_crops[0]) < 30
    assert difference(FaceCrop(face=2)(two_faces), aligned_crops[2]) < 30


def test_too_few_faces_are_a_user_error_that_names_the_file(face_model, two_faces, no_face):
    with pytest.raises(UserError, match=r"two faces\.png shows 2 face.*--face 1 to 2"):
        FaceCrop(face=3)(two_faces)
    with pytest.raises(UserError, match=r"sky\.png shows no face.*--align no"):
        FaceCrop()(no_face)
    with pytest.raises(UserError, match="the picture shows no face"):
        FaceCrop()(open_image(no_face))


@pytest.mark.parametrize("missing", ["no_opencv", "no_network"])
def test_auto_without_a_detector_says_so_once_and_takes_pictures_as_they_are(request, missing, capsys):
    request.getfixturevalue(missing)
    automatic = FaceCrop()
    assert [automatic(photo).size for photo in PHOTOS] == [(400, 500), (261, 500), (220, 500)]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("alignment is off")
    with pytest.raises(UserError):
        FaceCrop(align=True)(PHOTOS[0])


@pytest.mark.parametrize("settings", [{"align": "yes"}, {"align": None}, {"align": 1}, {"face": 0}, {"face": True},
                                      {"face": 1.5}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises((TypeError, ValueError), match=next(iter(settings))):
        Arcface(model_path=ROOT / "model_data" / "arcface_mobilefacenet.pth", cuda=False, **settings)


# Arcface and predict.py

def test_arcface_tells_people_in_photographs_apart(face_model, published_weights):
    arcface = Arcface(model_path=published_weights, cuda=False)
    same, *others = (arcface.detect_image(PHOTOS[first], PHOTOS[second]) for first, second in ((0, 1), (0, 2), (1, 2)))
    assert same < 0.9 and min(others) > 1.1
    assert arcface.detect_image(PHOTOS[0], ROOT / "img" / "1_001.jpg") < 0.4
    drawn = arcface.draw(PHOTOS[0], ROOT / "img" / "2_001.jpg", arcface.verify(PHOTOS[0], ROOT / "img" / "2_001.jpg"))
    plain = arcface.draw(*[ROOT / "img" / "2_001.jpg"] * 2, arcface.verify(*[ROOT / "img" / "2_001.jpg"] * 2))
    assert drawn.height > plain.height + 300 and drawn.width == plain.width
    marks = (np.asarray(drawn)[:350, :350] == (0x30, 0xE0, 0x60)).all(2)
    assert 300 < marks.sum() < 3000  # the box and the landmarks


def test_predict_on_two_photographs(run_script, face_model, two_faces, tmp_path):
    weights = "--model-path", ROOT / "model_data" / "arcface_mobilefacenet.pth"
    result = run_script("predict.py", two_faces, PHOTOS[2], "--face", 1, *weights, "--no-cuda", "--save", "out.png")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "Verdict: different people" in result.stdout and Image.open(tmp_path / "out.png").height > 700


def test_predict_on_aligned_crops_never_imports_opencv(face_model):
    code = ("import sys; sys.argv[1:] = sys.argv[2:]; sys.path.insert(0, sys.argv.pop(1)); import predict\n"
            "predict.main(); sys.exit('cv2' in sys.modules or 'utils.faces.detector' in sys.modules)")
    result = subprocess.run(
        [sys.executable, "-c", code, "-", str(ROOT), *(str(ROOT / "img" / name) for name in ("1_001.jpg", "2_001.jpg")),
         "--model-path", str(ROOT / "model_data" / "arcface_mobilefacenet.pth"), "--no-cuda", "--save", "out.png"],
        cwd=face_model.parent.parent, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "Verdict: different people" in result.stdout, result.stderr


@pytest.mark.parametrize("arguments", [["--align", "maybe"], ["--face", "0"], ["--face", "two"]])
def test_predict_with_a_wrong_flag_is_a_user_error(call_script, arguments):
    assert_user_error(call_script("predict.py", *arguments), arguments[0])


def test_predict_on_a_photograph_without_the_face_asked_for_is_a_user_error(face_model, call_script):
    result = call_script("predict.py", PHOTOS[0], PHOTOS[1], "--face", 2,
                         "--model-path", ROOT / "model_data" / "arcface_mobilefacenet.pth")
    assert_user_error(result, PHOTOS[0], "--face 1 to 1")
