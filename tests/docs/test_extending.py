"""docs/extending.md: its code adds a backbone and heads, which train and predict."""
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from training_data import QUICK, only_run, weights, write_faces

from nets.arcface import BACKBONES, HEADS, ArcfaceNet
from utils.training.run import StopRequest
from utils.weights.checkpoint import load_for_training, save


@pytest.fixture
def extended():
    """Run the page's code for one test. Return the names that it defines."""
    before = [dict(table) for table in (BACKBONES, HEADS)]
    names = {}
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, names)
    yield names
    for table, entries in zip((BACKBONES, HEADS), before):
        table.clear()
        table.update(entries)


@pytest.fixture
def train_here(extended, call_script, shared, tmp_path, monkeypatch):
    """train_here(*flags) trains the new backbone in this process and returns the folder of the run."""
    monkeypatch.setattr(StopRequest, "listen", lambda self: None)
    def train(*flags):
        annotation = write_faces(shared, tmp_path / "cls_train.txt", identities=4, images=6)
        result = call_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                             "--backbone", "tinynet", "--val-split", 0, *flags)
        assert result.returncode == 0, result.stderr
        return only_run(tmp_path / "logs")
    return train


def test_the_new_backbone_and_head_train_and_predict(train_here, call_script):
    run = train_here("--head", "cosface", "--m", 0.35)
    assert weights(run)["head.weight"].shape == (4, 64)
    face = ROOT / "img" / "1_001.jpg"
    result = call_script("predict.py", face, face, "--model-path", run, "--no-show", "--align", "no")
    assert result.returncode == 0 and "(tinynet)" in result.stdout and "Distance: 0.000" in result.stdout


@pytest.mark.parametrize("flags", [
    [], ["--sample-rate", 0.5, "--ema", 0.9], ["--shard-head", "--accumulate", 2]], ids=str)
def test_a_head_with_statistics_of_its_own_trains_and_saves_them(train_here, flags):
    state = weights(train_here("--head", "adaface", "--m", 0.4, *flags))
    assert 0 < state["head.norm_mean"] < 20 and 0 < state["head.norm_std"] < 100


def test_the_new_backbone_learns_from_a_teacher(train_here, published_weights):
    assert not any(name.startswith("head.") for name in weights(train_here("--teacher", published_weights)))


def test_cosface_follows_its_formula(extended):
    torch.manual_seed(0)
    net = ArcfaceNet(10575, "tinynet", s=32, m=0.35, head="cosface")
    embeddings, labels = F.normalize(torch.randn(64, 64)), torch.randint(0, 10575, (64,))
    logits = net.head(embeddings, labels)
    cosine = embeddings @ F.normalize(net.head.weight).T
    expected = 32 * (cosine - 0.35 * F.one_hot(labels, 10575))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert torch.equal(net.head.losses(embeddings, labels)[1], cosine.argmax(1) == labels)


def test_adaface_follows_its_paper(extended):
    """Equations 12 to 14. The training loss is the cross-entropy of the logits."""
    torch.manual_seed(0)
    head = ArcfaceNet(50, "tinynet", s=32, m=0.4, head="adaface").head
    embeddings, labels = torch.randn(16, 64) * torch.linspace(0.5, 30, 16)[:, None], torch.randint(0, 50, (16,))
    losses, _ = head.losses(embeddings, labels)
    norm = embeddings.norm(dim=1).clamp(0.001, 100)
    mean, std = 0.99 * 20 + 0.01 * norm.mean(), 0.99 * 100 + 0.01 * norm.std()
    assert torch.allclose(head.norm_mean, mean) and torch.allclose(head.norm_std, std)
    z = ((norm - mean) / (std + 1e-3) * 0.333).clamp(-1, 1)
    cosine = F.normalize(embeddings) @ F.normalize(head.weight).T
    target = torch.cos(cosine[range(16), labels].acos() - 0.4 * z) - (0.4 * z + 0.4)
    expected = 32 * cosine.index_put((torch.arange(16), labels), target)
    torch.testing.assert_close(losses, F.cross_entropy(expected, labels, reduction="none"), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(head(embeddings, labels), expected.detach(), rtol=0, atol=1e-3)
        head.losses(embeddings, labels)
    assert torch.allclose(head.norm_mean, mean), "only training moves the statistics"


def test_weights_of_another_head_start_a_head_with_statistics_of_its_own(extended, tmp_path):
    save(ArcfaceNet(4, "tinynet", head="adaface").state_dict(), tmp_path / "adaface.pth")
    for head in ("adaface", "cosface"):
        net = ArcfaceNet(4, "tinynet", head=head)
        assert load_for_training(net, tmp_path / "adaface.pth").startswith("loaded backbone and head")
        save(net.state_dict(), tmp_path / f"{head}.pth")
    net = ArcfaceNet(4, "tinynet", head="adaface")
    load_for_training(net, tmp_path / "cosface.pth")
    assert net.head.norm_mean == 20
