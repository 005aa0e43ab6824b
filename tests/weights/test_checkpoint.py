"""utils/weights/checkpoint.py through the predictor: weight files that do not fit, or are damaged or something else."""
import os
import pickle
import shutil

import pytest
import torch

from arcface import Arcface
from nets.arcface import ArcfaceNet
from utils.common.errors import UserError
from utils.weights.checkpoint import load_embedder, read_backbone_name, read_weights


def test_missing_weights_are_a_user_error_that_names_the_file(tmp_path):
    for path in (tmp_path / "gone.pth", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            Arcface(model_path=path)


@pytest.fixture
def eighteen(tmp_path):
    """A weight file of iresnet18, which loads and embeds nothing."""
    with torch.device("meta"):
        names = ArcfaceNet(backbone="iresnet18").state_dict()
    torch.save({name: torch.ones((), dtype=value.dtype).expand(value.shape) for name, value in names.items()},
               tmp_path / "eighteen.pth")  # few bytes on disk
    return tmp_path / "eighteen.pth"


def test_weights_of_another_backbone_are_a_user_error_that_suggests_it(eighteen):
    with pytest.raises(UserError) as caught:
        Arcface(model_path=eighteen, backbone="mobilefacenet", cuda=False)
    message = str(caught.value)
    assert str(eighteen) in message and "--backbone iresnet18" in message and "\n" not in message
    assert "missing" in message and "unexpected" in message
    assert load_embedder(eighteen, "iresnet18").backbone == "iresnet18"


def test_the_backbone_is_told_from_the_names_and_shapes_in_the_file(eighteen, tmp_path):
    assert load_embedder(eighteen).backbone == read_backbone_name(eighteen) == "iresnet18"
    state = read_weights(eighteen)
    state["arcface.fc.weight"] = torch.zeros(256, 25088)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"none of the backbones .*18.* \[256, 25088\] instead of \[512, 25088\]"):
        read_backbone_name(tmp_path / "odd.pth")


def test_the_folder_of_a_run_stands_for_its_best_weights(published_weights, tmp_path):
    with pytest.raises(UserError, match=r"holds no best\.pth"):
        Arcface(model_path=tmp_path, cuda=False)
    shutil.copy(published_weights, tmp_path / "best.pth")
    assert Arcface(model_path=tmp_path, cuda=False).model_path == tmp_path / "best.pth"


def test_missing_unexpected_and_mis_shaped_names_are_listed(published_weights, tmp_path):
    state = torch.load(published_weights, weights_only=True)
    first, second, *_ = state
    state["arcface.surplus"] = state.pop(first)
    state[second] = torch.zeros(5, 7)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError) as caught:
        Arcface(model_path=tmp_path / "odd.pth", cuda=False)
    for words in (f"1 missing: {first}", "1 unexpected: arcface.surplus", second, "[5, 7]"):
        assert words in str(caught.value)


def test_an_unknown_backbone_is_a_user_error_that_lists_the_known_ones(published_weights):
    with pytest.raises(UserError, match=r"resnet7.*mobilefacenet.*iresnet50"):
        Arcface(model_path=published_weights, backbone="resnet7")


@pytest.mark.parametrize("name", ["arcface_mobilefacenet", "mobilefacenet"])
def test_both_names_of_a_backbone_are_accepted(published_weights, name):
    assert Arcface(model_path=published_weights, backbone=name, cuda=False).net.backbone == "mobilefacenet"


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", [
    lambda content, path: path.write_bytes(pickle.dumps(content)), torch.save,
    lambda content, path: torch.save({"arcface.conv1.weight": content}, path),
    lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False)])
def test_code_in_a_weight_file_is_refused_and_never_runs(tmp_path, how):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    how(Malicious(marker), path)
    with pytest.raises(UserError, match=r"evil\.pth"):
        Arcface(model_path=path, cuda=False)
    assert not marker.exists()


def test_a_training_checkpoint_is_a_user_error_that_points_to_the_weights(published_weights, tmp_path):
    state = torch.load(published_weights, weights_only=True)
    torch.save({"model": state, "optimizer": {}, "epoch": 3, "settings": {"epochs": 5}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last\.pt is a training checkpoint.*best\.pth"):
        Arcface(model_path=tmp_path / "last.pt", cuda=False)


@pytest.mark.parametrize("content", [
    [1, 2], "weights", torch.zeros(3), {"state_dict": {"arcface.conv1.weight": torch.zeros(3)}},
    {0: torch.zeros(3)}, {}, torch.nn.Linear(2, 2), None],
    ids=["list", "text", "tensor", "nested", "numbered", "empty", "module", "none"])
def test_other_saved_objects_are_a_user_error(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth") as caught:
        Arcface(model_path=tmp_path / "other.pth", cuda=False)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_a_user_error_whatever_its_first_letter(tmp_path):
    path, failures = tmp_path / "other.pth", {}
    contents = [b"", b"\n", *(bytes([first]) + rest for first in range(256) for rest in (b"", b"nother text\n"))]
    for content in contents:
        path.write_bytes(content)
        try:
            read_weights(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        except Exception as error:
            failures[content[:4]] = repr(error)
    assert failures == {}


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_weight_file_is_a_user_error(published_weights, tmp_path, share):
    whole = published_weights.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(UserError, match=r"cut\.pth"):
        Arcface(model_path=tmp_path / "cut.pth", cuda=False)
