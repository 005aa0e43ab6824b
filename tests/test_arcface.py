"""arcface.py: the predictor, with the published weights and real faces."""
import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from arcface import Arcface
from nets.arcface import ArcfaceNet
from utils.evaluation.pairs import read_pairs
from utils.faces.images import preprocess

SETTINGS = ("model_path", "backbone", "input_shape", "letterbox_image", "cuda", "align", "face", "threshold")


@pytest.fixture(scope="module")
def pairs(shared):
    """The first twelve genuine and twelve impostor pairs of LFW, as paths: (genuine, impostor)."""
    found = read_pairs(ROOT / "model_data" / "lfw_pair.txt", shared / "lfw" / "images")
    paths = [(str(found.paths[first]), str(found.paths[second])) for first, second in zip(found.first, found.second)]
    return paths[:12], paths[300:312]


@pytest.fixture(scope="module")
def faces(pairs):
    return [path for pair in pairs[0][:3] + pairs[1][:3] for path in pair]


def kinds(path):
    """One image as a path, a path object, a PIL image and an array."""
    image = Image.open(path).convert("RGB")
    return [path, Path(path), image, np.asarray(image)]


# distances and verdicts

def test_every_kind_of_image_gives_the_same_python_float(arcface, faces):
    distances = [arcface.detect_image(first, second)
                 for first, second in zip(kinds(faces[0]), reversed(kinds(faces[1])))]
    assert all(type(distance) is float for distance in distances)
    assert np.ptp(distances) < 1e-6 and 0 < distances[0] < 2
    assert arcface.detect_image(arcface.find(faces[0]), arcface.find(faces[1])) == pytest.approx(distances[0], abs=1e-6)


def test_verify_fields_agree(arcface, pairs):
    for pair, verdict in ((pairs[0][0], "same"), (pairs[1][0], "different"), ((pairs[0][0][0],) * 2, "same")):
        match = arcface.verify(*pair)
        first, second = arcface.embed(pair).astype(np.float64)
        assert match.distance == pytest.approx(np.sqrt(((first - second) ** 2).sum()), abs=1e-6)
        assert match.similarity == pytest.approx(1 - match.distance ** 2 / 2, abs=1e-9)
        assert match.similarity == pytest.approx(first @ second, abs=1e-5)
        assert match.threshold == arcface.threshold and match.remarks == ()
        assert match.verdict == verdict and match.same is (verdict == "same")


# embeddings

def test_embeddings_do_not_depend_on_the_batch_size_the_order_or_the_kind_of_iterable(arcface, faces):
    expected = arcface.embed(faces)
    assert expected.dtype == np.float32 and arcface.embed([]).shape == (0, 128)
    for batch_size in (1, 5, 1000):
        assert np.abs(arcface.embed(faces, batch_size=batch_size) - expected).max() < 1e-5
    assert np.abs(arcface.embed(faces[::-1])[::-1] - expected).max() < 1e-5
    arrays = np.stack([np.asarray(Image.open(path)) for path in faces])
    for iterable in (tuple(faces), (path for path in faces), np.array(faces), arrays):
        assert np.abs(arcface.embed(iterable) - expected).max() < 1e-5


def test_embeddings_are_those_of_the_plain_network(arcface, published_weights, faces):
    net = ArcfaceNet()
    net.load_state_dict(torch.load(published_weights, weights_only=True))
    images = torch.from_numpy(np.stack([preprocess(path) for path in faces]))
    with torch.no_grad():
        expected = net.eval()((images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).numpy()
    assert np.abs(arcface.embed(faces) - expected).max() < 1e-5


def test_bf16_changes_embeddings_a_little(arcface, published_weights, faces):
    fast = Arcface(model_path=str(published_weights), cuda=False, bf16=True)
    similarity = (fast.embed(faces) * arcface.embed(faces)).sum(1)
    assert 0.999 < similarity.min() < similarity.max() < 1 - 1e-7


def test_letterbox_setting_reaches_the_images(published_weights, faces):
    wide = Image.open(faces[0]).resize((224, 112))
    padding, stretching = (Arcface(model_path=str(published_weights), cuda=False, align=False, letterbox_image=pad)
                           for pad in (True, False))
    assert stretching.detect_image(wide, faces[0]) < 0.3 < padding.detect_image(wide, faces[0])


def test_one_image_instead_of_a_list_is_a_type_error_with_the_remedy(arcface, faces):
    for image in [*kinds(faces[0]), arcface.find(faces[0])]:
        with pytest.raises(TypeError, match=r"give \[image\]$"):
            arcface.embed(image)


def test_invalid_images_may_be_skipped_and_the_others_embedded(arcface, faces, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    images = [faces[0], tmp_path / "text.jpg", noise, faces[1], "gone.jpg"]
    embeddings, errors = arcface.embed(images, batch_size=2, on_error="skip")
    assert np.abs(embeddings[[0, 3]] - arcface.embed(faces[:2])).max() < 1e-5
    assert list(errors) == [1, 2, 4] and np.isnan(embeddings[list(errors)]).all()
    assert "text.jpg does not decode" in errors[1] and "shows no face" in errors[2] and "gone.jpg" in errors[4]


# settings

def test_an_unknown_setting_is_a_type_error_that_lists_the_settings():
    with pytest.raises(TypeError) as caught:
        Arcface(modelpath="x.pth")
    assert all(name in str(caught.value) for name in ("modelpath", *SETTINGS))


@pytest.mark.parametrize("settings", [{"threshold": math.nan}, {"threshold": -1}, {"align": "maybe"}, {"face": 0},
                                      {"face": "2"}])
def test_an_invalid_value_is_a_value_error(published_weights, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Arcface(model_path=published_weights, cuda=False, **settings)


# threads and processes

def test_threads_may_share_a_predictor_and_an_image(arcface, faces):
    image, expected = Image.open(faces[0]), arcface.detect_image(*faces[:2])
    with ThreadPoolExecutor(8) as pool:
        for distance in pool.map(lambda _: arcface.detect_image(image, faces[1]), range(32)):
            assert distance == pytest.approx(expected, abs=1e-5)


def test_a_pickled_predictor_is_the_same(published_weights, faces):
    arcface = Arcface(model_path=published_weights, cuda=False, threshold=0.75)
    copy = pickle.loads(pickle.dumps(arcface))
    assert copy.threshold == 0.75 and np.array_equal(copy.embed(faces), arcface.embed(faces))


FRESH = """
import multiprocessing, os, sys
from arcface import Arcface
images = ["img/1_001.jpg", "img/1_002.jpg"] * 8
arcface = Arcface(device="cpu")
expected = arcface.embed(images)
arcface.draw(*images[:2], arcface.verify(*images[:2]))
print([name for name in sys.modules if name.startswith(("matplotlib", "sklearn", "scipy", "cv2"))])
if hasattr(os, "fork"):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(all(abs(found - expected).max() < 1e-5 for found in pool.map(arcface.embed, [images] * 4)))
"""


@pytest.fixture(scope="module")
def fresh():
    """The lines that FRESH prints in a new process with two threads, because OpenMP's do not survive a fork."""
    result = subprocess.run([sys.executable, "-c", FRESH], cwd=ROOT, capture_output=True, text=True, timeout=120,
                            env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_comparing_and_drawing_never_import_matplotlib(fresh):
    assert fresh[0] == "[]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_may_use_the_predictor_of_its_parent(fresh):
    assert fresh[1] == "True"
