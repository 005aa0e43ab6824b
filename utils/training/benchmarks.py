"""What a run is measured on after every epoch: LFW, and insightface's verification files."""
import math
from collections import Counter
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

from utils.common import distributed
from utils.common.errors import UserError
from utils.evaluation import lfw
from utils.evaluation.embedding import inference_copy
from utils.evaluation.metrics import can_measure_far
from utils.evaluation.verification_file import read_verification_file

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
    benchmarks = [read_lfw(settings) if name == "lfw" else read_verification_file(name) for name in names]
    twice = [name for name, count in Counter(pairs.name for pairs in benchmarks).items() if count > 1]
    if twice:
        raise UserError(f"--eval names {twice[0]} twice: give each benchmark once, by a file name of its own")
    return benchmarks


def read_lfw(settings):
    pairs = lfw.read_pairs(settings.lfw_pairs, settings.lfw_dir)
    if lfw.looks_unaligned(pairs.paths):
        print(f"{settings.lfw_dir} {lfw.UNALIGNED}; eval_LFW.py --download fetches LFW and aligns it")
    return pairs


def columns_of(name):
    """-> the columns of log.csv for a benchmark's accuracy and VAL at FAR 0.001."""
    return ("lfw_accuracy", "val_at_far") if name == "LFW" else (f"{name}_accuracy", f"{name}_val_at_far")


def measure(net, benchmarks, settings):
    """The figures of an ArcfaceNet -> {column: value}, in the order of --eval. Every process takes a share."""
    net, row = inference_copy(net), {}
    choices = SimpleNamespace(
        input_shape=settings.input_shape, letterbox_image=settings.letterbox_image, batch_size=256,
        num_workers=max(1, settings.num_workers), flip=False, bf16=False, far=1e-3)
    for pairs in benchmarks:
        figures, _ = lfw.evaluate(net, pairs, choices)
        val = figures.val if can_measure_far(pairs.genuine, figures.far_target) else math.nan
        row |= zip(columns_of(pairs.name), (figures.accuracy, val))
    if benchmarks and settings.best_by == "mean":
        row[MEAN] = mean(row[columns_of(pairs.name)[0]] for pairs in benchmarks)
    return row


def accuracy_columns(row):
    """A row of log.csv -> the columns that best.pth goes by: the mean where it was asked for, else --eval's first."""
    names = [name for name in row if name.endswith("_accuracy") and name not in ("train_accuracy", "val_accuracy")]
    return [MEAN] if MEAN in names else names
