"""train.py as a user runs it: what it prints and writes, and how a mistake ends."""
from itertools import product

import numpy as np
import pytest
from conftest import assert_user_error, write_rows
from PIL import Image


@pytest.fixture
def annotation(tmp_path):
    """Write four images of noise for each of two identities. Return the path of their annotation."""
    (tmp_path / "faces").mkdir()
    rng, rows = np.random.default_rng(0), []
    for label, number in product(range(2), range(4)):
        path = tmp_path / "faces" / f"{label}_{number}.png"
        Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(path)
        rows.append(f"{label};{path}")
    return write_rows(tmp_path / "cls_train.txt", rows)


def test_train_without_an_annotation_is_a_user_error(run_script, tmp_path):
    assert_user_error(run_script("train.py"), "train.py", "cls_train.txt", "txt_annotation.py")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments, words", [
    (["--backbone", "resnet7"], ["resnet7", "mobilefacenet"]),
    (["--device", "tpu"], ["tpu", "cpu"]), (["--device", "cpu", "--fp16"], ["--fp16", "--bf16"]),
    (["--fp16", "--bf16"], ["--fp16", "--bf16"]), (["--input-shape", "64", "64"], ["64", "112x112"]),
    (["--batch-size", "1"], ["--batch-size"]), (["--init-epoch", "100"], ["--init-epoch"]),
    (["--augment", "color,mixup"], ["--augment", "mixup"]),
    (["--model-path", "gone.pth"], ["gone.pth"]), (["--pretrained"], ["mobilefacenet_backbone_weights.pth"]),
    (["--model-path", "a.pth", "--pretrained"], ["--model-path", "--pretrained"]), (["--seed", "9" * 20], ["--seed"]),
    (["--model-path", "cls_train.txt"], ["cls_train.txt"]), (["--init-lr", "nan"], ["--init-lr"]),
    (["--min-lr-ratio", "0"], ["--min-lr-ratio"]), (["--weight-decay", "1", "1", "1"], ["--weight-decay"]),
    (["--lfw-eval", "--lfw-pairs", "gone.txt"], ["gone.txt", "--lfw-pairs"]),
    (["--lfw-eval", "--lfw-dir", "gone"], ["gone", "--lfw-dir"])])
def test_train_with_an_invalid_setting_is_a_user_error(call_script, annotation, tmp_path, arguments, words):
    assert_user_error(call_script("train.py", "--device", "cpu", *arguments), *words)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("change, words", [
    (lambda rows: rows[:4], ["two people"]), (lambda rows: [], ["no image", "txt_annotation.py"]),
    (lambda rows: [*rows[:2], "a line without a label", *rows[2:]], ["line 3", "txt_annotation.py"])])
def test_train_with_an_invalid_annotation_is_a_user_error(call_script, annotation, tmp_path, change, words):
    write_rows(annotation, change(annotation.read_text(encoding="utf-8").split("\n")[:-1]))
    assert_user_error(call_script("train.py", "--device", "cpu"), "cls_train.txt", *words)
    assert not (tmp_path / "logs").exists()


def test_train_without_its_images_names_one_and_leaves_no_run_behind(call_script, annotation, tmp_path):
    (tmp_path / "faces").rename(tmp_path / "elsewhere")
    result = call_script("train.py", "--no-lfw-eval", "--device", "cpu", "--num-workers", 0)
    assert_user_error(result, "cls_train.txt", tmp_path / "faces" / "0_0.png", "--datasets-path")
    assert not (tmp_path / "logs").exists()


def test_train_that_cannot_write_is_a_user_error(run_script, annotation, tmp_path):
    (tmp_path / "a file").write_text("kept")
    result = run_script("train.py", "--no-lfw-eval", "--device", "cpu", "--num-workers", 0, "--save-dir", "a file")
    assert_user_error(result, "a file")
    assert (tmp_path / "a file").read_text() == "kept"
