"""A photograph whose faces are numbered as --face counts them."""
import numpy as np
import pytest
from PIL import Image, ImageChops

from utils.drawing.photograph import draw_faces
from utils.drawing.pictures import LIME
from utils.faces.detector import Face
from utils.faces.face_crop import Look


def make_look(boxes, size=(400, 300), chosen=1):
    """A grey photograph with faces in these boxes (x, y, width, height)."""
    faces = [Face(np.array(box, float), np.array(box[:2]) + np.multiply(
        [(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)], box[2:]), 0.9) for box in boxes]
    image = Image.new("RGB", size, (128, 128, 128))
    return Look(image, image, faces, faces[chosen - 1]._replace(landmarks=faces[chosen - 1].landmarks))


def lime(picture):
    return (np.asarray(picture) == list(bytes.fromhex(LIME[1:]))).all(2)


@pytest.mark.parametrize("face, size, longest", [
    (200, (400, 300), 336), (60, (400, 300), 336), (30, (400, 300), 533), (8, (400, 300), 1008), (30, (60, 60), 336),
    (2000, (4000, 3000), 336), (100, (4000, 3000), 1008)])
def test_the_smaller_the_faces_the_larger_the_photograph_within_limits(face, size, longest):
    picture = draw_faces(make_look([(10, 10, face, face), (20, 20, face * 1.2, face * 1.2)], size))
    assert max(picture.size) == longest
    assert picture.width / picture.height == pytest.approx(size[0] / size[1], abs=0.01)


def test_the_face_used_has_the_landmarks_and_the_colour():
    boxes = [(200, 100, 90, 90), (40, 100, 80, 80)]
    for chosen, box in enumerate(boxes, 1):
        marked = np.argwhere(lime(draw_faces(make_look(boxes, chosen=chosen)))) / (336 / 400)
        low, high = np.array([box[1], box[0]]), np.array([box[1] + box[3], box[0] + box[2]])
        assert (marked >= low - (24, 4)).all() and (marked <= high + 4).all()
        assert ((marked > low + 10) & (marked < high - 10)).all(1).sum() > 5 * 9  # five dots


@pytest.mark.parametrize("box", [(150, 100, 80, 80), (-20, -30, 90, 90), (350, 100, 90, 90), (0, 250, 90, 90)])
def test_a_number_is_written_within_the_photograph_whatever_the_box(box):
    """Drawn as the first and as the second of the faces, it differs in its tag, and in that alone."""
    other = (230, 10, 85, 85)
    first, second = (make_look(boxes, chosen=chosen) for boxes, chosen in (([other, box], 2), ([box, other], 1)))
    found = ImageChops.difference(draw_faces(first), draw_faces(second)).convert("L")
    left, top = np.clip(np.multiply(box[:2], 336 / 400) - (1, 16), 0, None).astype(int)
    tag = np.asarray(found)[top:top + 18, left:left + 18]
    assert (tag > 60).sum() > 10
    assert (np.asarray(found) > 0).sum() < 2 * 16 * 16


def test_a_group_photograph_has_a_number_on_every_face(shared, detector):
    paths = sorted(shared.joinpath("lfw_raw_folds1-3").glob("*/*.jpg"))[:12]
    group = Image.new("RGB", (4 * 90, 3 * 90))
    for place, path in enumerate(paths):
        group.paste(Image.open(path).resize((90, 90)), (place % 4 * 90, place // 4 * 90))
    faces = detector.detect(group)
    assert len(faces) >= 12
    for chosen in (1, 12):
        picture = draw_faces(Look(group, group, faces, faces[chosen - 1]))
        assert picture.width > 500
        scale = picture.width / group.width
        tags = [picture.crop((x, y - 15, x + 12, y)) for x, y in
                (np.maximum(face.box[:2] * scale, (0, 16)).round().astype(int) for face in faces)]
        shares = [(np.asarray(tag) == list(bytes.fromhex(LIME[1:]))).all(2).mean() for tag in tags]
        assert [place for place, share in enumerate(shares, 1) if share > 0.3] == [chosen]
        light = [(np.asarray(tag.convert("L")) > 100).mean() for tag in tags]
        assert min(light) > 0.4
