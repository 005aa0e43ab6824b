"""utils/training/distillation.py: a teacher's embeddings as targets, and their projection."""
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import BUNDLED, assert_user_error, jpeg
from training_data import QUICK, FakeLoader, make_state, noise_batch, only_run, weights, write_faces

from nets.head import IGNORE
from train import train_step
from utils.data.annotation import read_annotation
from utils.data.dataset import FaceDataset
from utils.evaluation.embedding import embed_batch, inference_copy
from utils.training.distillation import fit_projection, teacher_embeddings
from utils.training.losses import DistillationLoss
from utils.training.validation import validate
from utils.weights.checkpoint import load_embedder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(shared, tmp_path_factory):
    images, labels = read_annotation(write_faces(shared, tmp_path_factory.mktemp("data") / "cls_train.txt"))
    return FaceDataset(images, labels, torch.arange(len(labels)), (112, 112))


@pytest.fixture(scope="module")
def teacher(published_weights):
    return load_embedder(published_weights)


def random_table(count=8, size=128):
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(1)))


def test_the_table_holds_the_embeddings_of_all_images_and_is_read_again(
        dataset, teacher, published_weights, tmp_path, capsys):
    images = torch.stack([dataset[index][0] for index in range(len(dataset))])
    for flip in (False, True):
        table = teacher_embeddings([published_weights], dataset, flip, tmp_path, CPU)
        torch.testing.assert_close(table.float(), embed_batch(teacher, images, flip), rtol=0, atol=1e-3)
        assert torch.equal(teacher_embeddings([published_weights], dataset, flip, tmp_path, CPU), table)
    assert capsys.readouterr().out.count("are read from") == 2 and len(list(tmp_path.glob("teacher_*.pth"))) == 2
    assert teacher_embeddings([published_weights] * 2, dataset, False, tmp_path, CPU).shape == (40, 256)


def test_another_teacher_and_changed_images_are_embedded_again(shared, published_weights, tmp_path):
    images, labels = read_annotation(write_faces(shared, tmp_path / "cls_train.txt", identities=2, images=2))
    images = [shutil.copy(image, tmp_path / f"{number}.jpg") for number, image in enumerate(images)]
    dataset = FaceDataset(images, labels, torch.arange(4), (112, 112))
    embed = partial(teacher_embeddings, dataset=dataset, flip=False, folder=tmp_path, device=CPU)
    both, first, second = embed([published_weights, BUNDLED]), embed([published_weights]), embed([BUNDLED])
    assert torch.equal(both, torch.cat([first, second], 1)) and not torch.equal(first, second)
    shutil.copy(images[3], images[0])
    assert torch.equal(embed([BUNDLED])[0], second[3])


def test_the_next_image_takes_the_place_of_one_that_cannot_be_read(dataset, published_weights, tmp_path):
    images = [*dataset.images]
    images[3] = str(tmp_path / "gone.jpg")
    damaged = FaceDataset(images, dataset.labels, dataset.indices, (112, 112))
    table = teacher_embeddings([published_weights], damaged, False, tmp_path, CPU)
    assert torch.equal(table[3], table[4]) and not torch.equal(table[2], table[3])


def test_the_projection_keeps_cosines_and_rotates_onto_the_student(dataset, teacher, published_weights, tmp_path):
    table = teacher_embeddings([published_weights], dataset, False, tmp_path, CPU).float()
    rotated = table @ torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(2)))[0]
    found = rotated @ fit_projection(rotated, 128, dataset, inference_copy(teacher))
    assert F.cosine_similarity(found, table).min() > 0.999
    wide = torch.cat([table, torch.zeros(len(table), 64)], 1)
    for given, size in ((wide, 128), (table, 200)):
        projected = given @ fit_projection(given, size, dataset)
        assert projected.shape[1] == size
        torch.testing.assert_close(projected @ projected.T, table @ table.T, rtol=0, atol=1e-3)


@pytest.mark.parametrize("label_weight", [0, 0.5])
def test_the_loss_is_the_distance_to_the_targets_and_the_weighted_loss_of_the_labels(label_weight):
    table = random_table()
    state, _ = make_state("--teacher", __file__,
                          loss=lambda net: DistillationLoss(net, torch.eye(128), table, label_weight))
    images, labels, indices = torch.randn(4, 3, 112, 112), torch.tensor([0, 1, 2, IGNORE]), torch.tensor([7, 0, 3, 4])
    lam = torch.tensor([1.0, 0.5, 0.75, 1.0])
    state.net.eval()
    loss, is_correct = state.loss_fn(images, labels, lam, state.loss_fn.targets(indices))
    embeddings, targets = state.net.arcface(images), table[indices]
    mixed = lam[:, None] * targets + (1 - lam)[:, None] * targets.roll(1, 0)
    expected = (1 - F.cosine_similarity(embeddings, mixed)).mean()
    losses, correct = state.net.head.losses(embeddings, labels, lam)
    torch.testing.assert_close(loss, expected + label_weight * losses.mean())
    assert torch.equal(is_correct, correct) if label_weight else is_correct.isnan().all()


def test_a_student_learns_its_teachers_embeddings():
    table = random_table()
    state, args = make_state("--teacher", __file__, "--init-lr", 0.1, "--no-scale-lr", "--epochs", 20,
                             loss=lambda net: DistillationLoss(net, torch.eye(128), table))
    losses = [train_step(state, [noise_batch()], args)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.3
    assert state.net.head.weight.grad is None
    found = validate(state, FakeLoader([noise_batch()]))
    assert 0 < found["val_loss"] < 2 and np.isnan(found["val_accuracy"])


def test_mixup_counts_both_classes_and_unlabeled_images_add_no_loss():
    head = make_state()[0].net.head
    embeddings, lam = torch.randn(4, 128), torch.tensor([0.7, 0.6, 0.9, 0.8])
    labels = torch.tensor([0, IGNORE, 2, 3])
    losses, correct = head.losses(embeddings, labels, lam)
    assert losses[1] == correct[1] == 0 and (losses[[0, 2, 3]] > 0).all()
    alone = [F.cross_entropy(head(embeddings, other), other, reduction="none")
             for other in (labels.clamp_min(0), labels.roll(1).clamp_min(0))]
    torch.testing.assert_close(losses[3], 0.8 * alone[0][3] + 0.2 * alone[1][3])
    torch.testing.assert_close(losses[2], 0.9 * alone[0][2])


def test_a_student_run_writes_weights_without_the_head_that_has_learned_nothing(
        run_script, shared, published_weights, tmp_path):
    annotation = write_faces(shared, tmp_path / "cls_train.txt")
    (tmp_path / "more").mkdir()
    for number in range(4):
        (tmp_path / "more" / f"{number}.jpg").write_bytes(jpeg(number))
    result = run_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                        "--teacher", published_weights, published_weights, "--teacher-flip", "--model-path",
                        published_weights, "--val-split", 0.2, "--unlabeled", "more")
    assert result.returncode == 0, result.stderr
    assert "4 unlabeled images" in result.stdout and "4 people, 36 images to train on, 8 held out" in result.stdout
    run = only_run(tmp_path / "logs")
    assert not any(name.startswith("head.") for name in weights(run))
    assert list((tmp_path / "logs").glob("teacher_*.pth"))
    assert torch.load(run / "last.pt", weights_only=True)["projection"].shape == (256, 128)


@pytest.mark.parametrize("arguments, words", [
    (["--teacher", "gone.pth"], ["gone.pth"]), (["--teacher", "cls_train.txt"], ["cls_train.txt"]),
    (["--teacher-flip"], ["--teacher"]),
    (["--teacher", "cls_train.txt", "--shard-head"], ["--shard-head", "--teacher"])])
def test_wrong_flags_for_the_teacher_are_a_user_error(call_script, shared, tmp_path, arguments, words):
    write_faces(shared, tmp_path / "cls_train.txt", identities=2, images=4)
    assert_user_error(call_script("train.py", *QUICK, *arguments), *words)
