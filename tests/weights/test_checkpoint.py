"""utils/weights/checkpoint.py: weight files of this and other programs, and those that are damaged or do not fit."""
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import BUNDLED, Calls, write_small_weights

from nets.arcface import ArcfaceNet
from nets.partial_fc import Shard
from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.weights.checkpoint import (
    InvalidWeights,
    load,
    load_embedder,
    load_for_training,
    load_pretrained_backbone,
    read_weights,
    save,
)

STEM = "arcface.conv1.conv.weight"


@pytest.fixture
def eighteen(tmp_path):
    """A weight file of iresnet18 in few bytes; all values are 1."""
    return write_small_weights("iresnet18", tmp_path / "eighteen.pth")


def assert_one_line(caught, *words):
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


# Files that fit

def test_equal_weights_make_equal_files(state, tmp_path):
    content = {"model": OrderedDict(state), "history": [{"loss": 0.5}, torch.ones(2)], "step": 3}
    for name in ("first.pt", "another name.pt"):
        save(content, tmp_path / name)
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "another name.pt").read_bytes()
    found = load(tmp_path / "first.pt", mmap=True)
    assert found["model"].keys() == state.keys() and found["step"] == 3
    assert torch.equal(found["model"][STEM], state[STEM])


def test_safetensors_files_are_read(state, tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    contiguous = {name: value.contiguous() for name, value in state.items()}
    pytest.importorskip("safetensors.torch").save_file(contiguous, path)
    found = load_embedder(path).state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)
    content = path.read_bytes()
    for damaged in (content[:1000], b"", b"no such file" * 9, flip(content, 2, 5)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"weights\.safetensors is not a file of weights") as caught:
            load(path)
        assert_one_line(caught)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"needs the package safetensors.*: pip install safetensors"):
        load(path)


def test_a_disk_that_is_full_is_one_line_and_keeps_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")  # its limit on the size of a file simulates a full disk
    save({"a": torch.ones(1)}, tmp_path / "last.pt")
    before, limits = (tmp_path / "last.pt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*last\.pt: ") as caught:
            save({"a": torch.ones(1_000_000)}, tmp_path / "last.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line(caught)
    assert os.listdir(tmp_path) == ["last.pt"] and (tmp_path / "last.pt").read_bytes() == before


def test_the_backbone_is_inferred_from_names_and_shapes(eighteen):
    assert load_embedder(BUNDLED).backbone == "mobilefacenet"
    assert load_embedder(eighteen).backbone == "iresnet18"
    assert load_embedder(BUNDLED, "arcface_mobilefacenet").backbone == "mobilefacenet"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("classes, loaded", [(6, True), (3, False), (7, False), (None, False)])
def test_a_head_is_loaded_if_its_number_of_classes_is_equal(state, tmp_path, classes, loaded, ranks):
    head = {} if classes is None else {"head.weight": torch.full((classes, 128), 0.5)}
    save(state | head, tmp_path / "weights.pth")
    net = ArcfaceNet(6, shard=Shard(0, ranks))
    before = net.head.weight.detach().clone()
    assert ("backbone and head" in load_for_training(net, tmp_path / "weights.pth")) is loaded
    assert torch.equal(net.head.weight, head["head.weight"][:6 // ranks] if loaded else before)
    assert torch.equal(net.state_dict()[STEM], state[STEM])


def test_pretrained_weights_may_lack_layers_but_not_fit_badly(state, tmp_path):
    path, net = tmp_path / "imagenet.pth", ArcfaceNet(5)
    save({name.removeprefix("arcface."): value for name, value in state.items() if "last_bn" not in name}
         | {"fc.weight": torch.ones(1000, 8)}, path)
    assert "random: last_bn.weight, " in load_pretrained_backbone(net, path)
    assert torch.equal(net.state_dict()[STEM], state[STEM])
    for content, word in (({STEM: torch.ones(3)}, "conv1.conv.weight"), ({"fc.weight": torch.ones(3)}, "nothing")):
        save(content, path)
        with pytest.raises(UserError, match=word) as caught:
            load_pretrained_backbone(net, path)
        assert_one_line(caught, str(path))


# Files of other programs

def renamed(state, prefix):
    return {prefix + name.removeprefix("arcface."): value for name, value in state.items()}


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state}, lambda state: {"epoch": 3, "net": state, "optimizer": {"lr": 1.0}},
    lambda state: {"model": {"state_dict": state}}, lambda state: renamed(state, "_orig_mod.module.arcface."),
    lambda state: renamed(state, "module.backbone."),
    lambda state: renamed(state, "arcface._orig_mod."),
    lambda state: renamed(state, "") | {"head.weight": torch.ones(3, 128)},
    lambda state: {"epoch": 20, "state_dict_backbone": renamed(state, "module."),
                   "state_dict_softmax_fc": {"weight": torch.ones(2, 128)}}],
    ids=["state_dict", "net", "nested", "compiled", "backbone", "part compiled", "bare with head", "insightface"])
def test_weights_of_other_programs_load_as_ours(state, tmp_path, wrap):
    torch.save(wrap(state), tmp_path / "other.pth")
    found = load_embedder(tmp_path / "other.pth").state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(state, tmp_path, dtype):
    torch.save({name: value.to(dtype) for name, value in state.items()}, tmp_path / "half.pth")
    found = read_weights(tmp_path / "half.pth")
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert torch.equal(found[STEM], state[STEM].to(dtype).float())


def insightface_names():
    """The names of insightface's MobileFaceNet (recognition/arcface_torch/backbones/mobilefacenet.py), in order."""
    def norm(prefix):
        return [f"{prefix}.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    def block(prefix, prelu=True):
        return [f"{prefix}.layers.0.weight", *norm(f"{prefix}.layers.1"), *[f"{prefix}.layers.2.weight"] * prelu]

    def depthwise(prefix):
        return [name for part in range(3) for name in block(f"{prefix}.layers.{part}", prelu=part < 2)]

    names = block("layers.0") + block("layers.1")
    for place, count in enumerate((0, 4, 0, 6, 0, 2), 2):
        parts = [f"layers.{place}.layers.{number}" for number in range(count)] or [f"layers.{place}"]
        names += [name for part in parts for name in depthwise(part)]
    return [*names, *block("conv_sep"), *block("features.layers.0", prelu=False), "features.layers.2.weight",
            *norm("features.layers.3")]


def test_insightfaces_mobilefacenet_is_ours_under_other_names(state, tmp_path):
    other = dict(zip(insightface_names(), state.values(), strict=True))
    other["features.layers.2.weight"] = other["features.layers.2.weight"].flatten(1)  # a Linear
    torch.save(other, tmp_path / "model.pt")
    found = load_embedder(tmp_path / "model.pt").state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


# Files that do not fit, or hold something else

def test_missing_unexpected_and_wrong_shapes_are_listed(state, tmp_path):
    first, second, *_ = state
    odd = dict(state) | {"arcface.surplus": state[first], second: torch.zeros(5, 7)}
    del odd[first]
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(UserError) as caught:
        load_embedder(tmp_path / "odd.pth")
    assert_one_line(caught, "odd.pth does not fit backbone mobilefacenet", first, "arcface.surplus", second, "[5, 7]")


@pytest.mark.parametrize("content", [
    [1, 2], {"state_dict": {"layers": [1, 2]}}, {"ema": {STEM: torch.ones(1)}}, {0: torch.zeros(3)}, {},
    torch.nn.Linear(2, 2)], ids=["list", "no tensors", "unknown key", "numbered", "empty", "module"])
def test_other_saved_objects_are_a_user_error(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth") as caught:
        load_embedder(tmp_path / "other.pth")
    assert_one_line(caught)


def test_a_training_checkpoint_is_a_user_error_that_points_to_the_weights(state, tmp_path):
    torch.save({"model": state, "optimizer": {}, "epoch": 3, "settings": {"epochs": 5}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last\.pt is a training checkpoint.*best\.pth"):
        load_embedder(tmp_path / "last.pt")


@pytest.mark.parametrize("write", [
    lambda content, path: path.write_bytes(pickle.dumps(content)),
    lambda content, path: torch.save({STEM: content}, path)])
def test_code_in_a_weight_file_never_runs(tmp_path, write):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    write(Calls(os.mkdir, str(marker)), path)
    with pytest.raises(UserError, match=r"evil\.pth"):
        load_embedder(path)
    assert not marker.exists()


# Damaged files that torch.load accepts

def flip(content, position, bit):
    content = bytearray(content)
    content[position] ^= 1 << bit
    return bytes(content)


def test_one_flipped_bit_of_a_weight_is_a_user_error(tmp_path):
    with zipfile.ZipFile(BUNDLED) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    content, path = BUNDLED.read_bytes(), tmp_path / "flipped.pth"
    name_lengths = np.frombuffer(content[entry.header_offset + 26:entry.header_offset + 30], np.uint16).sum()
    path.write_bytes(flip(content, entry.header_offset + 30 + int(name_lengths) + entry.file_size // 2, 0))
    torch.load(path, weights_only=True)  # accepts it
    with pytest.raises(UserError, match=r"flipped\.pth is damaged .*copy or download") as caught:
        read_weights(path)
    assert_one_line(caught)


def test_a_file_without_checksums_is_compared_with_the_hash_beside_it(state, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert read_weights(path).keys() == state.keys()
    (tmp_path / "old.json").write_text(json.dumps({"weights_sha256": hash_file(path)}))
    assert read_weights(path).keys() == state.keys()
    path.write_bytes(flip(path.read_bytes(), path.stat().st_size // 2, 3))
    with pytest.raises(UserError, match=r"old\.pth is damaged, or not the file that .*old\.json.*remove old\.json"):
        read_weights(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e20])
def test_weights_that_are_not_finite_or_huge_are_a_user_error(state, tmp_path, value):
    spoiled = state[STEM].clone()
    spoiled[0, 0, 0, 0] = value
    torch.save(state | {STEM: spoiled}, tmp_path / "odd.pth")
    with pytest.raises(InvalidWeights, match=rf"odd\.pth is damaged or of a run that diverged \({STEM} ") as caught:
        read_weights(tmp_path / "odd.pth")
    assert_one_line(caught)
