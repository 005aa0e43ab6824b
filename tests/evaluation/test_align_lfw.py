"""The original 250x250 images of LFW, aligned."""
import json

import numpy as np
import pytest
from PIL import Image

from utils.evaluation.pairs import align_lfw, read_pairs
from utils.faces.alignment import TEMPLATE


def every(iterable, total):
    return iterable


@pytest.fixture
def few_pairs(shared, tmp_path):
    """2 folds of 5 + 5 pairs: the ends of the first two folds' genuine and impostor lists."""
    lines = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:]
    chosen = [line for start in (0, 300, 600, 900) for line in lines[start:start + 5]]
    (tmp_path / "pairs.txt").write_text("\n".join(["2 5", *chosen, ""]), encoding="utf-8")
    return tmp_path / "pairs.txt"


def test_aligned_images_have_nearly_the_embeddings_of_the_hand_aligned_ones(
        shared, detector, arcface, few_pairs, tmp_path):
    paths = read_pairs(few_pairs, shared / "lfw_raw_folds1-3").paths
    assert align_lfw(paths, tmp_path / "lfw", detector, every) == 0
    found, by_hand = (arcface.embed([folder / path.relative_to(shared / "lfw_raw_folds1-3") for path in paths])
                      for folder in (tmp_path / "lfw", shared / "lfw" / "images"))
    distances = np.linalg.norm(found - by_hand, axis=1)
    assert np.median(distances) < 0.36 and distances.max() < 1.2


def test_without_a_face_an_image_is_cropped_at_the_usual_place(tmp_path):
    class Blind:
        def detect(self, image):
            return []
    spot = Image.new("RGB", (250, 250))
    spot.paste("white", (103, 111, 107, 114))  # an eye
    (tmp_path / "raw" / "Ann").mkdir(parents=True)
    spot.save(tmp_path / "raw" / "Ann" / "Ann_0001.jpg")
    assert align_lfw([tmp_path / "raw" / "Ann" / "Ann_0001.jpg"], tmp_path / "lfw", Blind(), every) == 1
    crop = np.asarray(Image.open(tmp_path / "lfw" / "Ann" / "Ann_0001.jpg"))
    row, column = np.unravel_index(crop[..., 0].argmax(), (112, 112))
    assert abs(column - TEMPLATE[0, 0]) < 3 and abs(row - TEMPLATE[0, 1]) < 3


def test_eval_aligns_a_folder_of_originals(run_script, shared, published_weights, few_pairs, face_model, tmp_path):
    result = run_script("eval_LFW.py", "--align-from", shared / "lfw_raw_folds1-3", "--model-path", published_weights,
                        "--lfw-pairs", few_pairs, "--device", "cpu", "--json", "metrics.json")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "lfw holds the aligned images; 0 without" in result.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["aligned"] is True and metrics["accuracy"] >= 0.9
