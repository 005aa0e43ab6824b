"""Train a face-recognition network with ArcFace.

    python txt_annotation.py                         first: datasets/<person>/*.jpg -> cls_train.txt
    python train.py                                  MobileFaceNet, 100 epochs, batch 64
    python train.py --backbone iresnet50 --batch-size 128 --bf16
    python train.py --model-path model_data/arcface_mobilefacenet.pth --init-lr 1e-3 --epochs 10
    python train.py --teacher model_data/published_iresnet50.pth --augment affine color mixup
    python train.py --resume                         go on with the newest run in logs/
    torchrun --nproc-per-node 4 train.py --batch-size 512 --init-lr 0.0125

Writes to logs/<time>_<backbone>/: weights of every epoch, best.pth, last.pt, log.csv, curves, settings.json.
"""
import argparse
import math
import shlex
import sys
from pathlib import Path

from torch.utils.data import default_collate

from nets.arcface import BACKBONES, DEFAULT_BACKBONE, HEADS
from nets.head import IGNORE
from utils.common import distributed
from utils.common.device import DEVICES, choose_device, describe_device, emulates_bf16, keep_freed_memory, tune_cuda
from utils.common.errors import SettingsParser, UserError, script
from utils.data.augmentation import KINDS, augment
from utils.data.dataset import make_loaders, print_overlap, read_training_set
from utils.faces.images import check_input_shape
from utils.training import checkpoint as resume
from utils.training.checkpoint import whole_weight
from utils.training.compilation import compile_if_wanted
from utils.training.describe import describe
from utils.training.engine import Diverged, Interrupted, epoch_means, epoch_totals, train_one_epoch
from utils.training.run import Progress, Run, best_row, commit
from utils.training.settings import check_settings
from utils.training.setup import load_weights, make_net, make_training, saves_head
from utils.training.validation import measure, read_benchmarks, validate

NO_RESULTS = "epoch", "lr", "images_per_second", "data_wait"  # columns of log.csv


def make_parser():
    switch = argparse.BooleanOptionalAction
    parser = SettingsParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--annotation-path", default="cls_train.txt", help="the list that txt_annotation.py wrote")
    data.add_argument("--datasets-path", metavar="DIR", help="where the folders of the people are now, if they have "
                      "moved since (default: where the list says)")
    data.add_argument("--rec", metavar="DIR", help="instead of a list: the folder of insightface's train.rec and "
                      "train.idx")
    data.add_argument("--unlabeled", metavar="DIR", help="train on all pictures below this folder too, whoever they "
                      "show; with --teacher, whose embeddings need no labels")
    data.add_argument("--input-shape", type=int, nargs=2, default=[112, 112], metavar=("H", "W"),
                      help="height and width that every picture is brought to")
    data.add_argument("--letterbox-image", action=switch, default=True,
                      help="pad a picture to this shape instead of stretching it")
    data.add_argument("--val-split", type=float, default=0.01,
                      help="share of the pictures that is kept out of training, to validate on; 0 keeps none")
    data.add_argument("--augment", nargs="+", metavar="KIND", default=[],
                      help=f"change pictures at random beside mirroring: any of {', '.join(KINDS)} (default: none)")
    data.add_argument("--num-workers", type=int, default=4, help="processes that decode pictures")
    network = parser.add_argument_group("network")
    network.add_argument("--backbone", help=f"the network that embeds: {', '.join(BACKBONES)} "
                         f"(default: that of --model-path, without one {DEFAULT_BACKBONE})")
    network.add_argument("--model-path", default="",
                         help="start from these weights: a .pth file, or a run's folder for its best.pth (default: "
                              "random ones)")
    network.add_argument("--pretrained", action=switch, default=False,
                         help="start the backbone from model_data/<backbone>_backbone_weights.pth")
    network.add_argument("--head", choices=HEADS, default="arcface", help="the loss that asks for a margin")
    network.add_argument("--s", type=float, help="scale of the logits (default: the backbone's, 32 or 64)")
    network.add_argument("--m", type=float, default=0.5, help="margin on the angle to a picture's own person, radians")
    network.add_argument("--easy-margin", action=switch, default=False,
                         help="ask for no margin while a picture is more than a right angle from its person")
    network.add_argument("--margin-warmup-epochs", type=float, default=0,
                         help="let the margin grow from 0 to --m over the first N epochs")
    network.add_argument("--shard-head", action=switch, default=False,
                         help="divide the people's rows of the head over torchrun's processes")
    network.add_argument("--sample-rate", type=float, default=1.0, metavar="R",
                         help="train on a batch's own people and a random part of the others, R of all, but as many as "
                         "the step has pictures at least (Partial FC)")
    teacher = parser.add_argument_group("learning from another network")
    teacher.add_argument("--teacher", default="", metavar="WEIGHTS",
                         help="learn to give the embeddings of this network, the teacher (default: none)")
    teacher.add_argument("--teacher-backbone", help="the teacher's backbone (default: told from its weights)")
    teacher.add_argument("--teacher-flip", action=switch, default=False,
                         help="learn the sum of the teacher's embeddings of a picture and of its mirror image")
    teacher.add_argument("--distill-weight", type=float, default=1.0,
                         help="weight in the loss of 1 - cosine to the teacher's embedding")
    teacher.add_argument("--hint-weight", type=float, default=0.0,
                         help="weight in the loss of the error of the features inside the network")
    teacher.add_argument("--hint-epochs", type=float, default=0.0,
                         help="during the first N epochs train each stage of the network by itself, from hints alone")
    teacher.add_argument("--label-weight", type=float,
                         help="weight in the loss of the labels (default: 1 without a teacher, 0 with one)")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--init-epoch", type=int, default=0,
                              help="begin at this epoch of the schedule, as if those before it had run")
    optimisation.add_argument("--epochs", type=int, default=100, help="how often every picture is seen")
    optimisation.add_argument("--batch-size", type=int, default=64, help="pictures in a batch, of all processes")
    optimisation.add_argument("--accumulate", type=int, default=1,
                              help="add up the gradients of N batches before the weights move")
    optimisation.add_argument("--init-lr", type=float, default=1e-2,
                              help="highest learning rate, for a batch of 64; it grows with the batch")
    optimisation.add_argument("--scale-lr", action=switch, default=True,
                              help="let --init-lr grow with the batch and keep it within the published limits")
    optimisation.add_argument("--min-lr-ratio", type=float, default=0.01,
                              help="lowest learning rate, as a share of the highest")
    optimisation.add_argument("--lr-decay-type", choices=("cos", "step"), default="cos",
                              help="how the learning rate falls: along a cosine, or in ten steps")
    optimisation.add_argument("--milestones", type=float, nargs="+", default=[], metavar="EPOCH",
                              help="divide the learning rate by ten at each of these epochs instead (default: none)")
    optimisation.add_argument("--warmup-epochs", type=float,
                              help="let the learning rate rise over the first N epochs (default: a tenth of the run, "
                                   "at most 3, before a cosine; 0 otherwise)")
    optimisation.add_argument("--optimizer-type", choices=("sgd", "adam", "adamw"), default="sgd",
                              help="how the weights follow their gradients")
    optimisation.add_argument("--momentum", type=float, default=0.9, help="of SGD; for Adam its first beta")
    optimisation.add_argument("--weight-decay", type=float, default=5e-4,
                              help="pull of the weights towards 0; BatchNorm, PReLU and biases feel none")
    optimisation.add_argument("--head-weight-decay", type=float,
                              help="the same for the head and the embedding layer (default: --weight-decay)")
    optimisation.add_argument("--grad-clip", type=float, default=0,
                              help="scale gradients down to this norm where they are larger; 0 never does")
    optimisation.add_argument("--ema", type=float, default=0, metavar="DECAY",
                              help="evaluate and save a moving average of the weights, such as 0.999; 0 averages none")
    optimisation.add_argument("--freeze-bn-epochs", type=int, default=0, metavar="N",
                              help="in the last N epochs normalise as in evaluation, by BatchNorm's kept statistics")
    optimisation.add_argument("--seed", type=int, default=11, help="of everything that is random")
    results = parser.add_argument_group("results")
    results.add_argument("--save-dir", default="logs", help="where the run makes its folder")
    results.add_argument("--save-period", type=int, default=1, help="keep the weights of every N-th epoch")
    results.add_argument("--save-head", action=switch,
                         help="keep the head in the weights of the epochs (default: up to 100,000 people); last.pt "
                              "always has it")
    results.add_argument("--checkpoint-every", type=float, default=0, metavar="MINUTES",
                         help="write last.pt this often too, not only after each epoch")
    results.add_argument("--resume", nargs="?", const="", metavar="RUN",
                         help="go on with this run, or with the newest one where none is named (default: a new run)")
    results.add_argument("--force", action="store_true", help="go on although settings or pictures differ")
    results.add_argument("--lfw-eval", action=switch,
                         help="measure the network on LFW after every epoch (default: where --lfw-dir is there)")
    results.add_argument("--eval", nargs="+", metavar="BENCHMARK",
                         help="measure it on these instead: lfw, and insightface's files such as agedb_30.bin "
                              "(default: as --lfw-eval says)")
    results.add_argument("--best-by", choices=("first", "mean"), default="first",
                         help="which accuracy best.pth goes by: the first benchmark's, or the mean of all")
    results.add_argument("--lfw-dir", default="lfw", help="the aligned pictures of LFW")
    results.add_argument("--lfw-pairs", default="model_data/lfw_pair.txt", help="LFW's official list of pairs")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help=DEVICES)
    machine.add_argument("--fp16", action=switch, default=False,
                         help="compute in 16 bits with a scaled loss, for CUDA devices")
    machine.add_argument("--bf16", action=switch, default=False,
                         help="compute in bfloat16, for devices that have it: nearly as exact, up to twice as fast")
    machine.add_argument("--compile", action=switch,
                         help="let torch.compile speed the network up (default: where that pays)")
    machine.add_argument("--channels-last", action=switch, default=True,
                         help="keep the channels of a pixel side by side in memory, which is faster")
    machine.add_argument("--sync-bn", action=switch, default=False,
                         help="take BatchNorm's statistics over the pictures of all processes, on CUDA devices")
    return parser


def parse_settings():
    """-> the settings, and the checkpoint to go on from or None.

    A resumed run takes its settings from its checkpoint; flags given beside --resume override them.
    """
    parser, state = make_parser(), None
    settings = parser.parse_args()
    if settings.resume is not None:
        path = resume.find_checkpoint(settings.resume, settings.save_dir)
        state = resume.read_checkpoint(path)
        parser.set_defaults(**state["settings"])
        settings = parser.parse_args()
        settings.resume = str(path)
    check_settings(settings, parser)
    if state:
        resume.check_settings(state["settings"], vars(settings), settings.force)
    return settings, state


def prepare_machine(settings):
    """-> the device, after joining the other processes where torchrun started some."""
    device = distributed.start(choose_device(settings.device))
    keep_freed_memory(device)
    if device.type == "cuda":
        tune_cuda(device)
    if settings.bf16 and emulates_bf16(device):
        print(f"{describe_device(device)} has no instructions for bfloat16 and emulates them: --bf16 is slower there "
              "than float32, --fp16 is not")
    if settings.fp16 and device.type == "cpu":
        raise UserError("--fp16 needs CUDA: on a CPU use --bf16")
    if settings.sample_rate < 1 and distributed.world_size() > 1 and not settings.shard_head:
        raise UserError("--sample-rate with several processes needs a head that is divided over them: add --shard-head")
    if settings.sync_bn and device.type != "cuda":
        raise UserError("--sync-bn needs CUDA: add --no-sync-bn")
    if settings.batch_size % distributed.world_size():
        raise UserError(f"--batch-size {settings.batch_size} is for all processes together: make it a multiple of "
                        f"{distributed.world_size()}")
    return device


def finish_epoch(training, run, val_loader, benchmarks, settings):
    """Measure the epoch that has ended, log it and save the weights; every process takes part, rank 0 writes."""
    means = epoch_means(epoch_totals(training))
    training.epoch, training.batch, training.sums = training.epoch + 1, 0, {}
    row = {"epoch": training.epoch, "lr": training.learning_rate(training.step - 1),
           "train_loss": means["loss"], "train_accuracy": means["accuracy"],
           "val_loss": math.nan, "val_accuracy": math.nan}
    distributed.copy_buffers_of_main(training.evaluated)
    if val_loader is not None:
        val = validate(training, val_loader)
        row |= {"val_loss": val["loss"], "val_accuracy": val["accuracy"]}
    row |= measure(training.evaluated, benchmarks, settings)
    row |= {"images_per_second": means["images_per_second"], "data_wait": means["waiting"]}
    run.log(row)
    run.save_weights(weights_to_save(training, settings), settings.save_period, settings.epochs)
    print(f"epoch {training.epoch}/{settings.epochs}  " + "  ".join(
        f"{name} {value:.5g}" for name, value in row.items() if name != "epoch" and not math.isnan(value)), flush=True)


def weights_to_save(training, settings):
    """-> the state dict of the evaluated network, whole; the head is left out where it is not wanted."""
    weights, head = training.evaluated.state_dict(), training.evaluated.head
    if settings.label_weight and saves_head(settings, head.classes):  # without a weight it has learned nothing
        weights["head.weight"] = whole_weight(head)
    else:
        del weights["head.weight"]
    return weights


def train(training, run, loader, val_loader, benchmarks, data_sha256, settings):
    """Epoch after epoch until the last one, or until a signal. -> the status to exit with."""
    total_steps, batches = training.learning_rate.total_steps, len(loader)
    go_on = f"go on with: python {shlex.join(sys.argv[:1])} --resume {shlex.quote(str(run.folder))}"

    def save():
        resume.save_checkpoint(training, run, vars(settings), data_sha256)

    while training.epoch < settings.epochs:
        try:
            with Progress(training, batches, settings.epochs, total_steps) as progress:
                train_one_epoch(training, loader, progress.report, save)
        except Interrupted as error:
            raise UserError(f"{error}, {go_on}") from None
        if training.stop.received:
            print(f"stopped after step {training.step}, {go_on}", flush=True)
            return 128 + training.stop.received
        save()  # what ends the evaluation, such as a picture that does not open, does not cost the epoch
        finish_epoch(training, run, val_loader, benchmarks, settings)
        save()
    if distributed.is_main():
        print_best(run)
    return 0


def print_best(run):
    """Tell what the run has come to, and what to do with it."""
    row = best_row(run.rows)
    if row is None:
        return
    figures = "  ".join(f"{name} {value:.5g}" for name, value in row.items()
                        if name not in NO_RESULTS and not math.isnan(value))
    folder = shlex.quote(str(run.folder))
    print(f"best.pth is of epoch {row['epoch']}: {figures}\n"
          f"    python eval_LFW.py --model-path {folder}\n"
          f"    python predict.py A.jpg B.jpg --model-path {folder}", flush=True)


@script
def main():
    settings, state = parse_settings()
    check_input_shape(settings.input_shape)
    device = prepare_machine(settings)
    pictures, labels, names, data_sha256 = read_training_set(settings)
    benchmarks = read_benchmarks(settings)
    for pairs in benchmarks:
        print_overlap(names, pairs.name, pairs.identities or [])
    net = make_net(settings, len(names), device)
    if state is None:
        load_weights(net, settings)
    loader, val_loader = make_loaders(pictures, labels, settings, device)
    batches = loader.batch_sampler
    training = make_training(net, batches, settings, device)
    images, sample_labels, _ = default_collate([loader.dataset[index] for index in batches.indices_of(0)])
    run = Run.start(settings) if state is None else Run(Path(settings.resume).parent)
    if state is not None:
        resume.restore(training, run, state, data_sha256, settings.force)
        state = None  # it would keep its file open, and a second network in memory
        if training.epoch >= settings.epochs:
            raise UserError(f"{run.folder} has finished its {settings.epochs} epochs: give more --epochs, with --force")
    run.origin = {"commit": commit(), "data_sha256": data_sha256, "people": net.head.classes,
                  "settings": vars(settings)}
    print(f"run: {run.folder}; all settings: settings.json; TensorBoard events: "
          f"{'yes' if run.open_tensorboard() else 'no, tensorboard is not installed'}")
    print("\n".join([*describe(training, batches, val_loader, settings), *batches.advice()]))

    images, _ = augment(images.to(device), settings.seed, 0, 0, settings.augment)
    run.save_batch_picture(images, ["no label" if label == IGNORE else names[label] for label in sample_labels])
    left = (settings.epochs - training.epoch) * len(batches) - training.batch
    print(compile_if_wanted(training, settings, left * batches.batch_size, images, sample_labels.to(device)))
    run.write_json("settings.json", vars(settings))  # once more: with --compile decided, or what --force changed
    training.stop.listen()

    try:
        status = train(training, run, loader, val_loader, benchmarks, data_sha256, settings)
    except Diverged as error:
        run.write_json("diverged.json", error.facts)
        raise UserError(f"{error}; {run.folder / 'diverged.json'} tells of the step, "
                        f"{resume.what_is_left(run, error.facts['step'])}") from None
    distributed.stop()
    return status


if __name__ == "__main__":
    main()
