"""Embeddings that tell nobody apart are an error, and like pictures none."""
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from arcface import Arcface
from utils.common.errors import UserError
from utils.evaluation.embedding import InvalidEmbeddings, check_embeddings


def images(*greys):
    return torch.stack([torch.full((8, 8, 3), grey, dtype=torch.uint8) for grey in greys])


def test_one_embedding_for_unlike_pictures_is_an_error_and_for_like_ones_none():
    equal = torch.tensor([[0.6, 0.8]]).repeat(3, 1)
    with pytest.raises(InvalidEmbeddings, match="every image the same embedding"):
        check_embeddings(equal, images(10, 10, 200))
    check_embeddings(equal, images(10, 10, 11))
    check_embeddings(equal + torch.tensor([0, 1e-5, 0])[:, None], images(10, 100, 200))
    check_embeddings(equal[:1], images(10))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_embedding_that_is_not_finite_is_an_error_that_counts_them(value):
    embeddings = torch.eye(3)
    embeddings[1, 0] = value
    with pytest.raises(InvalidEmbeddings, match="1 of 3 images"):
        check_embeddings(embeddings, images(1, 2, 3))


@pytest.mark.parametrize("value, word", [(0.0, "same embedding"), (float("nan"), "damaged")])
def test_weights_that_tell_nobody_apart_are_refused_before_any_picture(published_weights, tmp_path, value, word):
    state = torch.load(published_weights, weights_only=True)
    name = [name for name, entry in state.items() if name.endswith("weight") and entry.ndim == 1][-1]
    state[name].fill_(value)  # the scale of the last BatchNorm: every embedding is its bias
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=rf"broken\.pth.*{word}"):
        Arcface(model_path=tmp_path / "broken.pth", cuda=False)


def test_a_picture_beside_itself_is_no_error(arcface):
    picture = np.asarray(Image.open(ROOT / "img" / "1_001.jpg"))
    assert arcface.detect_image(picture, picture.copy()) == pytest.approx(0, abs=1e-6)
