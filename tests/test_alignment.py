"""From photographs to aligned crops: the transform, the detector, the commands that use them."""
import csv
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT, assert_user_error
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from arcface import Arcface
from utils import detector as detector_module
from utils.align_folder import NO_FACE, SEVERAL, SMALL, align_folder, report_path
from utils.alignment import TEMPLATE, align, similarity
from utils.detector import FaceDetector, subject
from utils.errors import UserError
from utils.face_crop import FaceCrop, looks_aligned
from utils.lfw import SubjectCrop

PHOTOS = [ROOT / "img" / f"photo_{number}.jpg" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def model(shared):
    return next((shared / "yunet").glob("*.onnx"))


@pytest.fixture(scope="module")
def detector(model):
    pytest.importorskip("cv2")
    return FaceDetector(model)


@pytest.fixture
def model_in_place(model, tmp_path, monkeypatch):
    """The current folder is one whose model_data/ holds the detector's model."""
    pytest.importorskip("cv2")
    (tmp_path / "model_data").mkdir()
    shutil.copy(model, tmp_path / "model_data")
    monkeypatch.chdir(tmp_path)


def draw_points(size, points, radius):
    """A black picture of (width, height) with a soft white dot at each point."""
    x, y = np.arange(size[0]), np.arange(size[1])[:, None]
    dots = sum(np.exp(-((x - right) ** 2 + (y - down) ** 2) / (2 * radius ** 2)) for right, down in points)
    return Image.fromarray(np.uint8(255 * np.minimum(dots, 1))).convert("RGB")


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(-3.1, 3.1), st.floats(0.05, 20), st.floats(-500, 500), st.floats(-500, 500))
def test_a_similarity_is_found_again(angle, scale, right, down):
    rotation = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    target = scale * TEMPLATE @ rotation.T + (right, down)
    np.testing.assert_allclose(similarity(TEMPLATE, target), np.c_[scale * rotation, (right, down)], atol=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_no_other_similarity_is_nearer(seed):
    generator = np.random.default_rng(seed)
    source, target = generator.normal(size=(2, 5, 2)) * 40
    best = similarity(source, target)
    a, b = best[:, 0], best[:, 1]
    assert np.allclose(a, (b[1], -b[0])) and np.linalg.det(best[:, :2]) >= 0  # a rotation and a scale, no reflection
    error = np.square(apply(best, source) - target).sum()
    for change in generator.normal(size=(40, 4)) * 0.05:
        turn = np.array([(change[0], -change[1]), (change[1], change[0])])
        other = best + np.c_[turn, change[2:]]
        assert np.square(apply(other, source) - target).sum() >= error - 1e-9


@pytest.mark.parametrize("landmarks", [
    np.ones((5, 2)), np.full((5, 2), np.nan), np.zeros((4, 2)), TEMPLATE * (1, 0) * 0 + 7])
def test_landmarks_that_determine_no_crop_are_refused(landmarks):
    with pytest.raises(ValueError, match="landmarks"):
        align(Image.new("RGB", (100, 100)), landmarks)


@pytest.mark.parametrize(("angle", "scale"), [(0, 1), (0.4, 0.5), (-2.5, 3), (0.1, 9)])
def test_aligned_landmarks_lie_on_the_template(angle, scale):
    rotation = scale * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    points = TEMPLATE @ rotation.T
    points += 80 * scale - points.min(0)
    image = draw_points(tuple(int(side + 80 * scale) for side in points.max(0)), points, radius=2 * scale)
    crop = np.asarray(align(image, points).convert("L"), float)
    for x, y in TEMPLATE:
        rows, columns = np.mgrid[round(y) - 6:round(y) + 7, round(x) - 6:round(x) + 7]
        weight = crop[rows, columns]
        centre = (rows * weight).sum() / weight.sum(), (columns * weight).sum() / weight.sum()
        assert weight.max() > 150
        np.testing.assert_allclose(centre, (y, x), atol=0.15)


def test_a_large_face_is_not_aliased():
    stripes = Image.fromarray(np.tile(np.uint8([0, 255]), (1200, 600))).convert("RGB")
    crop = np.asarray(align(stripes, TEMPLATE * 10), float)
    assert 110 < crop[20:90, 20:90].mean() < 145 and crop[20:90, 20:90].std() < 12


def test_the_detector_finds_the_landmarks_in_the_templates_order(detector):
    for photo in PHOTOS:
        faces = detector.detect(photo)
        assert faces and faces[0].score > 0.8
        eye, other_eye, nose, mouth, other_mouth = detector.refine(Image.open(photo), faces[0]).landmarks
        assert eye[0] < nose[0] < other_eye[0] and mouth[0] < other_mouth[0]
        assert max(eye[1], other_eye[1]) < nose[1] < min(mouth[1], other_mouth[1])


def test_the_detector_works_in_the_upright_picture_and_at_any_size(detector, tmp_path):
    photo = Image.open(PHOTOS[0])
    rotated = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to see it
    rotated.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    expected = detector.detect(photo)[0].box
    np.testing.assert_allclose(detector.detect(tmp_path / "turned.jpg")[0].box, expected, atol=6)
    large = photo.resize((photo.width * 5, photo.height * 5))
    np.testing.assert_allclose(detector.detect(large)[0].box, expected * 5, atol=40)
    assert detector.detect(Image.new("RGB", (300, 200), "grey")) == []


def test_faces_come_by_size_and_the_subject_is_the_prominent_one(detector):
    first, second = Image.open(PHOTOS[0]), Image.open(PHOTOS[2])
    group = Image.new("RGB", (first.width + 260, first.height), "grey")
    group.paste(second.resize((250, 250 * second.height // second.width)), (0, 0))
    group.paste(first, (255, 0))
    faces = detector.detect(group)
    assert len(faces) == 2 and faces[0].box[0] > 255 > faces[1].box[0]
    assert subject(faces, group) is faces[0]


@pytest.mark.parametrize(("size", "aligned"), [
    ((112, 112), True), ((96, 112), True), ((128, 128), True), ((250, 250), False), ((40, 120), False)])
def test_what_is_small_and_almost_square_is_taken_for_an_aligned_crop(size, aligned):
    assert looks_aligned(size) == aligned


def test_photographs_and_crops_of_one_person_agree(model_in_place, published_weights):
    arcface = Arcface(model_path=published_weights, cuda=False, threshold=1.167)
    assert arcface.verify(*PHOTOS[:2]).same and not arcface.verify(PHOTOS[0], PHOTOS[2]).same
    assert arcface.detect_image(PHOTOS[0], ROOT / "img" / "1_001.jpg") < 0.5
    unaligned = Arcface(model_path=published_weights, cuda=False, align=False)
    assert unaligned.detect_image(PHOTOS[0], ROOT / "img" / "1_001.jpg") > 0.8
    picture = arcface.draw(PHOTOS[0], ROOT / "img" / "1_001.jpg", arcface.verify(*PHOTOS[:2]))
    plain = arcface.draw(*[ROOT / "img" / "1_001.jpg"] * 2, arcface.verify(*PHOTOS[:2]))
    assert picture.height > plain.height


def test_the_face_asked_for_is_taken_and_too_few_faces_are_named(model_in_place, tmp_path):
    first, second = Image.open(PHOTOS[0]), Image.open(PHOTOS[2])
    group = Image.new("RGB", (first.width + 260, first.height), "grey")
    group.paste(first, (255, 0))
    group.paste(second.resize((250, 250 * second.height // second.width)), (0, 0))
    group.save(tmp_path / "组 group.png")
    boxes = [FaceCrop(face=number).look(tmp_path / "组 group.png").face.box for number in (1, 2)]
    assert boxes[0][0] > 255 > boxes[1][0]
    with pytest.raises(UserError, match=r"组 group\.png shows 2 face\(s\), not 3"):
        FaceCrop(face=3)(tmp_path / "组 group.png")
    Image.new("RGB", (300, 300), "grey").save(tmp_path / "wall.png")
    with pytest.raises(UserError, match=r"wall\.png shows no face"):
        FaceCrop()(tmp_path / "wall.png")


def test_without_opencv_photographs_are_taken_as_they_are_and_that_is_said_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    crop = FaceCrop("auto")
    assert crop(PHOTOS[0]).size == Image.open(PHOTOS[0]).size and crop(PHOTOS[1]).width > 128
    said = capsys.readouterr().out
    assert said.count("alignment is off") == 1 and "pip install -r requirements-align.txt" in said
    with pytest.raises(UserError, match=r"requirements-align\.txt"):
        FaceCrop(True)(PHOTOS[0])


def test_without_a_network_the_message_says_what_to_put_where(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    monkeypatch.setattr(detector_module, "MODEL_URL", "http://127.0.0.1:9/yunet.onnx")
    with pytest.raises(UserError, match=r"cannot download http://127\.0\.0\.1:9/yunet\.onnx .* put it at .*yunet"):
        FaceDetector(tmp_path / "yunet.onnx")
    (tmp_path / "yunet.onnx").write_bytes(b"another file")
    with pytest.raises(UserError, match="SHA-256"):
        FaceDetector(tmp_path / "yunet.onnx")


def test_raw_lfw_is_cropped_like_the_hand_aligned_pictures(detector, shared):
    paths = sorted((shared / "lfw_raw_folds1-3").glob("A*/*.jpg"))[:8]
    crop = SubjectCrop(detector)
    for path in paths:
        found, by_hand = (np.asarray(ImageOps.grayscale(image), float).ravel() for image in (
            crop(path), Image.open(shared / "lfw" / "images" / path.parent.name / path.name)))
        assert np.corrcoef(found, by_hand)[0, 1] > 0.8, path
    assert not crop.without_face


def test_a_raw_picture_without_a_face_is_cropped_where_faces_are(detector, tmp_path):
    crop = SubjectCrop(detector)
    Image.new("RGB", (250, 250), "grey").save(tmp_path / "x.jpg")
    assert crop(tmp_path / "x.jpg").size == (112, 112) and crop.without_face == {tmp_path / "x.jpg"}


@pytest.fixture
def photographs(tmp_path):
    """Two people: one face, one face called the same, two faces, none, a small one, and what is no picture."""
    folder = tmp_path / "photographs"
    for name in ("one; 王", "two"):
        (folder / name).mkdir(parents=True)
    shutil.copy(PHOTOS[0], folder / "one; 王" / "a.jpg")
    Image.open(PHOTOS[1]).save(folder / "one; 王" / "a.png")
    group = Image.new("RGB", (900, 500))
    group.paste(Image.open(PHOTOS[0]).resize((450, 450)), (0, 0))
    group.paste(Image.open(PHOTOS[2]).resize((400, 400)), (460, 0))
    group.save(folder / "two" / "group.jpg")
    Image.new("RGB", (300, 300), "grey").save(folder / "two" / "wall.jpg")
    small = Image.open(PHOTOS[2])
    canvas = Image.new("RGB", (400, 400), "grey")
    canvas.paste(small.resize((90, 90 * small.height // small.width)), (150, 150))
    canvas.save(folder / "two" / "small.jpg")
    (folder / "two" / "README.md").write_text("stray")
    return folder


def test_a_folder_of_photographs_becomes_one_of_crops_and_goes_on_where_it_was(detector, photographs, tmp_path):
    before = {path: path.read_bytes() for path in photographs.rglob("*") if path.is_file()}
    target = tmp_path / "crops"
    written, there, remarks = align_folder(photographs, target, detector, lambda items, total: items)
    crops = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.jpg"))
    assert {"one; 王/a.jpg", "one; 王/a.png.jpg", "two/group.jpg"} <= set(crops)
    assert written == len(crops) and there == 0
    assert all(Image.open(target / crop).size == (112, 112) for crop in crops)
    assert NO_FACE in remarks["two/wall.jpg"] and SEVERAL in remarks["two/group.jpg"]
    assert SMALL in remarks["two/small.jpg"] or NO_FACE in remarks["two/small.jpg"]
    assert "left out" in remarks["two/README.md"]
    rows = list(csv.reader(report_path(target).open(encoding="utf-8")))
    assert dict(rows[1:]) == remarks
    assert {path: path.read_bytes() for path in photographs.rglob("*") if path.is_file()} == before

    (target / "two" / "group.jpg").unlink()
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*.jpg")}
    assert align_folder(photographs, target, detector, lambda items, total: items) == (1, len(crops) - 1, remarks)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


@pytest.mark.parametrize("target", ["photographs", "photographs/crops", "."])
def test_crops_never_come_among_the_originals(detector, photographs, tmp_path, target):
    with pytest.raises(UserError, match="lie in one another"):
        align_folder(photographs, tmp_path / target, detector, lambda items, total: items)


def test_the_command_aligns_and_writes_the_annotation_of_the_crops(run_script, model_in_place, photographs, tmp_path):
    result = run_script("txt_annotation.py", "--datasets-path", photographs, "--align-to", tmp_path / "crops")
    assert result.returncode == 0, result.stderr
    assert f"{NO_FACE}: 1" in result.stdout and "crops written" in result.stdout
    lines = (tmp_path / "cls_train.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 3 and all(str(tmp_path / "crops") in line for line in lines)


def test_predict_on_two_photographs_and_one_without_a_face(run_script, model_in_place, published_weights, tmp_path):
    result = run_script("predict.py", *PHOTOS[:2], "--model-path", published_weights, "--save", "answer.png")
    assert result.returncode == 0 and "Verdict: same person" in result.stdout, result.stdout + result.stderr
    assert Image.open(tmp_path / "answer.png").height > 600
    Image.new("RGB", (300, 300), "grey").save(tmp_path / "wall.png")
    assert_user_error(run_script("predict.py", PHOTOS[0], "wall.png", "--model-path", published_weights),
                      "wall.png", "no face")
