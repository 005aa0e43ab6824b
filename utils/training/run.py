"""The folder of one training run: settings, log, curves and weights."""
import csv
import functools
import io
import itertools
import json
import math
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from utils.common import distributed
from utils.common.errors import UserError
from utils.common.files import REPOSITORY, atomic_write, write_text
from utils.drawing.contact_sheets import draw_batch
from utils.drawing.plots import plot_history
from utils.training.validation import accuracy_columns
from utils.weights import checkpoint

# Of log.csv in every run; benchmarks other than LFW add theirs.
COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
           "lfw_accuracy", "val_at_far", "images_per_second", "data_wait")


def on_main(method):
    """Only rank 0 writes: in the other processes the method does nothing."""
    @functools.wraps(method)
    def run(*args, **kwargs):
        return method(*args, **kwargs) if distributed.is_main() else None
    return run


def best_row(rows):
    """The row of the best epoch: by a benchmark's accuracy, without one by validation loss, else the last one.

    Of several benchmarks see accuracy_columns(). Of equal epochs the first counts. One with a loss or figure that is
    infinite, or without a training loss, never does: None where there is no other.
    """
    finite = [row for row in rows if math.isfinite(row["train_loss"]) and not any(map(math.isinf, row.values()))]
    columns = [(column, 1) for row in finite[-1:] for column in accuracy_columns(row)]
    for column, sign in (*columns, ("val_loss", -1)):
        measured = [row for row in finite if not math.isnan(row.get(column, math.nan))]
        if measured:
            return max(measured, key=lambda row: sign * row[column])
    return finite[-1] if finite else None


class Run:
    """Everything a run writes, from rank 0. `rows`: the epochs so far, dicts of COLUMNS; NaN is not measured.

    Once it trains, what cannot be written is said once and the run goes on: the next epoch tries again.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.rows = []
        self.origin = {}  # of the weights: what best.json says beside the figures of their epoch
        self.tensorboard = None
        self.warned = set()  # what was said not to be written

    @classmethod
    def start(cls, settings):
        """Make <save_dir>/<time>_<backbone>/ and write settings.json there."""
        folder = make_folder(settings.save_dir, settings.backbone) if distributed.is_main() else None
        run = cls(distributed.gather(folder)[0])
        run.write_json("settings.json", vars(settings))
        return run

    @on_main
    def write_json(self, name, content):
        write_text(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @on_main
    def open_tensorboard(self):
        """Write TensorBoard events too. -> whether tensorboard is installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return False
        self.tensorboard = SummaryWriter(self.folder)
        return True

    @on_main
    def log(self, row):
        """Add one epoch's row to log.csv, the curves and TensorBoard."""
        self.rows.append(row | {name: math.nan for name in COLUMNS if name not in row})
        written = self.attempt("log.csv", self.write_log)
        self.attempt("loss.png", self.plot_losses)
        self.attempt("accuracy.png", self.plot_accuracies)
        if self.tensorboard and written:  # on a full disk its thread would die, and flush() wait for it for ever
            self.attempt("TensorBoard's events", self.write_events)

    def attempt(self, what, write):
        """-> whether write() succeeds. A full disk, or a file that another program holds open, costs a warning."""
        try:
            write()
            return True
        except Exception as error:  # matplotlib and TensorBoard may raise anything
            if what not in self.warned:
                reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                print(f"{what} of epoch {self.rows[-1]['epoch']} not written ({reason}); the run goes on, and this is "
                      "said once", file=sys.stderr, flush=True)
            self.warned.add(what)
            return False

    def write_log(self):
        text = io.StringIO()
        columns = dict.fromkeys([*COLUMNS, *(name for row in self.rows for name in row)])
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: f"{value:.6g}" for name, value in row.items() if not math.isnan(value)})
        write_text(self.folder / "log.csv", text.getvalue())

    def plot_losses(self):
        self.plot({"train_loss": "train", "val_loss": "validation"}, "loss.png")

    def plot_accuracies(self):
        labels = {"train_accuracy": "train", "val_accuracy": "validation", "lfw_accuracy": "LFW",
                  "val_at_far": "LFW VAL at FAR 0.001"}
        others = (name for name in self.rows[-1] if name.endswith(("_accuracy", "_val_at_far")))
        self.plot(labels | {name: name.replace("_", " ") for name in others if name not in labels}, "accuracy.png")

    def plot(self, columns, name):
        best = best_row(self.rows)
        plot_history(self.rows, columns, best and best["epoch"], self.folder / name)

    def write_events(self):
        for name, value in self.rows[-1].items():
            if name != "epoch" and not math.isnan(value):
                self.tensorboard.add_scalar(name, value, self.rows[-1]["epoch"])
        self.tensorboard.flush()

    @on_main
    def save_weights(self, state, period, last_epoch):
        """Save epNNN-....pth every `period` epochs and at the end, and best.pth when the newest row is the best.

        best.json, beside it, says where best.pth comes from; eval_LFW.py --save-threshold adds to it.
        """
        row = self.rows[-1]
        if row["epoch"] % period == 0 or row["epoch"] == last_epoch:
            name = f"ep{row['epoch']:03d}-loss{row['train_loss']:.3f}-val_loss{row['val_loss']:.3f}.pth"
            self.attempt("the weights", lambda: checkpoint.save(state, self.folder / name))
        if best_row(self.rows) is row:
            self.attempt("best.pth", lambda: self.save_best(state))

    def save_best(self, state):
        checkpoint.save(state, self.folder / "best.pth")
        measured = {name: value for name, value in self.rows[-1].items() if not math.isnan(value)}
        self.write_json("best.json", {"training": self.origin | measured})

    @on_main
    def save_batch_picture(self, images, names):
        """A float batch (B, 3, H, W) in [-1, 1] and whose faces they are -> batch.png, as the network sees it."""
        pixels = ((images[:64] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        with atomic_write(self.folder / "batch.png") as temporary:
            draw_batch(pixels, names[:64]).save(temporary, format="png")


def make_folder(save_dir, backbone):
    """Make <save_dir>/<time>_<backbone>/, of which no other run has the name. -> its path."""
    name = time.strftime("%Y_%m_%d_%H_%M_%S") + "_" + backbone
    for number in itertools.count(1):
        folder = Path(save_dir, name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run has started in this second
            if not folder.is_dir():
                raise UserError(f"cannot make {folder}: a file has its name, or that of a folder above it") from None
        except OSError as error:
            raise UserError(f"cannot make {folder} ({error.strerror}): choose another --save-dir") from None


def commit():
    """The commit that this code is of, with "+" where files were changed since; None where that is not known."""
    try:
        return subprocess.run(["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--match="], cwd=REPOSITORY,
                              capture_output=True, encoding="utf-8", check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


class Progress:
    """`report(means)` after each step of an epoch, with those of rank 0; use as a context manager around the epoch."""

    def __init__(self, training, batches, epochs, total_steps):
        self.training, self.total_steps = training, total_steps
        self.epoch = f"epoch {training.epoch + 1}/{epochs}"
        self.bar = tqdm(total=batches, initial=training.batch, desc=self.epoch, unit="batch",
                        disable=not sys.stderr.isatty() or not sys.stdout.isatty())
        self.began = self.written = time.perf_counter()
        self.first_step = training.step

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def report(self, means):
        now, step = time.perf_counter(), self.training.step
        left = (now - self.began) / max(1, step - self.first_step) * (self.total_steps - step)
        eta = timedelta(seconds=round(left))  # "0:05:00", "2 days, 3:04:05"
        accuracy = "" if math.isnan(means["accuracy"]) else f"acc {means['accuracy']:.3f} "  # none without labels
        text = (f"loss {means['loss']:.3f} {accuracy}lr {self.training.learning_rate(step - 1):.2g} "
                f"{means['images_per_second'] * distributed.world_size():.0f} img/s ETA {eta}")
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(self.training.batch - self.bar.n)
        elif now - self.written > 60:
            print(f"{self.epoch} step {step}/{self.total_steps}: {text}", flush=True)
            self.written = now
