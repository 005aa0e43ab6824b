"""utils/faces/detector.py, utils/faces/face_crop.py and what predict.py makes of them, on real photographs."""
import builtins
import hashlib
import shutil
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, assert_user_error
from PIL import ExifTags, Image

from arcface import Arcface
from utils.common.errors import UserError
from utils.faces import detector as detector_module
from utils.faces.alignment import TEMPLATE, align, similarity
from utils.faces.detector import MODEL_PATH, FaceDetector, main_face
from utils.faces.face_crop import FaceCrop, NoDetector, looks_aligned
from utils.faces.images import open_image

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
    assert main_face(faces, image) is faces[0]
    left = image.crop((200, 0, image.width, image.height))  # the larger face is at its edge now
    faces = detector.detect(left)
    assert len(faces) == 2 and main_face(faces, left) is faces[1]


def test_threads_share_a_detector(detector):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        crops = list(pool.map(lambda photo: np.asarray(crop(detector, photo)), PHOTOS * 4))
    for number, found in enumerate(crops):
        assert np.array_equal(found, crops[number % 3])


@pytest.mark.parametrize("turn", detector_module.TURNS)
@pytest.mark.parametrize("photo", PHOTOS)
def test_a_photograph_that_lies_on_its_side_or_head_is_turned(detector, photo, turn):
    image = open_image(photo)
    lying = image.transpose(detector_module.TURNS[360 - turn])
    upright, faces, degrees = detector.detect_upright(lying)
    assert degrees == turn and np.array_equal(upright, image)
    assert np.array_equal(faces[0].box, detector.detect(image)[0].box)


def test_upright_photographs_stay_as_they_are_also_where_faces_are_covered(detector, shared):
    masked = sorted((shared / "faces_train").glob("[a-f]*/rofm_*1.jpg"))[:12]
    for source in (*PHOTOS, *sorted((shared / "lfw_raw_folds1-3").glob("A*/*_0001.jpg"))[:20], *masked):
        assert detector.detect_upright(source)[2] == 0, source


def test_without_a_face_in_any_turn_nothing_is_turned(detector, no_face):
    image, faces, degrees = detector.detect_upright(no_face)
    assert (image.size, faces, degrees) == ((300, 300), [], 0)


@pytest.mark.parametrize("error", [ImportError("libGL.so.1: cannot open\nshared object"), RuntimeError("numpy 1.x")])
def test_an_opencv_that_does_not_import_is_one_line_with_the_remedy(monkeypatch, error):
    def refuse(name, *arguments, original=builtins.__import__):
        if name == "cv2":
            raise error
        return original(name, *arguments)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r'without OpenCV 5 .*: pip install "opencv-python-headless>=5"') as caught:
        FaceDetector()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"__version__": "4.12.0", "FaceDetectorYN": cv2.FaceDetectorYN}])
def test_opencv_4_and_a_folder_called_cv2_are_one_line_with_the_remedy(monkeypatch, content):
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(**content))
    with pytest.raises(UserError, match=r'pip install "opencv-python-headless>=5"'):
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
    with pytest.raises(UserError, match=r"two faces\.png shows 2 faces, not 3: give --face 1 to 2"):
        FaceCrop(face=3)(two_faces)
    with pytest.raises(UserError, match=r"photo_1\.jpg shows 1 face, not 2: give --face 1$"):
        FaceCrop(face=2)(PHOTOS[0])
    with pytest.raises(UserError, match=r"sky\.png shows no face.*--align no"):
        FaceCrop()(no_face)
    with pytest.raises(UserError, match="the picture shows no face"):
        FaceCrop()(open_image(no_face))


@pytest.mark.parametrize("missing", ["no_opencv", "no_network"])
def test_a_photograph_without_a_detector_is_an_error_and_an_aligned_crop_is_none(request, missing, aligned_crops):
    request.getfixturevalue(missing)
    for crop in (FaceCrop(), FaceCrop(align=True)):
        with pytest.raises(NoDetector, match=r"photo_1\.jpg is a photograph.*--align no if") as caught:
            crop(PHOTOS[0])
        remedy = MODEL_PATH if missing == "no_network" else "pip install"
        assert remedy in str(caught.value) and "\n" not in str(caught.value)
    assert FaceCrop()(aligned_crops[0]).size == (112, 112) and FaceCrop(align=False)(PHOTOS[0]).size == (400, 500)


def test_a_photograph_is_turned_in_the_crop_and_in_what_is_shown(face_model, tmp_path):
    open_image(PHOTOS[0]).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png")
    crop = FaceCrop()
    look, upright = crop.look(tmp_path / "lying.png"), crop.look(PHOTOS[0])
    assert look.turned == 90 and upright.turned == 0 and np.array_equal(look.image, upright.image)
    assert np.array_equal(look.crop, upright.crop) and crop.turned == {tmp_path / "lying.png": 90}


@pytest.mark.parametrize("settings", [{"align": "yes"}, {"align": None}, {"align": 1}, {"face": 0}, {"face": True},
                                      {"face": 1.5}, {"face": (1, 2, 3)}, {"face": (0, 1)}, {"face": ["1", "2"]},
                                      {"face": ()}])
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
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # five entries and none there, of which Pillow warns
    lying = open_image(PHOTOS[2]).transpose(Image.Transpose.ROTATE_180)
    lying.save(tmp_path / "on its head.jpg", exif=damaged, quality=95)
    result = run_script("predict.py", two_faces, "on its head.jpg", "--face", 2, 1, *weights, "--no-cuda", "--save",
                        "out.png")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "Verdict: same person" in result.stdout and Image.open(tmp_path / "out.png").height > 700
    assert "on its head.jpg: turned by 180 degrees clockwise\n" in result.stdout


def test_each_picture_has_its_own_face(face_model, two_faces, published_weights):
    arcface = Arcface(model_path=published_weights, cuda=False, face=(1, 2))
    assert arcface.detect_image(PHOTOS[0], two_faces) > 1.1
    assert arcface.detect_image(two_faces, two_faces) > 1.1
    swapped = Arcface(model_path=published_weights, cuda=False, face=[2, 1])
    assert swapped.verify(two_faces, PHOTOS[2]).same and not swapped.verify(two_faces, PHOTOS[0]).same
    match = swapped.verify(two_faces, PHOTOS[2])
    assert swapped.draw(two_faces, PHOTOS[2], match).height > 700  # PHOTOS[2] has no second face


def test_the_face_of_a_query_is_the_first_and_of_a_gallery_the_largest(face_model, two_faces, published_weights):
    people = two_faces.parent / "people"
    people.mkdir()
    for name, photo in zip(("ann", "bob"), (PHOTOS[0], PHOTOS[2])):
        shutil.copy(photo, people / f"{name}.jpg")
    arcface = Arcface(model_path=published_weights, cuda=False, face=(2, 5))
    found = arcface.identify(two_faces, people)
    assert found[0].name == "bob" and arcface.draw_candidates(two_faces, found).width > 300


def test_a_gallery_of_photographs_without_a_detector_is_one_error(no_network, published_weights, tmp_path):
    (tmp_path / "people").mkdir()
    for photo in PHOTOS:
        shutil.copy(photo, tmp_path / "people")
    with pytest.raises(NoDetector, match="--align no"):
        Arcface(model_path=published_weights, cuda=False).open_gallery(tmp_path / "people")


def test_predict_on_aligned_crops_never_imports_opencv(face_model):
    code = ("import sys; sys.argv[1:] = sys.argv[2:]; sys.path.insert(0, sys.argv.pop(1)); import predict\n"
            "predict.main(); sys.exit('cv2' in sys.modules or 'utils.faces.detector' in sys.modules)")
    result = subprocess.run(
        [sys.executable, "-c", code, "-", str(ROOT), *(str(ROOT / "img" / name) for name in ("1_001.jpg", "2_001.jpg")),
         "--model-path", str(ROOT / "model_data" / "arcface_mobilefacenet.pth"), "--no-cuda", "--save", "out.png"],
        cwd=face_model.parent.parent, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "Verdict: different people" in result.stdout, result.stderr


@pytest.mark.parametrize("arguments", [["--align", "maybe"], ["--face", "0"], ["--face", "two"], ["--face", "2", "0"]])
def test_predict_with_a_wrong_flag_is_a_user_error(call_script, arguments):
    assert_user_error(call_script("predict.py", *arguments), arguments[0])


def test_predict_on_a_photograph_without_the_face_asked_for_is_a_user_error(face_model, call_script):
    result = call_script("predict.py", PHOTOS[0], PHOTOS[1], "--face", 2,
                         "--model-path", ROOT / "model_data" / "arcface_mobilefacenet.pth")
    assert_user_error(result, PHOTOS[0], "shows 1 face, not 2: give --face 1")


def test_predict_on_photographs_without_a_detector_gives_no_verdict(no_network, call_script):
    result = call_script("predict.py", PHOTOS[0], PHOTOS[2], "--model-path",
                         ROOT / "model_data" / "arcface_mobilefacenet.pth")
    assert_user_error(result, PHOTOS[0], MODEL_PATH, "--align no")
    assert "Verdict" not in result.stdout


def test_pictures_may_follow_the_numbers_of_faces(call_script):
    crops = [ROOT / "img" / name for name in ("1_001.jpg", "1_002.jpg")]
    weights = "--model-path", ROOT / "model_data" / "arcface_mobilefacenet.pth"
    for arguments in (["--face", 1, *crops], ["--face", 1, 2, *crops], [*crops, "--face", 1, 1]):
        assert "Verdict: same person" in call_script("predict.py", *weights, *arguments).stdout
