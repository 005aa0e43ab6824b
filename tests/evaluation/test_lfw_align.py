"""eval_LFW.py --align: the original 250x250 pictures of LFW."""
import json
import re

import numpy as np
import pytest
from PIL import Image

from arcface import Arcface
from utils.evaluation import lfw
from utils.faces.alignment import TEMPLATE


@pytest.fixture
def few_pairs(shared, tmp_path):
    """2 folds of 5 + 5 pairs: the ends of the first two folds' genuine and impostor lists."""
    lines = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:]
    chosen = [line for start in (0, 300, 600, 900) for line in lines[start:start + 5]]
    (tmp_path / "pairs.txt").write_text("\n".join(["2 5", *chosen, ""]), encoding="utf-8")
    return tmp_path / "pairs.txt"


def test_raw_lfw_gives_nearly_the_embeddings_of_the_hand_aligned_crops(
        shared, detector, published_weights, few_pairs):
    paths = lfw.read_pairs(few_pairs, shared / "lfw_raw_folds1-3").paths
    subject_crop = lfw.SubjectCrop(detector)
    arcface = Arcface(model_path=published_weights, cuda=False)
    found = arcface.embed([subject_crop(path) for path in paths])
    by_hand = arcface.embed([shared / "lfw" / "images" / path.relative_to(shared / "lfw_raw_folds1-3")
                             for path in paths])
    distances = np.linalg.norm(found - by_hand, axis=1)
    assert np.median(distances) < 0.36 and distances.max() < 1.2 and subject_crop.without_face == set()


def test_without_a_face_lfw_is_cropped_where_its_faces_are(tmp_path):
    class Blind:
        def detect(self, image):
            return []
    subject_crop, path = lfw.SubjectCrop(Blind()), tmp_path / "spot.png"
    spot = Image.new("RGB", (250, 250))
    spot.paste("white", (103, 111, 107, 114))  # an eye
    spot.save(path)
    row, column = np.unravel_index(np.asarray(subject_crop(path))[..., 0].argmax(), (112, 112))
    assert abs(column - TEMPLATE[0, 0]) < 3 and abs(row - TEMPLATE[0, 1]) < 3
    assert subject_crop.without_face == {path}


def test_eval_aligns_raw_lfw(run_script, shared, published_weights, few_pairs, face_model, tmp_path):
    raw = shared / "lfw_raw_folds1-3"
    result = run_script("eval_LFW.py", "--align", "--model-path", published_weights, "--lfw-dir", raw, "--lfw-pairs",
                        few_pairs, "--device", "cpu", "--json", "figures.json", "--mistakes", "mistakes.png")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert re.search(r"^aligned; 0 pictures without a face", result.stdout, re.MULTILINE)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["aligned"] is True and figures["accuracy"] >= 0.9
