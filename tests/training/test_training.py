"""Training on real faces: what a run writes, that it learns, and that it can be repeated."""
import csv
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recording import record, write_set
from sklearn.metrics import roc_auc_score
from training_data import QUICK, assert_same_weights, only_run, weights, write_faces

from nets.arcface import ArcfaceNet
from utils.common.errors import UserError
from utils.data.annotation import read_annotation
from utils.data.augmentation import augment
from utils.data.dataset import EpochBatches, decode_color_jpeg, load_image, split_validation
from utils.evaluation.embedding import embed_images
from utils.faces.images import normalise, preprocess
from utils.training.run import Run

# To train on, with 8 pictures each. Of 24 with 16 each a run learned about others what chance made of it: an AUC 0.05
# above that of random weights with one seed or processor, none above with another. 48 had 0.09 with both seeds tried.
PEOPLE = 48


def test_batches_cover_the_epoch_once_and_depend_on_the_epoch():
    batches = EpochBatches(count=20, batch_size=6, seed=1)
    first = list(batches)
    assert [len(batch) for batch in first] == [6, 6, 6]
    assert len({index for batch in first for index in batch}) == 18
    batches.epoch = 1
    assert list(batches) != first
    assert list(EpochBatches(count=20, batch_size=6, seed=2)) != first


def test_batches_started_in_the_middle_are_the_rest_of_the_epoch():
    batches = EpochBatches(count=20, batch_size=6, seed=1)
    whole = list(batches)
    batches.start = 2
    assert list(batches) == whole[2:] and len(batches) == 1


def test_a_dataset_smaller_than_the_batch_is_one_batch():
    assert len(list(EpochBatches(count=5, batch_size=64, seed=1))) == 1


@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.99])
def test_the_validation_split_leaves_everyone_a_training_picture(fraction):
    labels = [0] * 50 + [1] * 2 + [2] + [3] * 30
    training, validation = split_validation(labels, fraction, seed=3)
    training, validation = training.tolist(), validation.tolist()
    assert sorted(training + validation) == list(range(len(labels)))
    assert training == sorted(training) and validation == sorted(validation)
    assert {labels[i] for i in training} == {0, 1, 2, 3}
    assert len(validation) == min(int(fraction * len(labels)), len(labels) - 4)


def test_augmentation_mirrors_about_half_and_differs_by_batch_and_epoch():
    image = torch.arange(112 * 112 * 3).remainder(251).byte().reshape(112, 112, 3)
    images = image.repeat(200, 1, 1, 1)
    plain, streams = normalise(images), []
    for epoch, batch in ((0, 0), (0, 1), (1, 0)):
        out, _ = augment(images, 7, epoch, batch)
        mirrored = torch.tensor([not torch.equal(a, b) for a, b in zip(out, plain)])
        assert torch.equal(out, torch.where(mirrored[:, None, None, None], plain.flip(3), plain))
        assert 70 < mirrored.sum() < 130
        streams.append(tuple(mirrored.tolist()))
    assert len(set(streams)) == 3
    assert torch.equal(augment(images, 7, 1, 0)[0], out)


def jpeg(folder, name, image, **options):
    image.save(folder / name, "jpeg", **options)
    return folder / name


def pictures_to_load(folder):
    """Files of every kind that a training set may hold, with a picture in which nothing is symmetric."""
    noise = np.random.default_rng(3).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((112, 112), box=(0, 0, 40, 40))
    turned = Image.Exif()
    turned[0x0112] = 6
    yield jpeg(folder, "colour.jpg", image)
    yield jpeg(folder, "subsampled.JPG", image, quality=40, subsampling=2)
    yield jpeg(folder, "progressive.jpeg", image, progressive=True)
    yield jpeg(folder, "turned.jpg", image, exif=turned)
    yield jpeg(folder, "wide and 中文.jpg", image.resize((250, 180)), exif=turned)
    yield jpeg(folder, "grey.jpg", image.convert("L"))
    yield jpeg(folder, "cmyk.jpg", image.convert("CMYK"))
    image.save(folder / "a png.jpg", "png")
    yield folder / "a png.jpg"
    image.save(folder / "png.png")
    yield folder / "png.png"


def test_the_training_loader_sees_the_pixels_that_everything_else_sees(tmp_path):
    for path in pictures_to_load(tmp_path):
        for letterbox in (True, False):
            loaded = load_image(path, [112, 112], letterbox)
            assert loaded.dtype == torch.uint8 and loaded.is_contiguous()
            assert np.array_equal(loaded.numpy(), preprocess(path, [112, 112], letterbox)), path


def test_the_training_loader_decodes_a_colour_jpeg_that_nothing_turns_by_torchvision(tmp_path):
    decoded = {path.name for path in pictures_to_load(tmp_path) if decode_color_jpeg(path) is not None}
    assert decoded == {"colour.jpg", "subsampled.JPG", "progressive.jpeg"}


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_a_damaged_picture_is_named_by_the_training_loader(tmp_path, content):
    path = next(pictures_to_load(tmp_path))
    path.write_bytes(path.read_bytes()[:2000] if content == "half" else content)
    with pytest.raises(UserError, match=r"colour\.jpg does not decode"):
        load_image(path, [112, 112], True)
    with pytest.raises(UserError, match=r"none\.jpg does not exist"):
        load_image(tmp_path / "none.jpg", [112, 112], True)


@pytest.mark.parametrize(("rows", "best"), [
    ([(0.5, 0.7), (0.4, 0.8), (0.3, 0.75)], 2),                       # LFW accuracy counts where it was measured
    ([(0.5, math.nan), (0.3, math.nan), (0.4, math.nan)], 2),         # then the validation loss
    ([(math.nan, math.nan)] * 3, 3),                                  # the training loss of other epochs says nothing
    ([(0.5, 0.7), (0.4, math.nan)], 1),
    ([(0.5, math.nan), (-math.inf, math.nan), (0.4, math.nan), (math.inf, math.nan)], 3),
])
def test_the_best_weights_are_those_of_the_best_figure_that_was_measured(tmp_path, rows, best):
    run = Run(tmp_path)
    for epoch, (val_loss, lfw_accuracy) in enumerate(rows, 1):
        run.rows.append({"epoch": epoch, "train_loss": epoch, "val_loss": val_loss, "lfw_accuracy": lfw_accuracy})
        run.save_weights({"epoch": torch.tensor(epoch)}, period=10, last_epoch=0)
    assert torch.load(tmp_path / "best.pth", weights_only=True)["epoch"] == best
    assert json.loads((tmp_path / "best.json").read_text(encoding="utf-8"))["training"]["epoch"] == best


@pytest.fixture(scope="module")
def trained(shared, tmp_path_factory):
    """A short run: the run's folder."""
    import subprocess

    from training_data import train_command
    folder = tmp_path_factory.mktemp("trained")
    annotation = write_faces(shared, folder / "cls_train.txt", people=PEOPLE, pictures=8)
    command = train_command(*QUICK, "--batch-size", 16, "--init-lr", 0.1, "--annotation-path", annotation,
                            "--epochs", 4, "--save-dir", folder / "logs", "--num-workers", 2,
                            "--val-split", 0.05, "--save-period", 2)
    result = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=200)
    assert result.returncode == 0, result.stderr
    (folder / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    return only_run(folder / "logs")


def test_a_run_writes_what_the_readme_lists(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"settings.json", "log.csv", "loss.png", "accuracy.png", "batch.png", "best.pth", "best.json",
            "last.pt"} <= names
    assert len([name for name in names if name.startswith("ep")]) == 2
    assert any(name.startswith("ep004-loss") and "-val_loss" in name for name in names)
    assert not any(name.endswith(".tmp") for name in names)
    settings = json.loads((trained / "settings.json").read_text(encoding="utf-8"))
    assert settings["epochs"] == 4 and settings["effective_lr"] == pytest.approx(0.025)
    training = json.loads((trained / "best.json").read_text(encoding="utf-8"))["training"]
    data = (trained.parent.parent / "cls_train.txt").read_bytes()
    assert training["data_sha256"] == hashlib.sha256(data).hexdigest() and training["people"] == PEOPLE
    assert training["settings"] == settings and 1 <= training["epoch"] <= 4 and "lfw_accuracy" not in training


def test_the_log_has_a_row_per_epoch_and_the_loss_falls(trained):
    with open(trained / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) - 1
    assert float(rows[-1]["train_accuracy"]) > 3 * float(rows[0]["train_accuracy"])
    assert rows[0]["lfw_accuracy"] == "" and float(rows[0]["val_loss"]) > 0
    assert 0 <= float(rows[0]["data_wait"]) < 1


def test_the_start_is_described(trained):
    text = (trained.parent.parent / "stdout.txt").read_text(encoding="utf-8")
    assert "expected initial loss of the labels: 23.2" in text
    assert "weight decay 0 on BatchNorm, PReLU and biases" in text
    assert "learning rate: 0.025" in text
    assert len(text[:text.index("epoch 1/4")].splitlines()) <= 30, "what comes before the first batch fits a screen"


def test_the_end_names_the_best_epoch_and_what_to_do_with_it(trained):
    *_, best, evaluate, predict = (trained.parent.parent / "stdout.txt").read_text(encoding="utf-8").splitlines()
    row = json.loads((trained / "best.json").read_text(encoding="utf-8"))["training"]
    assert f"best.pth is of epoch {row['epoch']}: " in best and f"val_loss {row['val_loss']:.5g}" in best
    assert evaluate.split() == ["python", "eval_LFW.py", "--model-path", str(trained)]
    assert predict.split() == ["python", "predict.py", "A.jpg", "B.jpg", "--model-path", str(trained)]


def test_weights_are_a_bare_state_dict_of_the_published_names(trained):
    state = weights(trained)
    assert state.keys() == ArcfaceNet(PEOPLE).state_dict().keys()


def test_people_never_trained_on_separate_better_than_before(trained, shared, tmp_path):
    paths, labels = read_annotation(write_faces(shared, tmp_path / "held_out.txt", people=24, pictures=8, skip=100))
    first, second = np.triu_indices(len(paths), 1)
    genuine = np.array(labels)[first] == np.array(labels)[second]

    def separation(net):
        embeddings = embed_images(net.eval(), list(paths), batch_size=64).numpy()
        return roc_auc_score(genuine, (embeddings[first] * embeddings[second]).sum(1))

    torch.manual_seed(0)
    before = separation(ArcfaceNet(PEOPLE))
    net = ArcfaceNet(PEOPLE)
    net.load_state_dict(weights(trained))
    after = separation(net)
    assert after > before + 0.05, (before, after)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_repeats_bit_for_bit(run_script, shared, tmp_path, workers):
    annotation = write_faces(shared, tmp_path / "cls_train.txt")
    for name in ("first", "second"):
        result = run_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--save-dir",
                            tmp_path / name, "--num-workers", workers, "--val-split", 0.1)
        assert result.returncode == 0, result.stderr
    assert_same_weights(only_run(tmp_path / "first"), only_run(tmp_path / "second"))


def test_records_train_as_the_folder_of_their_pictures_does(run_script, shared, tmp_path):
    paths, labels = read_annotation(write_faces(shared, tmp_path / "cls_train.txt"))
    write_set(tmp_path / "faces", [(number, record(label, Path(path).read_bytes()))
                                   for number, (path, label) in enumerate(zip(paths, labels.tolist()), 1)])
    for name, source in (("list", "--annotation-path cls_train.txt"), ("rec", "--rec faces")):
        result = run_script("train.py", *QUICK, "--epochs", 1, "--num-workers", 0, "--val-split", 0.1,
                            "--save-dir", name, *source.split())
        assert result.returncode == 0, result.stderr
    assert_same_weights(only_run(tmp_path / "list"), only_run(tmp_path / "rec"))


def test_two_people_with_two_pictures_are_enough_and_published_weights_start_them(
        run_script, shared, published_weights, tmp_path):
    annotation = write_faces(shared, tmp_path / "cls_train.txt", people=2, pictures=2)
    result = run_script("train.py", "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                        "--model-path", published_weights)
    assert result.returncode == 0, result.stderr
    assert "lfw is not there" in result.stdout
    assert "the head is made anew (the file has none)" in result.stdout
    assert len(list(only_run(tmp_path / "logs").glob("ep001-*.pth"))) == 1
