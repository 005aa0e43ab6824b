"""MarginHead.losses, which training minimises, against the cross-entropy of its logits."""
import math

import pytest
import torch
import torch.nn.functional as F
from training_data import NormMargin, by_logits

from nets.head import ArcMarginProduct


def make(kind=ArcMarginProduct, classes=101, dimensions=16, images=12, dtype=torch.float64, **settings):
    """Return (head, embeddings not of length 1, labels, lam), one image on its class's axis and one opposite it."""
    torch.manual_seed(5)
    head = kind(dimensions, classes, settings.pop("s", 64.0), 0.5, **settings).to(dtype)
    embeddings, labels = torch.randn(images, dimensions, dtype=dtype), torch.randint(0, classes, (images,))
    embeddings[0], embeddings[-1] = 3 * head.weight.detach()[labels[0]], -head.weight.detach()[labels[-1]]
    return head, embeddings.requires_grad_(), labels, torch.rand(images, dtype=dtype)


def gradients(losses, head, embeddings):
    weights = torch.linspace(0.5, 2, len(losses), dtype=losses.dtype)  # each image's own
    return torch.autograd.grad((losses * weights).mean(), [embeddings, head.weight])


def assert_close(found, expected, tolerance):
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


CASES = [{}, {"kind": NormMargin}, {"easy_margin": True}, {"s": 4.0}, {"classes": 2, "images": 5}]


def assert_as_by_logits(head, embeddings, labels, lam, tolerance):
    expected, expected_correct = by_logits(head, embeddings, labels, lam)
    losses, correct = head.losses(embeddings, labels, lam)
    assert_close(losses, expected, tolerance)
    assert torch.equal(correct, expected_correct)
    for found, right in zip(gradients(losses, head, embeddings), gradients(expected, head, embeddings)):
        assert_close(found, right, tolerance)


@pytest.mark.parametrize("mixup", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_losses_and_gradients_are_those_of_the_logits(case, mixup, dtype, tolerance):
    head, embeddings, labels, lam = make(dtype=dtype, **case)
    if dtype == torch.float32:  # on the axis the gradient of arccos is rounding error
        embeddings = torch.randn_like(embeddings).requires_grad_()
    assert_as_by_logits(head, embeddings, labels, lam if mixup else None, tolerance)


def test_both_targets_of_an_image_may_be_one_class():
    head, embeddings, labels, lam = make()
    labels[:6] = labels[0]
    assert_as_by_logits(head, embeddings, labels, lam, 1e-10)


def test_autocast_changes_no_digit_of_losses_and_gradients():
    results = []
    for enabled in (False, True):
        head, embeddings, labels, lam = make(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses, _ = head.losses(embeddings, labels, lam.float())
            results.append((losses, *gradients(losses, head, embeddings)))
    for plain, mixed in zip(*results):
        assert mixed.dtype == torch.float32 and torch.equal(plain, mixed)


def test_a_second_backward_pass_is_an_error():
    head, embeddings, labels, _ = make()
    loss = head.losses(embeddings, labels)[0].mean()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_the_loss_of_a_single_class_is_zero():
    head, embeddings, labels, lam = make(classes=1)
    for mixed in (None, lam):
        losses, correct = head.losses(embeddings, labels, mixed)
        assert losses.eq(0).all() and correct.all()
        assert all(gradient.eq(0).all() for gradient in gradients(losses, head, embeddings))


def test_losses_far_apart_keep_their_digits():
    """In float32: one image is opposite the other class, one is opposite its own."""
    head = ArcMarginProduct(2, 2, 64.0, 0.5)
    head.weight.data.copy_(torch.tensor([[1.0, 0], [-1, 0]]))
    angles = torch.tensor([0.01, 3.13])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    losses, correct = head.losses(embeddings, torch.tensor([0, 0]))
    cosine = math.cos(0.01 + 0.5) + math.cos(0.01), math.cos(3.13) - 0.5 * math.sin(0.5) + math.cos(3.13)
    expected = [math.log1p(math.exp(-64 * lead)) for lead in cosine]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4) and correct.tolist() == [True, False]


def test_matrix_products_are_in_float32_at_any_precision_setting():
    """On a CPU "medium" rounds other products, as "high" does on CUDA (TF32)."""
    torch.manual_seed(0)
    head, labels = ArcMarginProduct(512, 2000, 64, 0.5), torch.arange(16)
    embeddings = F.normalize(torch.randn(16, 512)).requires_grad_()
    results = []
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            losses, _ = head.losses(embeddings, labels)
            results.append((losses, *gradients(losses, head, embeddings), head(embeddings, labels)))
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(map(torch.equal, *results))
