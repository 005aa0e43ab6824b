"""The networks: the names, shapes and outputs of the published ones, and what ArcfaceNet adds to them."""
import functools
import importlib.util

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nets.arcface import ArcfaceNet, backbone_name
from nets.mobilenet import DepthwiseConv2d
from utils.evaluation.embedding import embed_batch, inference_copy
from utils.weights.checkpoint import load_embedder

PUBLISHED = ("mobilefacenet", "mobilenet", "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200")
SMALL = ("mobilefacenet", "mobilenet", "iresnet18")  # one of each kind


@pytest.fixture(scope="session")
def fill(shared):
    """Return the module with the weights and images behind reference/forward.npz."""
    specification = importlib.util.spec_from_file_location("fill", shared / "reference" / "fill.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def forward(shared):
    with np.load(shared / "reference" / "forward.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def published(published_weights):
    return load_embedder(published_weights)


def meta_net(backbone, num_classes=None):
    """Return a network on the meta device."""
    with torch.device("meta"):
        return ArcfaceNet(num_classes, backbone)


@functools.cache
def filled_net(backbone, fill):
    net = meta_net(backbone)
    net.load_state_dict(fill.fill(net.state_dict()), assign=True)
    return net.eval()


def noise(count, seed=0):
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_state_dict_has_the_published_names_shapes_and_dtypes(backbone, shared):
    def line(name, value):
        return f"{name}\t{'x'.join(map(str, value.shape)) or 'scalar'}\t{str(value.dtype).removeprefix('torch.')}"

    expected = (shared / "published_keys" / f"{backbone}.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line(*entry) for entry in meta_net(backbone).state_dict().items()) == sorted(expected)


@pytest.mark.parametrize("backbone", [*SMALL, "iresnet50"])
def test_embeddings_equal_those_of_the_published_network(backbone, fill, forward):
    with torch.inference_mode():
        embeddings = filled_net(backbone, fill)(fill.images(2))
    np.testing.assert_allclose(embeddings.numpy(), forward[backbone], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("backbone", "millions", "mega_macs", "dimensions", "scale"), [
    ("mobilefacenet", 1.003, 221, 128, 32), ("mobilenet", 16.58, 606, 512, 64), ("iresnet50", 43.59, 6309, 512, 64)])
def test_size_work_and_default_scale_are_those_of_the_table(backbone, millions, mega_macs, dimensions, scale):
    net = meta_net(backbone, num_classes=3).eval()
    with FlopCounterMode(display=False) as counter:
        embeddings = net(torch.empty(1, 3, 112, 112, device="meta"))
    assert round(sum(p.numel() for p in net.arcface.parameters()) / 1e6, 3 if millions < 10 else 2) == millions
    assert round(counter.get_total_flops() / 2e6) == mega_macs
    assert embeddings.shape == (1, dimensions) and net.embedding_size == dimensions
    assert net.head.weight.shape == (3, dimensions) and net.head.s == scale and net.head.m == 0.5


@pytest.mark.parametrize(("alias", "name"), [
    ("mobilenetv1", "mobilenet"), ("arcface_mobilenetv1", "mobilenet"), ("arcface_iresnet50", "iresnet50")])
def test_aliases_of_backbones_are_understood(alias, name):
    assert backbone_name(alias) == name == meta_net(alias).backbone


@pytest.mark.parametrize("backbone", SMALL)
def test_embeddings_are_float32_of_unit_length_also_under_bf16_autocast(backbone):
    net = ArcfaceNet(backbone=backbone).eval()
    with torch.inference_mode():
        plain = net(noise(2))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(noise(2))
    for embeddings in (plain, mixed):
        assert embeddings.dtype == torch.float32 and embeddings.shape == (2, net.embedding_size)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)
    assert not torch.equal(plain, mixed)  # bf16 was on


def test_the_scale_of_the_embedding_of_iresnet_is_frozen():
    net = ArcfaceNet(backbone="iresnet18")
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["arcface.features.weight"]


def test_labels_turn_embeddings_into_margin_logits():
    net, labels = ArcfaceNet(7).eval(), torch.tensor([6, 0, 3])
    with torch.inference_mode():
        embeddings, logits = net(noise(3)), net(noise(3), labels)
        assert logits.shape == (3, 7) and logits.dtype == torch.float32
        torch.testing.assert_close(logits, net.head(embeddings, labels))


def test_the_loss_reaches_every_parameter():
    torch.manual_seed(0)
    net, labels = ArcfaceNet(3), torch.tensor([0, 2])
    nn.functional.cross_entropy(net(noise(2), labels), labels).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("backbone", SMALL)
def test_the_copy_for_inference_gives_the_same_embeddings(backbone, fill):
    net, images = filled_net(backbone, fill), fill.images(2)
    with torch.inference_mode():
        torch.testing.assert_close(inference_copy(net)(images), net(images), rtol=0, atol=1e-5)


def test_the_copy_for_inference_has_no_batch_norm_and_leaves_the_network_as_it_was():
    net = ArcfaceNet(3).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    copy = inference_copy(net)
    assert not hasattr(copy, "head")
    assert not [module for module in copy.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(module.training for module in net.modules())
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in copy.parameters()}


def test_flip_adds_the_embedding_of_the_flipped_image(published):
    images = torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain, flipped = embed_batch(published, images), embed_batch(published, images.flip(2))
    both = embed_batch(published, images, flip=True)
    torch.testing.assert_close(both, nn.functional.normalize(plain + flipped), rtol=0, atol=1e-6)
    assert (plain - flipped).abs().max() > 1e-3


@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_with_a_stride_is_float32_under_bf16_autocast_on_a_cpu(stride):
    torch.manual_seed(0)
    layer = DepthwiseConv2d(4, 3, stride, padding=1)
    images = torch.randn(2, 4, 8, 8).bfloat16()
    exact = nn.functional.conv2d(images.float(), layer.weight, None, stride, 1, groups=4)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, exact.bfloat16()) == (stride == 2)
    torch.testing.assert_close(layer(images.float()), exact)
