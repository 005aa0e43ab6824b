"""Damaged weight files, most of which torch.load takes for whole."""
import json
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT

from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.weights.checkpoint import Implausible, read_weights, save
from utils.weights.integrity import find_implausible

BUNDLED = ROOT / "model_data" / "arcface_mobilefacenet.pth"
VARIANCE = "arcface.conv1.bn.running_var"


@pytest.fixture(scope="module")
def state():
    return torch.load(BUNDLED, weights_only=True)


def flip(content, position, bit):
    content = bytearray(content)
    content[position] ^= 1 << bit
    return bytes(content)


def largest_part(path):
    """The offset and the size of the largest tensor in a file."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    with open(path, "rb") as file:
        file.seek(entry.header_offset + 26)
        names = np.frombuffer(file.read(4), np.uint16)
    return entry.header_offset + 30 + int(names.sum()), entry.file_size


@pytest.mark.parametrize("bit", [0, 6])
def test_one_flipped_bit_of_a_weight_is_a_user_error(tmp_path, bit):
    start, size = largest_part(BUNDLED)
    path = tmp_path / "flipped.pth"
    path.write_bytes(flip(BUNDLED.read_bytes(), start + size // 2 | 3, bit))
    torch.load(path, weights_only=True)  # which is why it is looked at
    with pytest.raises(UserError, match=r"flipped\.pth is damaged .*checksum.*copy or download") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_a_file_without_checksums_is_held_against_the_hash_beside_it(state, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert read_weights(path).keys() == state.keys()
    (tmp_path / "old.json").write_text(json.dumps({"weights_sha256": hash_file(path)}))
    assert read_weights(path).keys() == state.keys()
    path.write_bytes(flip(path.read_bytes(), path.stat().st_size // 2, 3))
    with pytest.raises(UserError, match=r"old\.pth is damaged, or not the file that .*old\.json.*remove old\.json"):
        read_weights(path)


def test_a_whole_file_beside_another_ones_hash_loads(state, tmp_path):
    save(state, tmp_path / "new.pth")
    (tmp_path / "new.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    assert read_weights(tmp_path / "new.pth").keys() == state.keys()


@pytest.mark.parametrize("name, spoil, words", [
    ("arcface.conv1.conv.weight", lambda value: value.index_put_((torch.tensor([0]),), torch.tensor(torch.nan)), "nan"),
    ("arcface.conv1.conv.weight", lambda value: value.mul_(torch.inf), "inf"),
    ("arcface.conv1.conv.weight", lambda value: value.mul_(2.0 ** 64), "goes from"),
    (VARIANCE, lambda value: value.neg_(), "variances"),
    (VARIANCE, lambda value: value.zero_(), "variances"),
    (VARIANCE, lambda value: value.int(), "int32"),
    ("arcface.conv1.conv.weight", lambda value: value.to(torch.complex64), "complex64"),
    ("arcface.conv1.conv.weight", lambda value: value.to_sparse(), "sparse_coo"),
    ("arcface.conv1.conv.weight", lambda value: value.to("meta"), "meta"),
    ("arcface.conv1.bn.num_batches_tracked", lambda value: value.bool(), "bool")],
    ids=["NaN", "infinite", "too large", "negative", "all zero", "integers", "complex", "sparse", "meta", "count"])
def test_values_that_no_network_has_are_a_user_error_that_names_the_tensor(state, tmp_path, name, spoil, words):
    assert name in state
    torch.save(state | {name: spoil(state[name].clone())}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth is damaged or of a run that diverged") as caught:
        read_weights(tmp_path / "odd.pth")
    assert name in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_a_channel_that_never_varied_is_no_fault(state, tmp_path):
    variances = state[VARIANCE].clone()
    variances[0] = 0
    torch.save(state | {VARIANCE: variances}, tmp_path / "dead.pth")
    assert read_weights(tmp_path / "dead.pth")[VARIANCE][0] == 0


def test_what_is_not_finite_or_huge_is_not_written(tmp_path):
    path = tmp_path / "last.pt"
    save({"model": {"a": torch.ones(2)}}, path)
    before = path.read_bytes()
    with pytest.raises(Implausible, match=r"optimizer\.state\.0\.exp_avg .*last\.pt"):
        save({"model": {"a": torch.ones(2)},
              "optimizer": {"state": {0: {"exp_avg": torch.tensor([1, torch.inf])}}}}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_is_not_finite_or_huge_is_found_wherever_it_is():
    assert find_implausible({"a": [1, float("nan"), None, "x"], "b": torch.tensor([2])}) is None
    assert find_implausible({"a": [{"b": torch.tensor([0, torch.nan])}]}) == "a.0.b"
    assert find_implausible({"a": (torch.zeros(0), torch.tensor([-1e10, 0]))}) == "a.1"
