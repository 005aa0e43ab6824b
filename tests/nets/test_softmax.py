"""MarginHead.losses, which training minimises, against the cross-entropy of its logits."""
import math

import pytest
import torch
import torch.nn.functional as F

from nets.head import ArcMarginProduct, MarginHead


class NormMargin(MarginHead):
    """A margin that depends on the embedding's length, with a gradient through it, as MagFace's does."""

    def margin(self, cosine, norm):
        return cosine - self.m * torch.tanh(norm)


class CosFace(MarginHead):
    def margin(self, cosine, norm):
        return cosine - self.m


def make(kind=ArcMarginProduct, classes=101, dimensions=16, images=12, dtype=torch.float64, **settings):
    """Return (head, embeddings not of length 1, labels, lam), one image on its class's axis and one opposite it."""
    torch.manual_seed(5)
    head = kind(dimensions, classes, settings.pop("s", 64.0), 0.5, **settings).to(dtype)
    embeddings, labels = torch.randn(images, dimensions, dtype=dtype), torch.randint(0, classes, (images,))
    embeddings[0], embeddings[-1] = 3 * head.weight.detach()[labels[0]], -head.weight.detach()[labels[-1]]
    return head, embeddings.requires_grad_(), labels, torch.rand(images, dtype=dtype)


def by_logits(head, embeddings, labels, lam=None):
    """What `losses` has to give, by `forward`, `correct` and F.cross_entropy."""
    logits = head(embeddings, labels)
    correct, losses = head.correct(logits, labels), F.cross_entropy(logits, labels, reduction="none")
    if lam is None:
        return losses, correct
    others = labels.roll(1)
    return lam * losses + (1 - lam) * F.cross_entropy(head(embeddings, others), others, reduction="none"), correct


def gradients(losses, head, embeddings):
    weights = torch.linspace(0.5, 2, len(losses), dtype=losses.dtype)  # each image's own
    return torch.autograd.grad((losses * weights).mean(), [embeddings, head.weight])


def assert_close(found, expected, tolerance):
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


CASES = [{}, {"kind": CosFace}, {"kind": NormMargin}, {"easy_margin": True}, {"s": 4.0}, {"classes": 2, "images": 5}]


@pytest.mark.parametrize("mixup", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_losses_and_gradients_are_those_of_the_logits(case, mixup, dtype, tolerance):
    head, embeddings, labels, lam = make(dtype=dtype, **case)
    if dtype == torch.float32:  # on the axis the gradient of arccos is all rounding
        embeddings = torch.randn_like(embeddings).requires_grad_()
    lam = lam if mixup else None
    expected, expected_correct = by_logits(head, embeddings, labels, lam)
    losses, correct = head.losses(embeddings, labels, lam)
    assert_close(losses, expected, tolerance)
    assert torch.equal(correct, expected_correct)
    for found, right in zip(gradients(losses, head, embeddings), gradients(expected, head, embeddings)):
        assert_close(found, right, tolerance)


def test_both_targets_of_an_image_may_be_one_class():
    head, embeddings, labels, lam = make()
    labels[:6] = labels[0]
    losses, correct = head.losses(embeddings, labels, lam)
    expected, right = by_logits(head, embeddings, labels, lam)
    assert_close(losses, expected, 1e-12)
    assert torch.equal(correct, right)
    for found, gradient in zip(gradients(losses, head, embeddings), gradients(expected, head, embeddings)):
        assert_close(found, gradient, 1e-10)


@pytest.mark.parametrize("mixup", [False, True])
def test_gradients_are_finite_differences(mixup):
    head, _, labels, lam = make(classes=7, dimensions=5, images=4, s=8.0)
    tensors = [torch.randn(4, 5, dtype=torch.float64).requires_grad_(), head.weight]
    found = gradients(head.losses(tensors[0], labels, lam if mixup else None)[0], head, tensors[0])
    weights = torch.linspace(0.5, 2, 4, dtype=torch.float64)
    for tensor, gradient in zip(tensors, found):
        direction, moved = torch.randn_like(tensor), []
        for step in (1e-5, -2e-5):
            tensor.data += step * direction
            moved.append((head.losses(tensors[0], labels, lam if mixup else None)[0] * weights).mean().item())
        tensor.data += 1e-5 * direction
        assert (gradient * direction).sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-7)


def test_autocast_changes_no_digit_of_losses_and_gradients():
    results = []
    for enabled in (False, True):
        head, embeddings, labels, lam = make(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses, _ = head.losses(embeddings, labels, lam.float())
            results.append((losses, *gradients(losses, head, embeddings)))
    for plain, mixed in zip(*results):
        assert mixed.dtype == torch.float32 and torch.equal(plain, mixed)


def test_a_second_backward_pass_and_a_gradient_of_the_gradient_are_refused():
    head, embeddings, labels, _ = make()
    loss = head.losses(embeddings, labels)[0].mean()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
    gradient, = torch.autograd.grad(head.losses(embeddings, labels)[0].mean(), embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_a_label_out_of_range_is_an_error_and_one_class_costs_nothing():
    head, embeddings, labels, _ = make()
    with pytest.raises(ValueError, match=r"label 101 .* 101 classes"):
        head.losses(embeddings, torch.full_like(labels, 101))
    head, embeddings, labels, lam = make(classes=1)
    for mixed in (None, lam):
        losses, correct = head.losses(embeddings, labels, mixed)
        assert losses.eq(0).all() and correct.all()
        assert all(gradient.eq(0).all() for gradient in gradients(losses, head, embeddings))


def test_losses_far_apart_keep_their_digits():
    """In float32, where all other classes lie opposite the image or, the other way round, its own does."""
    head = ArcMarginProduct(2, 2, 64.0, 0.5)
    head.weight.data.copy_(torch.tensor([[1.0, 0], [-1, 0]]))
    angles = torch.tensor([0.01, 3.13])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    losses, correct = head.losses(embeddings, torch.tensor([0, 0]))
    cosine = math.cos(0.01 + 0.5) + math.cos(0.01), math.cos(3.13) - 0.5 * math.sin(0.5) + math.cos(3.13)
    expected = [math.log1p(math.exp(-64 * lead)) for lead in cosine]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4) and correct.tolist() == [True, False]


def test_the_products_are_of_float32_whatever_precision_is_asked_for_elsewhere():
    """On a CPU "medium" rounds other products, as "high" does on CUDA (TF32)."""
    torch.manual_seed(0)
    head, labels = ArcMarginProduct(512, 2000, 64, 0.5), torch.arange(16)
    embeddings = F.normalize(torch.randn(16, 512))

    def figures(precision):
        torch.set_float32_matmul_precision(precision)
        try:
            found = embeddings.clone().requires_grad_()
            losses, _ = head.losses(found, labels)
            losses.sum().backward()
            assert torch.get_float32_matmul_precision() == precision
            return losses.detach(), found.grad, head(embeddings, labels).detach()
        finally:
            torch.set_float32_matmul_precision("highest")
    for exact, found in zip(figures("highest"), figures("medium")):
        assert torch.equal(exact, found)
