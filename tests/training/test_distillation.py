"""Learning from a teacher, and the heavier augmentations."""
import csv

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_user_error
from training_data import QUICK, only_run, weights, write_faces

from nets.arcface import ArcfaceNet
from nets.head import IGNORE
from utils.data.augmentation import KINDS, augment
from utils.faces.images import normalise, preprocess
from utils.training.distillation import Distillation, Weights, match_blocks, matched_stages, one_stage
from utils.training.losses import LabelLoss, label_losses
from utils.weights.checkpoint import load_embedder

BACKBONES = ("mobilefacenet", "mobilenet", "iresnet18")


@pytest.fixture(scope="module")
def faces(shared):
    """uint8 (8, 112, 112, 3): two pictures of each of four people."""
    return torch.stack([torch.from_numpy(preprocess(image)) for image in sorted(
        shared.joinpath("lfw", "images").glob("A*/*_000[12].jpg"))[:8]])


@pytest.fixture(scope="module")
def teacher(published_weights):
    return load_embedder(published_weights)


def settled(backbone, classes=None):
    """A random network whose BatchNorm statistics fit its features, so that eval mode does not overflow."""
    torch.manual_seed(5)
    net = ArcfaceNet(classes, backbone)
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 112, 112) * 2 - 1)
    return net.eval()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_blocks_one_after_the_other_are_the_backbone(backbone):
    net, features = settled(backbone), torch.rand(2, 3, 112, 112)
    expected = net.arcface(features)
    for block in net.arcface.blocks():
        features = block(features)
    assert torch.equal(features, expected)
    named = {id(parameter) for block in net.arcface.blocks() for parameter in block.parameters()}
    assert named == {id(parameter) for parameter in net.arcface.parameters()}


def test_equal_networks_are_matched_block_by_block_and_others_where_resolutions_end():
    ours = [(64, 56, 56), (64, 28, 28), (64, 28, 28), (128, 14, 14), (128,)]
    assert match_blocks(ours, ours) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    other = [(64, 112, 112), (32, 56, 56), (32, 56, 56), (64, 28, 28), (256, 7, 7), (512,)]
    assert match_blocks(ours, other) == [(0, 2), (2, 3), (4, 5)]


def test_the_published_network_has_nothing_to_learn_from_itself(teacher, published_weights, faces):
    student = ArcfaceNet(3, "mobilefacenet").eval()
    student.arcface.load_state_dict(teacher.arcface.state_dict())
    loss = Distillation(student, matched_stages(student, load_embedder(published_weights)), Weights(0, 1, 1)).eval()
    outcome = loss(normalise(faces), torch.zeros(8, dtype=torch.long))
    assert outcome.loss.item() == pytest.approx(0, abs=1e-5)
    assert outcome.correct.isnan().all()
    torch.testing.assert_close(outcome.embeddings, teacher(normalise(faces)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("student", "other"), [
    ("mobilefacenet", "mobilefacenet"), ("mobilefacenet", "iresnet18"), ("mobilenet", "mobilefacenet")])
def test_any_backbone_teaches_any_other_and_is_not_changed(student, other):
    net, source = settled(student, classes=3), settled(other)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    names = net.state_dict().keys()
    loss = Distillation(net, matched_stages(net, source), Weights(0.1, 1, 1)).train()
    learned = [*net.parameters(), *loss.maps.parameters()]
    optimizer = torch.optim.AdamW(learned, 1e-3)
    images, labels = torch.rand(3, 3, 112, 112) * 2 - 1, torch.tensor([0, 1, 2])
    for loss.apart in (True, False):
        first = last = None
        for _ in range(2):
            optimizer.zero_grad()
            outcome = loss(images, labels)
            outcome.loss.backward()
            optimizer.step()
            first, last = first or outcome.loss.item(), outcome.loss.item()
        assert last < first
        reached = {id(p) for p in learned if p.grad is not None and p.grad.abs().sum() > 0}
        assert {id(p) for p in (loss.maps if loss.apart else loss.exits).parameters()} <= reached
    assert net.state_dict().keys() == names
    assert not source.training and all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert (len(list(loss.maps.parameters())) == 0) == (student == other)


def test_stages_apart_send_no_gradient_below_themselves(teacher, faces):
    net = ArcfaceNet(3, "mobilefacenet")
    loss = Distillation(net, matched_stages(net, teacher), Weights(0, 1, 0)).train()
    outputs = loss.stages_apart([normalise(faces), *loss.teach(normalise(faces))[:-1]])
    outputs[5].sum().backward()
    blocks = net.arcface.blocks()
    assert [any(p.grad is not None for p in block.parameters()) for block in blocks] == [
        number == 5 for number in range(len(blocks))]


def test_labels_and_teacher_add_up(teacher, faces):
    net, labels = settled("mobilefacenet", 4), torch.arange(8) // 2
    images = normalise(faces)
    alone = LabelLoss(net)(images, labels).loss
    from_teacher = (1 - F.cosine_similarity(net(images), teacher(images))).mean()
    both = Distillation(net, one_stage(net, teacher), Weights(0.25, 2, 0)).eval()
    torch.testing.assert_close(both(images, labels).loss, 0.25 * alone + 2 * from_teacher)
    torch.testing.assert_close(both.evaluate(net, images, labels).loss, 0.25 * alone + 2 * from_teacher)


def test_a_mirrored_target_is_the_sum_over_both_sides_and_the_features_are_the_pictures_own(teacher, faces):
    net, images = settled("mobilefacenet", 4), normalise(faces)
    stages = matched_stages(net, teacher)
    plain, mirrored = (Distillation(net, stages, Weights(0, 1, 1), mirrored) for mirrored in (False, True))
    targets, both = plain.teach(images), mirrored.teach(images)
    assert all(map(torch.equal, targets[:-1], both[:-1]))
    expected = F.normalize(teacher(images) + teacher(images.flip(3)))
    torch.testing.assert_close(F.normalize(both[-1]), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(F.normalize(mirrored.teach(images.flip(3))[-1]), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[-1].norm(dim=1), targets[-1].norm(dim=1))
    assert F.cosine_similarity(targets[-1], expected).max() < 0.999
    distance = (1 - F.cosine_similarity(net(images), expected)).mean()
    torch.testing.assert_close(mirrored.evaluate(net, images, torch.zeros(8, dtype=torch.long)).loss, distance)


def test_where_hints_alone_are_learned_the_embedding_is_validated(teacher, faces):
    net, images, labels = settled("mobilefacenet", 4), normalise(faces), torch.arange(8) % 4
    losses = [Distillation(net, one_stage(net, teacher), weights).evaluate(net, images, labels).loss.item()
              for weights in (Weights(0, 1, 0), Weights(0, 0, 1))]
    cosine = F.cosine_similarity(net.arcface(images), teacher.arcface(images))
    assert losses == pytest.approx([(1 - cosine).mean().item()] * 2, abs=1e-5)


def test_mixup_counts_both_people_by_their_shares():
    head, embeddings = ArcfaceNet(4).head, F.normalize(torch.randn(4, 128))
    labels, share = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0.75, 0.5, 1])
    expected = sum(weight * F.cross_entropy(head(embeddings[i:i + 1], torch.tensor([label])), torch.tensor([label]))
                   for i in range(4) for weight, label in ((share[i], i), (1 - share[i], i - 1 if i else 3))) / 4
    torch.testing.assert_close(label_losses(head, embeddings, labels, share)[0].mean(), expected)
    plain, _ = label_losses(head, embeddings, labels)
    torch.testing.assert_close(label_losses(head, embeddings, labels, torch.ones(4))[0], plain)


def test_pictures_of_nobody_count_for_no_label_mixed_up_or_not():
    torch.manual_seed(5)
    head = ArcfaceNet(4).head
    embeddings, labels = F.normalize(torch.randn(5, 128)), torch.tensor([0, IGNORE, 2, 3, IGNORE])
    known = labels != IGNORE
    plain = F.cross_entropy(head(embeddings[known], labels[known]), labels[known], reduction="none")
    losses, correct = label_losses(head, embeddings, labels)
    torch.testing.assert_close(losses[known], plain)
    assert not losses[~known].any()
    assert correct.shape == labels.shape and not correct[~known].any()
    share = torch.tensor([0.75, 0.5, 0.5, 0.75, 1])
    # Only the fourth picture is mixed with one of somebody, the third; those of the others count for themselves alone.
    other = F.cross_entropy(head(embeddings[3:4], labels[2:3]), labels[2:3])
    expected = torch.cat([0.75 * plain[:1], 0.5 * plain[1:2], 0.75 * plain[2:] + 0.25 * other])
    mixed, _ = label_losses(head, embeddings, labels, share)
    torch.testing.assert_close(mixed[known], expected)
    nobody = torch.full((5,), IGNORE)
    assert not mixed[~known].any() and not label_losses(head, embeddings, nobody, share)[0].any()


def test_the_labels_of_a_picture_weigh_the_same_whoever_is_in_its_batch(teacher, faces):
    net, images, labels = settled("mobilefacenet", 4), normalise(faces), torch.arange(8) // 2
    loss = Distillation(net, one_stage(net, teacher), Weights(1, 0, 0)).eval()
    few = labels.where(torch.arange(8) == 3, IGNORE)
    alone = loss(images[3:4], labels[3:4]).loss
    torch.testing.assert_close(loss(images, few).loss, alone / 8)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentations_change_pictures_within_range_and_depend_on_the_place_alone(faces, kind):
    images, share = augment(faces, 1, 0, 0, [kind])
    plain, _ = augment(faces, 1, 0, 0)
    changed = [not torch.equal(a, b) for a, b in zip(images, plain)]
    assert any(changed) and images.shape == plain.shape
    assert images.min() >= -1 - 1e-6 and images.max() <= 1 + 1e-6
    assert torch.equal(augment(faces, 1, 0, 0, [kind])[0], images)
    assert not torch.equal(augment(faces, 1, 0, 1, [kind])[0], images)
    assert (share is None) == (kind != "mixup")
    if share is not None:
        assert share.min() >= 0.5 and share.max() <= 1 and changed == (share < 1).tolist()
        torch.testing.assert_close(
            images, plain * share[:, None, None, None] + plain.roll(1, 0) * (1 - share)[:, None, None, None])


def test_affine_moves_a_picture_by_at_most_what_it_says():
    """A white dot in the middle stays within the largest shift of it, and is not lost."""
    images = torch.full((64, 112, 112, 3), 0, dtype=torch.uint8)
    images[:, 54:58, 54:58] = 255
    moved, _ = augment(images, 1, 0, 0, ["affine"])
    bright = moved.mean(1) > -0.5
    assert bright.flatten(1).any(1).all()
    places = bright.nonzero()[:, 1:].float() - 55.5
    assert 3 < places.abs().max() <= 0.1 * 56 * 1.1 + 4


def test_a_student_run_writes_weights_without_the_head_that_learned_nothing(
        run_script, shared, published_weights, tmp_path):
    annotation = write_faces(shared, tmp_path / "cls_train.txt", people=2, pictures=5)
    result = run_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                        "--val-split", 0.2, "--teacher", published_weights, "--hint-weight", 0.1,
                        "--augment", "affine,color", "erase", "mixup",
                        "--optimizer-type", "adamw", "--init-lr", 0.003, "--no-scale-lr", "--warmup-epochs", 0)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "logs")
    row, = csv.DictReader(run.joinpath("log.csv").open(encoding="utf-8"))
    assert row["train_accuracy"] == row["val_accuracy"] == "" and 0 < float(row["val_loss"]) < 2
    assert not any(name.startswith("head.") for name in weights(run))
    load_embedder(run / "best.pth")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--teacher", "none.pth"], ["none.pth", "does not exist"]),
    (["--hint-epochs", 1], ["--teacher"]),
    (["--teacher", "x.pth", "--distill-weight", 0], ["--hint-weight"]),
    (["--augment", "blur"], ["blur", "affine"]),
])
def test_a_mistake_about_the_teacher_is_one_line(run_script, shared, tmp_path, arguments, words):
    annotation = write_faces(shared, tmp_path / "cls_train.txt")
    assert_user_error(run_script("train.py", *QUICK, "--annotation-path", annotation, *arguments), *words)
