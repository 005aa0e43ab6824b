"""utils/faces/blank.py: a picture that shows no face gets no verdict, and every face gets one."""
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw, ImageFilter

from arcface import Arcface
from utils.common.errors import UserError
from utils.faces.face_crop import FaceCrop

FACE = ROOT / "img" / "1_001.jpg"


def noise(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8)


def text():
    image = Image.new("RGB", (112, 112), "ivory")
    for line in range(9):
        ImageDraw.Draw(image).text((2, 2 + 12 * line), "the quick brown fox"[line:], "black")
    return np.asarray(image)


def gradient():
    return np.broadcast_to(np.linspace(20, 230, 112).astype(np.uint8)[:, None, None], (112, 112, 3)).copy()


NOTHING = {
    "black": np.zeros((112, 112, 3), np.uint8), "white": np.full((112, 112, 3), 255, np.uint8),
    "colour": np.tile(np.array((30, 90, 200), np.uint8), (112, 112, 1)), "small": np.zeros((96, 96, 3), np.uint8),
    "gradient": gradient(), "noise": noise(), "blurred": np.asarray(Image.fromarray(noise()).filter(
        ImageFilter.GaussianBlur(2))), "text": text(),
    "checkerboard": np.kron(np.indices((14, 14)).sum(0)[..., None] % 2, np.full((8, 8, 3), 255)).astype(np.uint8)}


@pytest.fixture(scope="module", params=["bundled", "published"])
def predictor(request, published_weights, detector):
    weights = published_weights if request.param == "published" else ROOT / "model_data" / "arcface_mobilefacenet.pth"
    arcface = Arcface(model_path=weights, cuda=False)
    for crop in (*arcface.crops, arcface.gallery_crop):
        crop.detector = detector
    return arcface


@pytest.mark.parametrize("kind", NOTHING)
def test_a_crop_without_a_face_gets_no_verdict(predictor, kind, tmp_path):
    Image.fromarray(NOTHING[kind]).save(tmp_path / f"{kind}.png")
    for pair in ((tmp_path / f"{kind}.png", FACE), (FACE, tmp_path / f"{kind}.png")):
        with pytest.raises(UserError, match=rf"{kind}\.png shows no face: give a photograph"):
            predictor.verify(*pair)
    with pytest.raises(UserError, match="the picture shows no face"):
        predictor.detect_image(NOTHING[kind], NOTHING[kind])


def test_a_gallery_leaves_it_out_and_names_it(predictor, tmp_path):
    Image.open(FACE).save(tmp_path / "ann.png")
    Image.fromarray(NOTHING["noise"]).save(tmp_path / "bob.png")
    gallery = predictor.open_gallery(tmp_path)
    assert gallery.paths == ["ann.png"] and len(gallery.skipped) == 1
    assert f"{tmp_path / 'bob.png'} shows no face" in gallery.skipped[0]
    with pytest.raises(UserError, match="the picture shows no face"):
        predictor.identify(NOTHING["noise"], gallery)


def test_every_face_is_embedded_also_covered_blurred_and_from_the_side(predictor, shared):
    train = shared / "faces_train"
    faces = [*sorted((shared / "lfw" / "images").glob("B*/*.jpg"))[:40], *sorted(train.glob("*/rofm_*.jpg"))[:22],
             *sorted(train.glob("*/rofg_*00.jpg"))[:10], *sorted(train.glob("*/cfp_*12.jpg"))[:10],
             *sorted(train.glob("*/bly_*00.jpg"))[:10]]
    assert len(faces) == 90 and predictor.embed(faces).shape == (90, 128)


def test_without_opencv_a_closer_look_is_an_error_and_an_ordinary_face_needs_none(predictor, monkeypatch, detector):
    def refuse():
        raise UserError("no face detection")
    monkeypatch.setattr("utils.faces.detector.FaceDetector", refuse)
    crop = FaceCrop()
    assert predictor.embed([FACE], crop=crop).shape == (1, 128) and crop.detector is None
    with pytest.raises(UserError, match=r"the picture may show no face.*no face detection.*--align no"):
        predictor.embed([NOTHING["gradient"]], crop=crop)
    for kind in ("black", "white", "colour", "noise", "text"):  # as the pixels tell, whatever is asked for
        for align in ("auto", False):
            with pytest.raises(UserError, match="the picture shows no face"):
                predictor.embed([NOTHING[kind]], crop=FaceCrop(align))
    assert predictor.embed([NOTHING["gradient"]], crop=FaceCrop(align=False)).shape == (1, 128)
