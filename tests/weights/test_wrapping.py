"""Weight files as other programs write them load as this repository's own do, and that is said."""
import pytest
import torch
from conftest import ROOT

from utils.common.errors import UserError
from utils.weights.checkpoint import read_weights

BUNDLED = ROOT / "model_data" / "arcface_mobilefacenet.pth"


@pytest.fixture(scope="module")
def state():
    return torch.load(BUNDLED, weights_only=True)


def bare(state):
    return {name.removeprefix("arcface."): value for name, value in state.items()}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("wrap, words", [
    (lambda state: {"state_dict": state}, ["'state_dict'"]),
    (lambda state: {"epoch": 3, "net": state, "optimizer": {"lr": 1.0}}, ["'net'", "left out: epoch, optimizer"]),
    (lambda state: {"model": {"state_dict": state}}, ["'model'", "'state_dict'"]),
    (lambda state: prefixed("module.", state), ["without module."]),
    (lambda state: prefixed("_orig_mod.module.", state), ["_orig_mod., module."]),
    (lambda state: prefixed("module.backbone.", bare(state)), ["module., backbone.", "bare names"]),
    (lambda state: {name.replace("arcface.", "arcface._orig_mod."): value for name, value in state.items()},
     ["_orig_mod."]),
    (bare, ["bare names"]),
    (lambda state: bare(state) | {"head.weight": torch.ones(3, 128)}, ["bare names"]),
    (lambda state: {"state_dict": prefixed("module.", bare(state))}, ["'state_dict'", "module.", "bare names"]),
    (lambda state: {name: value.double() for name, value in state.items()}, ["float64 made float32"])],
    ids=["state_dict", "net", "nested", "module", "compiled", "backbone", "part compiled", "bare", "bare with head",
         "all of them", "double"])
def test_the_same_weights_are_found_in_it_and_it_is_said_in_one_line(state, tmp_path, capsys, wrap, words):
    torch.save(wrap(state), tmp_path / "other.pth")
    found = read_weights(tmp_path / "other.pth")
    found.pop("head.weight", None)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path / 'other.pth'}: ") and all(word in line for word in words)


@pytest.mark.parametrize("dtype, name", [(torch.float16, "float16"), (torch.bfloat16, "bfloat16")])
def test_half_precision_becomes_float32_counts_too(state, tmp_path, capsys, dtype, name):
    count = "arcface.conv1.bn.num_batches_tracked"
    torch.save({key: value.to(dtype) for key, value in (state | {count: torch.tensor(10 ** 6)}).items()},
               tmp_path / "half.pth")
    found = read_weights(tmp_path / "half.pth")
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    weight = "arcface.conv1.conv.weight"
    assert torch.equal(found[weight], state[weight].to(dtype).float())
    assert f"{name} made float32" in capsys.readouterr().out


def test_our_own_weights_are_read_without_a_word(state, capsys):
    assert read_weights(BUNDLED).keys() == state.keys()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wrap, words", [
    (lambda state: {"model": state, "net": state}, "model, net"),
    (lambda state: {"ema": state, "epoch": 1}, "ema, epoch"),
    (lambda state: {"state_dict": {"layers": [1, 2]}}, "state_dict"),
    (lambda state: {"model": list(state.values()), "args": {}}, "model, args"),
    (lambda state: state | prefixed("module.", state), "arcface.")],
    ids=["two", "unknown", "no tensors", "a list", "twice"])
def test_what_does_not_say_which_weights_are_meant_is_a_user_error_that_lists_what_it_holds(
        state, tmp_path, wrap, words):
    torch.save(wrap(state), tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth is no state dict, it holds ") as caught:
        read_weights(tmp_path / "odd.pth")
    assert words in str(caught.value) and "\n" not in str(caught.value)
