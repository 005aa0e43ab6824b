"""docs/extending.md: its code is what adding a backbone and a head takes, from training to prediction."""
import math
import re
import signal

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, assert_user_error
from training_data import QUICK, only_run, weights, write_faces

from nets.arcface import BACKBONES, HEADS, ArcfaceNet


def code_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def extended():
    """What the page adds, for this test alone. -> the names that its code defines."""
    before = [dict(table) for table in (BACKBONES, HEADS)]
    names = {}
    for block in code_blocks("docs/extending.md"):
        exec(block, names)
    yield names
    for table, entries in zip((BACKBONES, HEADS), before):
        table.clear()
        table.update(entries)


@pytest.fixture
def signals_restored():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_both_languages_show_the_same_code():
    assert code_blocks("docs/extending.md") == code_blocks("docs/zh-CN/extending.md")


def test_the_new_backbone_and_head_train_and_predict(extended, signals_restored, call_script, shared, tmp_path):
    annotation = write_faces(shared, tmp_path / "cls_train.txt", people=4, pictures=6)
    result = call_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                         "--backbone", "tinynet", "--head", "cosface", "--m", 0.35, "--val-split", 0)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "logs")
    assert weights(run)["head.weight"].shape == (4, 64)
    assert f"--model-path {run.relative_to(tmp_path)}" in result.stdout
    face = ROOT / "img" / "1_001.jpg"
    result = call_script("predict.py", face, face, "--model-path", run, "--no-show", "--align", "no")
    assert result.returncode == 0 and "(tinynet)" in result.stdout and "Distance: 0.000" in result.stdout


def test_without_blocks_it_learns_from_embeddings_alone_and_hints_are_refused(
        extended, signals_restored, call_script, shared, published_weights, tmp_path):
    annotation = write_faces(shared, tmp_path / "cls_train.txt", people=2, pictures=4)
    flags = [*QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0, "--val-split", 0, "--backbone",
             "tinynet", "--teacher", published_weights]
    assert_user_error(call_script("train.py", *flags, "--hint-weight", 1), "tinynet", "blocks()", "--hint-weight")
    result = call_script("train.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "its embeddings alone" in result.stdout


def test_the_new_head_is_what_its_formula_says(extended):
    torch.manual_seed(0)
    net = ArcfaceNet(10575, "tinynet", s=32, m=0.35, head="cosface")
    embeddings, labels = F.normalize(torch.randn(64, 64)), torch.randint(0, 10575, (64,))
    logits = net.head(embeddings, labels)
    cosine = embeddings @ F.normalize(net.head.weight).T
    expected = 32 * (cosine - 0.35 * F.one_hot(labels, 10575))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert torch.equal(net.head.correct(logits, labels), cosine.argmax(1) == labels)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(net.head.expected_initial_loss(), rel=0.05)
    assert net.head.expected_initial_loss() == pytest.approx(math.log(10575) + 8 + 32 * 0.35)
