"""Invalid embeddings are an error. A backbone that cannot be folded still embeds."""
import pytest
import torch
from torch import nn

from arcface import Arcface
from nets.arcface import ArcfaceNet
from utils.common.errors import UserError
from utils.evaluation.embedding import InvalidEmbeddings, check_embeddings, inference_copy


def gray_images(*levels):
    return torch.stack([torch.full((8, 8, 3), level, dtype=torch.uint8) for level in levels])


def test_one_embedding_for_different_images_is_an_error_and_for_similar_ones_none():
    equal = torch.tensor([[0.6, 0.8]]).repeat(3, 1)
    with pytest.raises(InvalidEmbeddings, match="every image the same embedding"):
        check_embeddings(equal, gray_images(10, 10, 200))
    check_embeddings(equal, gray_images(10, 10, 11))
    check_embeddings(equal + torch.tensor([0, 1e-5, 0])[:, None], gray_images(10, 100, 200))
    check_embeddings(equal[:1], gray_images(10))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite_are_an_error_that_counts_them(value):
    embeddings = torch.eye(3)
    embeddings[1, 0] = value
    with pytest.raises(InvalidEmbeddings, match="1 of 3 images"):
        check_embeddings(embeddings, gray_images(1, 2, 3))


@pytest.mark.parametrize("value, word", [(0.0, "same embedding"), (float("nan"), "damaged")])
def test_weights_with_collapsed_embeddings_are_rejected_before_any_image(published_weights, tmp_path, value, word):
    state = torch.load(published_weights, weights_only=True)
    name = [name for name, entry in state.items() if name.endswith("weight") and entry.ndim == 1][-1]
    state[name].fill_(value)  # the scale of the last BatchNorm, so that every embedding is its bias
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=rf"broken\.pth.*{word}"):
        Arcface(model_path=tmp_path / "broken.pth", cuda=False)


class DataDependent(nn.Module):
    """torch.fx cannot trace this network, because the layer that runs depends on the images."""

    def __init__(self):
        super().__init__()
        self.bright, self.dark = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))

    def forward(self, images):
        layer = self.bright if images.mean() > 0 else self.dark
        return layer(images).mean((2, 3))


def test_a_backbone_that_cannot_be_traced_is_copied_without_folding():
    net, images = ArcfaceNet(), torch.randn(4, 3, 8, 8)
    net.arcface = DataDependent()
    fast = inference_copy(net.train())
    assert net.arcface.training and not fast.arcface.training
    with torch.inference_mode():
        torch.testing.assert_close(fast(images), net.eval()(images))
