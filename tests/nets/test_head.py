"""The ArcFace head against cos(arccos(x) + m) in float64: values and gradients; accuracy without the margin."""
import math

import pytest
import torch
import torch.nn.functional as F

from nets.head import ArcMarginProduct

PI = math.pi


def make_head(weight, s=32.0, m=0.5, easy_margin=False):
    weight = torch.as_tensor(weight, dtype=torch.float32)
    head = ArcMarginProduct(weight.shape[1], weight.shape[0], s, m, easy_margin)
    head.weight.data.copy_(weight)
    return head


def on_circle(angles, radius=1.0):
    """Return points (B, 2) at these angles (B,) from the first axis."""
    angles = torch.as_tensor(angles, dtype=torch.float64)
    return (radius * torch.stack([angles.cos(), angles.sin()], 1)).float()


def reference(embeddings, weight, labels, s, m, easy_margin=False):
    """Return the logits in float64, by arccos, with the published fallback beyond pi - m."""
    cosine = F.normalize(embeddings.double()) @ F.normalize(weight.double()).T
    target = cosine.gather(1, labels[:, None])
    theta = torch.arccos(target)
    if easy_margin:
        shifted = torch.where(target > 0, torch.cos(theta + m), target)
    else:
        shifted = torch.where(theta + m <= PI, torch.cos(theta + m), target - m * math.sin(m))
    return s * torch.where(F.one_hot(labels, len(weight)).bool(), shifted, cosine)


def compare_with_reference(embeddings, weight, labels, m=0.5, easy_margin=False, autocast=False, atol=1e-5, rtol=1e-4):
    """Compare the logits, and their gradients with respect to embeddings and weights."""
    head = make_head(weight, 32.0, m, easy_margin)
    found_in = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = head(found_in, labels)
    inputs = embeddings.double().requires_grad_(), head.weight.detach().double().requires_grad_()
    expected = reference(*inputs, labels, 32.0, m, easy_margin)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=32 * atol)

    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found.backward(upstream.float())
    expected.backward(upstream)
    for gradient, right in zip((found_in.grad, head.weight.grad), (inputs[0].grad, inputs[1].grad)):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), right, rtol=0, atol=rtol * right.abs().max().item())


# Near 0 a float32 cosine holds few digits of the angle: its rounding, 6e-8, is divided by sin(theta).
ANGLES = [(1e-3, 3e-4, 0.2), (1e-2, 3e-5, 5e-3), (0.1, 3e-6, 1e-4), (0.7, 1e-6, 1e-5), (PI / 2, 1e-6, 1e-5),
          (PI - 0.5 - 1e-4, 1e-6, 1e-5), (PI - 0.5 + 1e-4, 1e-6, 1e-5), (3.0, 1e-6, 1e-5), (PI - 1e-3, 1e-6, 1e-5)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize(("theta", "atol", "rtol"), ANGLES)
def test_logits_and_gradients_at_an_angle_equal_those_of_arccos(theta, atol, rtol, easy_margin, autocast):
    weight = on_circle([0, 2.5], radius=3)
    compare_with_reference(on_circle([theta], radius=0.2), weight, torch.tensor([0]), easy_margin=easy_margin,
                           autocast=autocast, atol=atol, rtol=rtol)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("m", "easy_margin"), [(0.5, False), (0.5, True), (0, False), (0.2, False), (2.0, False)])
def test_logits_and_gradients_at_random_angles_equal_those_of_arccos(m, easy_margin, autocast):
    generator = torch.Generator().manual_seed(2)
    weight, labels = on_circle([0.3, 1.7, 4.0], radius=2), torch.randint(0, 3, (200,), generator=generator)
    theta = 0.05 + (PI - 0.1) * torch.rand(200, generator=generator, dtype=torch.float64)
    theta[(theta - (PI - m)).abs() < 1e-3] = 0.5  # the logit jumps between the two formulas there
    side = 2 * torch.randint(0, 2, (200,), generator=generator) - 1
    embeddings = on_circle(torch.tensor([0.3, 1.7, 4.0])[labels] + side * theta, radius=5)
    compare_with_reference(embeddings, weight, labels, m, easy_margin, autocast, atol=3e-6)


def test_the_fallback_begins_just_beyond_pi_minus_m():
    head = make_head(torch.eye(2))
    at = torch.tensor([-math.cos(0.5)], dtype=torch.float64)
    assert head.add_margin(at, None).item() == pytest.approx(-1, abs=1e-12)
    assert head.add_margin(at - 1e-12, None).item() == pytest.approx(-math.cos(0.5) - 0.5 * math.sin(0.5), abs=1e-9)


@pytest.mark.parametrize(("easy_margin", "opposite"), [(False, -1 - 0.5 * math.sin(0.5)), (True, -1)])
def test_values_and_gradients_are_finite_if_the_cosine_is_one_or_minus_one(easy_margin, opposite):
    head = make_head([[2, 0], [0, 1]], easy_margin=easy_margin)
    embeddings = torch.tensor([[1.0, 0], [4, 0], [-1, 0], [-0.25, 0]], requires_grad=True)
    logits = head(embeddings, torch.zeros(4, dtype=torch.int64))
    expected = 32 * torch.tensor([math.cos(0.5)] * 2 + [opposite] * 2)
    torch.testing.assert_close(logits[:, 0].detach(), expected, rtol=0, atol=1e-4)
    logits.sum().backward()
    assert embeddings.grad.isfinite().all() and head.weight.grad.isfinite().all()
    assert embeddings.grad.abs().max() < 1e4


def test_a_cosine_that_rounding_puts_beyond_one_has_a_finite_gradient():
    cosine = torch.tensor([1 + 1.2e-7, 1 - 6e-8, -1 - 1.2e-7, -1 + 6e-8], requires_grad=True)
    shifted = make_head(torch.eye(2)).add_margin(cosine, None)
    shifted.sum().backward()
    assert shifted.isfinite().all() and cosine.grad.isfinite().all()


@pytest.mark.parametrize(("method", "wrong"), [("forward", -1), ("forward", 3), ("losses", 3)])
def test_a_label_out_of_range_is_an_error_that_names_it_and_the_class_count(method, wrong):
    with pytest.raises(ValueError, match=rf"label {wrong} .* 3 classes"):
        getattr(make_head(torch.eye(3)), method)(torch.randn(3, 3), torch.tensor([0, wrong, 2]))


def test_accuracy_is_computed_without_the_margin():
    head, labels = make_head(on_circle([0, 1.0])), torch.tensor([0, 1, 0, 1])
    # 0.4 from class 0 and 0.6 from class 1: the margin makes class 1 the largest logit of a face of class 0.
    embeddings = on_circle([0.4, 0.4, -0.5, 0.9])
    assert head(embeddings, labels).argmax(1).tolist() == [1, 0, 0, 1]
    assert head.losses(embeddings, labels)[1].tolist() == [True, False, True, True]
