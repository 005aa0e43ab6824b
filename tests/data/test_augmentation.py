"""utils/data/augmentation.py: what each kind changes, and that it depends on seed, epoch, batch and index alone."""
import pytest
import torch

from utils.data.augmentation import KINDS, augment
from utils.faces.images import normalise, preprocess


@pytest.fixture(scope="module")
def faces(shared):
    """uint8 (8, 112, 112, 3): two images of each of four people."""
    return torch.stack([torch.from_numpy(preprocess(image)) for image in sorted(
        shared.joinpath("lfw", "images").glob("A*/*_000[12].jpg"))[:8]])


def test_about_half_is_flipped_and_differs_by_batch_and_epoch():
    image = torch.arange(112 * 112 * 3).remainder(251).byte().reshape(112, 112, 3)
    images = image.repeat(200, 1, 1, 1)
    plain, streams = normalise(images), []
    for epoch, batch in ((0, 0), (0, 1), (1, 0)):
        out, _ = augment(images, 7, epoch, batch)
        flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(out, plain)])
        assert torch.equal(out, torch.where(flipped[:, None, None, None], plain.flip(3), plain))
        assert 70 < flipped.sum() < 130
        streams.append(tuple(flipped.tolist()))
    assert len(set(streams)) == 3
    assert torch.equal(augment(images, 7, 1, 0)[0], out)


@pytest.mark.parametrize("kind", KINDS)
def test_images_stay_within_range_and_depend_on_the_batch_alone(faces, kind):
    images, lam = augment(faces, 1, 0, 0, [kind])
    plain, _ = augment(faces, 1, 0, 0)
    changed = [not torch.equal(a, b) for a, b in zip(images, plain)]
    assert any(changed) and images.shape == plain.shape
    assert images.min() >= -1 - 1e-6 and images.max() <= 1 + 1e-6
    assert torch.equal(augment(faces, 1, 0, 0, [kind])[0], images)
    assert not torch.equal(augment(faces, 1, 0, 1, [kind])[0], images)
    assert (lam is None) == (kind != "mixup")
    if lam is not None:
        assert lam.min() >= 0.5 and lam.max() <= 1 and changed == (lam < 1).tolist()
        torch.testing.assert_close(
            images, plain * lam[:, None, None, None] + plain.roll(1, 0) * (1 - lam)[:, None, None, None])


def test_affine_moves_an_image_by_at_most_its_limit():
    """A white dot in the middle moves by at most the largest shift and stays visible."""
    images = torch.full((64, 112, 112, 3), 0, dtype=torch.uint8)
    images[:, 54:58, 54:58] = 255
    moved, _ = augment(images, 1, 0, 0, ["affine"])
    bright = moved.mean(1) > -0.5
    assert bright.flatten(1).any(1).all()
    positions = bright.nonzero()[:, 1:].float() - 55.5
    assert 3 < positions.abs().max() <= 0.1 * 56 * 1.1 + 4
