"""What a network is measured on after every epoch: the images held out, LFW, and insightface's .bin files."""
import math
from pathlib import Path
from statistics import mean

import torch

from utils.common import distributed
from utils.common.device import send
from utils.common.errors import UserError
from utils.data.dataset import batches_of, print_overlap
from utils.evaluation.embedding import inference_copy
from utils.evaluation.pairs import check_aligned, embed_pairs, pair_metrics, read_bin, read_pairs
from utils.faces.images import normalise

MEAN = "mean_accuracy"  # the column of --best-by mean


@torch.inference_mode()
def validate(state, loader):
    """Return the row's {"val_loss", "val_accuracy"} of the averaged network, over the held-out images of all ranks.

    Without augmentation. Accuracy is computed without the margin. The loss has the full margin also in the epochs of
    --margin-warmup-epochs, so that epochs are comparable. Raises UserError if the loss is not finite.
    """
    if loader is None:
        return {}
    net = inference_copy(state.ema.net)
    net.head = state.ema.net.head
    net.head.m = state.margin.m  # train_step sets it again
    sums, count = torch.zeros(2, device=state.device), 0
    for images, labels, indices in batches_of(loader):
        images, labels = normalise(send(images, state.device)), send(labels, state.device)
        with state.autocast():
            loss, is_correct = state.loss_fn(images, labels, targets=state.loss_fn.targets(indices), net=net)
        sums, count = sums + torch.stack([loss * len(indices), is_correct.sum()]), count + len(indices)
    loss, correct, count = distributed.reduce([*sums.tolist(), count])  # one wait for the device, at the end
    if not math.isfinite(loss):
        raise UserError(f"the validation loss is {loss / count} after epoch {state.epoch}: lower --init-lr, or train "
                        "without --fp16 and --bf16")
    return {"val_loss": loss / count, "val_accuracy": correct / count}


def read_benchmarks(args, class_names):
    """Return {name: Pairs}: what --eval lists, else LFW if --lfw-eval asks for it or --lfw-dir exists.

    LFW's name is "lfw" and a file's "eval/<stem>", so that no file shares a column of log.csv. Prints warnings.
    """
    names = args.eval
    if names is None:
        exists = distributed.gather(Path(args.lfw_dir).is_dir())[0]  # one answer on all hosts
        names = ["lfw"] if args.lfw_eval or (args.lfw_eval is None and exists) else []
        if args.lfw_eval is None and not exists:
            print(f"{args.lfw_dir} does not exist: training without LFW (best.pth: the lowest validation loss, if any)")
    benchmarks = {}
    for name in names:
        key = "lfw" if name == "lfw" else f"eval/{Path(name).stem}"
        if key in benchmarks:
            raise UserError(f"--eval names {Path(name).stem} twice: give each benchmark once, with a file name of its "
                            "own")
        benchmarks[key] = read_pairs(args.lfw_pairs, args.lfw_dir) if name == "lfw" else read_bin(name)
    for pairs in benchmarks.values():
        check_aligned(pairs)
        print_overlap(class_names, pairs.name, pairs.identities or [])
    return benchmarks


def benchmark_columns(name):
    """Return the columns of log.csv for a benchmark's accuracy and VAL at FAR 0.001."""
    return ("lfw_accuracy", "val_at_far") if name == "lfw" else (f"{name}_accuracy", f"{name}_val_at_far")


def measure_benchmarks(net, benchmarks, args):
    """Return {column: value} of an ArcfaceNet, in the order of --eval. Every rank embeds a part."""
    net, row = inference_copy(net), {}
    for name, pairs in benchmarks.items():
        embeddings = embed_pairs(net, pairs, input_shape=args.input_shape, workers=args.num_workers)
        metrics, _ = pair_metrics(embeddings, pairs)
        row |= zip(benchmark_columns(name), (metrics.accuracy, math.nan if metrics.val is None else metrics.val))
    if benchmarks and args.best_by == "mean":
        row[MEAN] = mean(row[benchmark_columns(name)[0]] for name in benchmarks)
    return row


def best_row(rows):
    """Return the log.csv row of the best epoch, the first of equal ones.

    With --best-by mean the highest mean accuracy is best, otherwise the highest accuracy on the first benchmark.
    Without benchmarks it is the lowest validation loss, and without validation images the last epoch.
    """
    for column, sign in [(column, 1) for column in accuracy_columns(rows[-1])] + [("val_loss", -1)]:
        measured = [row for row in rows if not math.isnan(row.get(column, math.nan))]
        if measured:
            return max(measured, key=lambda row: sign * row[column])
    return rows[-1]


def accuracy_columns(row):
    """Return the columns that may choose best.pth, in order: best_row() uses the first one that has a value."""
    return [MEAN] if MEAN in row else [name for name in row if name == "lfw_accuracy" or (
        name.startswith("eval/") and name.endswith("_accuracy"))]
