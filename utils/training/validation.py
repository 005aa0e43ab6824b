"""What a network is measured on after every epoch: the images held out, LFW, and insightface's files."""
import math
from collections import Counter
from operator import mul
from pathlib import Path
from statistics import mean

import torch

from nets.head import IGNORE
from utils.common import distributed
from utils.common.device import send
from utils.common.errors import UserError
from utils.data.dataset import batches_of
from utils.evaluation.embedding import inference_copy
from utils.evaluation.metrics import can_measure_far
from utils.evaluation.pairs import check_aligned, embed_pairs, pair_metrics, read_bin, read_pairs
from utils.faces.images import normalise
from utils.training.engine import read


def filled_up(batches, loader):
    """Yield as many and as large batches in every process, as a head whose classes are divided needs.

    What is added is grey, has the label IGNORE and is not among the numbers of the pictures.
    """
    most, = map(int, distributed.reduce([len(loader.dataset)], largest=True))
    shape = (*loader.dataset.input_shape[:2], 3)
    nothing = torch.zeros(0, *shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    for first in range(0, most, loader.batch_size):
        images, labels, used = next(batches, nothing)
        lacking = min(loader.batch_size, most - first) - len(labels)
        yield (torch.cat([images, images.new_full((lacking, *shape), 128)]),
               torch.cat([labels, labels.new_full((lacking,), IGNORE)]), used)


@torch.inference_mode()
def validate(training, loader):
    """-> {"loss", "accuracy"} of the evaluated network on the validation set, every picture once over all processes.

    Without augmentation and, for accuracy, without the margin; the loss with the whole margin, so that the epochs of
    --margin-warmup-epochs compare. Raises UserError where the loss is not finite.
    """
    net = inference_copy(training.evaluated)
    net.head = training.evaluated.head
    net.head.m = training.margin.m
    losses, correct, counts = [], [], []
    batches = batches_of(loader)
    if net.head.shard.processes > 1:
        batches = filled_up(batches, loader)
    for images, labels, used in batches:
        images, labels = normalise(send(images, training.device)), send(labels, training.device)
        with training.autocast():
            outcome = training.objective.evaluate(net, images, labels)
        losses.append(outcome.loss)
        correct.append(outcome.correct.sum())
        counts.append(len(used))
    figures = read(*losses, *correct)  # once, at the end
    loss, correct, count = distributed.reduce([sum(map(mul, figures, counts)), sum(figures[len(counts):]), sum(counts)])
    if not math.isfinite(loss):  # with weights that are finite: what is between them and the embeddings is not
        raise UserError(f"the validation loss is {loss / count} after epoch {training.epoch}: lower --init-lr, or "
                        "train without --fp16 and --bf16")
    return {"loss": loss / count, "accuracy": correct / count}


MEAN = "mean_accuracy"  # the column of --best-by mean


def read_benchmarks(settings):
    """-> the Pairs that --eval names, else LFW where --lfw-eval or the presence of --lfw-dir asks for it; may be empty.

    Raises UserError for one that does not read, and for two of one name, which is that of a column.
    """
    names = settings.eval
    if names is None:
        there = distributed.gather(Path(settings.lfw_dir).is_dir())[0]  # one answer for all hosts
        names = ["lfw"] if settings.lfw_eval or (settings.lfw_eval is None and there) else []
        if settings.lfw_eval is None and not there:
            print(f"{settings.lfw_dir} is not there: training without LFW (best.pth goes by validation loss, or is the "
                  "last epoch's without validation)")
    benchmarks = [read_pairs(settings.lfw_pairs, settings.lfw_dir) if name == "lfw" else read_bin(name)
                  for name in names]
    twice = [name for name, count in Counter(pairs.name for pairs in benchmarks).items() if count > 1]
    if twice:
        raise UserError(f"--eval names {twice[0]} twice: give each benchmark once, by a file name of its own")
    for pairs in benchmarks:
        check_aligned(pairs)
    return benchmarks


def columns_of(name):
    """-> the columns of log.csv for a benchmark's accuracy and VAL at FAR 0.001."""
    return ("lfw_accuracy", "val_at_far") if name == "LFW" else (f"{name}_accuracy", f"{name}_val_at_far")


def measure(net, benchmarks, settings):
    """The figures of an ArcfaceNet -> {column: value}, in the order of --eval. Every process takes a share."""
    net, row = inference_copy(net), {}
    for pairs in benchmarks:
        embeddings = embed_pairs(net, pairs, input_shape=settings.input_shape, letterbox=settings.letterbox_image,
                                 workers=settings.num_workers)
        figures, _ = pair_metrics(embeddings, pairs)
        val = figures.val if can_measure_far(pairs.genuine, figures.far_target) else math.nan
        row |= zip(columns_of(pairs.name), (figures.accuracy, val))
    if benchmarks and settings.best_by == "mean":
        row[MEAN] = mean(row[columns_of(pairs.name)[0]] for pairs in benchmarks)
    return row


def accuracy_columns(row):
    """A row of log.csv -> the columns that best.pth goes by: the mean where it was asked for, else --eval's first."""
    names = [name for name in row if name.endswith("_accuracy") and name not in ("train_accuracy", "val_accuracy")]
    return [MEAN] if MEAN in names else names
