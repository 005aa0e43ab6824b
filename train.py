"""Train a face-recognition network with ArcFace.

    python txt_annotation.py                         first: datasets/<person>/*.jpg -> cls_train.txt
    python train.py                                  MobileFaceNet, 100 epochs, batch 64
    python train.py --backbone iresnet50 --batch-size 128 --bf16
    python train.py --model-path model_data/arcface_mobilefacenet.pth --init-lr 1e-3 --epochs 10
    python train.py --device cpu --epochs 12 --no-lfw-eval --num-workers 2

Writes to logs/<time>_<backbone>/: weights of every epoch and best.pth, log.csv, curves, settings.json.
"""
import argparse
import math
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

from nets.arcface import ArcfaceNet, backbone_name
from utils import checkpoint, lfw
from utils.annotation import check_trainable, read_annotation
from utils.augmentation import augment
from utils.dataset import make_loaders
from utils.device import choose_device, describe_device, keep_freed_memory
from utils.embedding import inference_copy
from utils.engine import Training, train_one_epoch, validate
from utils.errors import SettingsParser, UserError, script
from utils.images import check_input_shape
from utils.optimizer import describe_groups, make_optimizer
from utils.run import Run
from utils.schedule import SCHEDULES, scale_learning_rate


def parse_settings():
    switch = argparse.BooleanOptionalAction
    parser = SettingsParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--annotation-path", default="cls_train.txt", help="what txt_annotation.py wrote")
    data.add_argument("--input-shape", type=int, nargs=2, default=[112, 112], metavar=("H", "W"))
    data.add_argument("--letterbox-image", action=switch, default=True, help="pad, not stretch")
    data.add_argument("--val-split", type=float, default=0.01, help="share of the pictures held out; 0 for none")
    data.add_argument("--num-workers", type=int, default=4, help="processes that decode pictures")
    network = parser.add_argument_group("network")
    network.add_argument("--backbone", default="mobilefacenet",
                         help="mobilefacenet, mobilenet, iresnet18, iresnet34, iresnet50, iresnet100 or iresnet200")
    network.add_argument("--model-path", default="", help="start from these weights")
    network.add_argument("--pretrained", action=switch, default=False,
                         help="start the backbone from model_data/<backbone>_backbone_weights.pth")
    network.add_argument("--s", type=float, default=None, help="scale of the logits; none: the backbone's own, 32 or 64")
    network.add_argument("--m", type=float, default=0.5, help="angular margin, in radians")
    network.add_argument("--easy-margin", action=switch, default=False, help="no margin where cos(theta) <= 0")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--init-epoch", type=int, default=0, help="start counting here, at its learning rate")
    optimisation.add_argument("--epochs", type=int, default=100)
    optimisation.add_argument("--batch-size", type=int, default=64)
    optimisation.add_argument("--init-lr", type=float, default=1e-2, help="for a batch of 64; scales with the batch")
    optimisation.add_argument("--min-lr-ratio", type=float, default=0.01, help="lowest learning rate / highest")
    optimisation.add_argument("--optimizer-type", choices=("sgd", "adam", "adamw"), default="sgd")
    optimisation.add_argument("--momentum", type=float, default=0.9)
    optimisation.add_argument("--weight-decay", type=float, default=5e-4, help="not on BatchNorm, PReLU and biases")
    optimisation.add_argument("--lr-decay-type", choices=tuple(SCHEDULES), default="cos")
    optimisation.add_argument("--seed", type=int, default=11)
    results = parser.add_argument_group("results")
    results.add_argument("--save-dir", default="logs")
    results.add_argument("--save-period", type=int, default=1, help="epochs between two saved weight files")
    results.add_argument("--lfw-eval", action=switch, default=None,
                         help="evaluate on LFW every epoch; none: if it is there")
    results.add_argument("--lfw-dir", default="lfw")
    results.add_argument("--lfw-pairs", default="model_data/lfw_pair.txt")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    precision = machine.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="mixed precision with loss scaling (CUDA)")
    precision.add_argument("--bf16", action="store_true", help="mixed precision without")
    settings = parser.parse_args()
    check_settings(settings, parser)
    return settings


def check_settings(settings, parser):
    for name, lowest in (("epochs", 1), ("batch_size", 2), ("save_period", 1), ("num_workers", 0), ("seed", 0),
                         ("init_epoch", 0), ("init_lr", 0), ("min_lr_ratio", 0), ("momentum", 0), ("weight_decay", 0)):
        if getattr(settings, name) < lowest:
            parser.error(f"--{name.replace('_', '-')} must be at least {lowest}")
    if not settings.init_epoch < settings.epochs:
        parser.error(f"--init-epoch {settings.init_epoch} leaves nothing to do before --epochs {settings.epochs}")
    if not 0 <= settings.val_split < 1:
        parser.error("--val-split must be at least 0 and below 1")
    if not 0 <= settings.m < math.pi or (settings.s is not None and settings.s <= 0):
        parser.error("--m must be at least 0 and below pi, and --s above 0")
    try:
        settings.backbone = backbone_name(settings.backbone)
    except ValueError as error:
        parser.error(f"--backbone: {error}")


def make_net(settings, num_classes):
    """-> a network that starts from random weights, from --model-path or from --pretrained."""
    torch.manual_seed(settings.seed)
    net = ArcfaceNet(num_classes, settings.backbone, settings.s, settings.m, settings.easy_margin)
    if settings.model_path:
        print(checkpoint.load_for_training(net, settings.model_path))
    elif settings.pretrained:
        print(checkpoint.load_pretrained_backbone(net, f"model_data/{settings.backbone}_backbone_weights.pth"))
    return net


def make_training(net, settings, device, steps_per_epoch, batch_size):
    peak, lowest = scale_learning_rate(settings.init_lr, settings.min_lr_ratio, batch_size, settings.optimizer_type)
    print(f"learning rate: {peak:g} to {lowest:g}, for a batch of {batch_size}")
    settings.effective_lr, settings.effective_min_lr = peak, lowest
    return Training(
        net=net, optimizer=make_optimizer(net, settings, peak), device=device, seed=settings.seed,
        learning_rate=partial(SCHEDULES[settings.lr_decay_type], total_steps=settings.epochs * steps_per_epoch,
                              steps_per_epoch=steps_per_epoch, peak=peak, lowest=lowest),
        autocast_dtype=torch.float16 if settings.fp16 else torch.bfloat16 if settings.bf16 else None,
        scaler=torch.amp.GradScaler(device.type, enabled=settings.fp16),
        step=settings.init_epoch * steps_per_epoch, epoch=settings.init_epoch)


def find_lfw(settings):
    """-> Pairs, or None where LFW is not wanted, or is absent and was not asked for."""
    if settings.lfw_eval is False:
        return None
    if settings.lfw_eval is None and not Path(settings.lfw_dir).is_dir():
        print(f"{settings.lfw_dir} is not there: training without LFW (best.pth goes by validation loss)")
        return None
    return lfw.read_pairs(settings.lfw_pairs, settings.lfw_dir)


def evaluate_lfw(training, pairs, settings):
    """-> Verification on LFW of the network as it is now."""
    net = inference_copy(training.net).to(training.device)
    figures, _ = lfw.evaluate(net, pairs, SimpleNamespace(
        input_shape=settings.input_shape, letterbox_image=settings.letterbox_image, batch_size=256,
        num_workers=max(1, settings.num_workers), flip=False, far=1e-3))
    return figures


def finish_epoch(training, run, train, val_loader, pairs, settings):
    """Measure the epoch that just ended, log it and save the weights."""
    nothing = math.nan
    row = {"epoch": training.epoch, "lr": training.learning_rate(training.step - 1),
           "train_loss": train["loss"], "train_accuracy": train["accuracy"],
           "val_loss": nothing, "val_accuracy": nothing, "lfw_accuracy": nothing, "val_at_far": nothing,
           "images_per_second": train["images_per_second"], "data_wait": train["waiting"]}
    if val_loader is not None:
        val = validate(training, val_loader)
        row |= {"val_loss": val["loss"], "val_accuracy": val["accuracy"]}
    if pairs is not None:
        figures = evaluate_lfw(training, pairs, settings)
        row |= {"lfw_accuracy": figures.accuracy, "val_at_far": figures.val}
    run.log(row)
    run.save_weights(training.net.state_dict(), settings.save_period, settings.epochs)
    print(f"epoch {training.epoch}/{settings.epochs}  " + "  ".join(
        f"{name} {value:.5g}" for name, value in row.items() if name != "epoch" and not math.isnan(value)))


def make_report(bar, training, total_steps):
    """-> what shows the means so far on the bar."""
    began, first_step = time.perf_counter(), training.step

    def report(means):
        per_step = (time.perf_counter() - began) / (training.step - first_step)
        eta = time.strftime("%H:%M:%S", time.gmtime(per_step * (total_steps - training.step)))
        bar.set_postfix_str(f"loss {means['loss']:.3f} acc {means['accuracy']:.3f} "
                            f"lr {training.learning_rate(training.step - 1):.2g} "
                            f"{means['images_per_second']:.0f} img/s ETA {eta}", refresh=False)
        bar.update()
    return report


@script
def main():
    settings = parse_settings()
    keep_freed_memory()
    check_input_shape(settings.input_shape)
    device = choose_device(settings.device)
    if settings.fp16 and device.type == "cpu":
        raise UserError("--fp16 needs CUDA: on a CPU use --bf16")
    paths, labels = read_annotation(settings.annotation_path)
    check_trainable(labels, settings.annotation_path)
    pairs = find_lfw(settings)
    net = make_net(settings, num_classes=max(labels) + 1).to(device, memory_format=torch.channels_last)
    loader, val_loader = make_loaders(paths, labels, settings, device)
    batches = loader.batch_sampler
    training = make_training(net, settings, device, len(batches), batches.batch_size)

    run = Run.start(settings.save_dir, settings.backbone, vars(settings))
    print("\n".join(f"{name:>18}  {value}" for name, value in vars(settings).items()))
    print("\n".join(describe_groups(training.optimizer)))
    print(f"{max(labels) + 1} people, {batches.count} pictures to train on, "
          f"{len(val_loader.dataset) if val_loader else 0} to validate on, {len(batches)} steps an epoch")
    print(f"device: {describe_device(device)}")
    print(f"TensorBoard events: {'yes' if run.open_tensorboard() else 'no, tensorboard is not installed'}")
    print(f"expected initial loss: {net.head.expected_initial_loss():.1f} (most of it the margin's share)")
    print(f"run: {run.folder}")
    images, sample_labels, _ = next(iter(loader))
    run.save_batch_picture(augment(images, settings.seed, training.epoch, 0), sample_labels)

    while training.epoch < settings.epochs:
        with tqdm(total=batches.count // batches.batch_size, desc=f"epoch {training.epoch + 1}/{settings.epochs}",
                  unit="batch", disable=None) as bar:
            report = make_report(bar, training, settings.epochs * len(batches))
            means = train_one_epoch(training, loader, report)
        training.epoch, training.batch, training.sums = training.epoch + 1, 0, {}
        finish_epoch(training, run, means, val_loader, pairs, settings)


if __name__ == "__main__":
    main()
