"""The folder of one training run: settings, log, curves and weights; the progress bar; the request to stop."""
import csv
import functools
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from utils.common import distributed
from utils.common.errors import UserError, print_error
from utils.common.files import REPOSITORY, write_text
from utils.drawing.contact_sheets import draw_batch, save_image
from utils.drawing.plots import plot_history
from utils.training.validation import best_row
from utils.weights import checkpoint as weights

# Every log.csv begins with these columns. Any other key of a row (train.py: finish_epoch) is a column after them.
COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
           "lfw_accuracy", "val_at_far", "images_per_second", "data_wait")


def on_main(method):
    """Decorate a method so that it does nothing on ranks other than 0."""
    @functools.wraps(method)
    def run(*args, **kwargs):
        return method(*args, **kwargs) if distributed.is_main() else None
    return run


class Run:
    """What rank 0 writes for a run, except last.pt. rows: the epochs so far, dicts of COLUMNS; NaN: not measured.

    If a file of an epoch cannot be written, a warning is printed and the run continues.
    """

    def __init__(self, folder, origin):
        """origin: what best.json records of the run."""
        self.folder, self.origin, self.rows = Path(folder), origin, []
        self.tensorboard = None
        if distributed.is_main():
            with suppress(Exception):  # it is optional, and an old one may raise anything
                from torch.utils.tensorboard import SummaryWriter
                self.tensorboard = SummaryWriter(self.folder)

    @classmethod
    def start(cls, args):
        """Return the Run of --resume, or a new one in <save_dir>/<time>_<backbone>/."""
        folder = Path(args.resume).parent if args.resume else distributed.gather(
            make_folder(args.save_dir, args.backbone) if distributed.is_main() else None)[0]
        return cls(folder, {"commit": commit(), "settings": vars(args)})

    @on_main
    def write_json(self, name, content):
        write_text(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @on_main
    def log(self, row):
        """Add one epoch's row to log.csv, the curves and TensorBoard, and print it."""
        self.rows.append(row | {name: math.nan for name in COLUMNS if name not in row})  # in the order of --eval
        print(f"epoch {row['epoch']}  {describe_row(row)}", flush=True)
        written = self.attempt("log.csv", self.write_log)
        self.attempt("loss.png", self.plot, "loss.png", {"train_loss": "train", "val_loss": "validation"})
        self.attempt("accuracy.png", self.plot, "accuracy.png", {
            "train_accuracy": "train", "val_accuracy": "validation", "lfw_accuracy": "LFW",
            "val_at_far": "LFW VAL at FAR 0.001"} | {name: name for name in row if name.startswith("eval/")})
        if self.tensorboard and written:  # on a full disk its thread would die, and flush() would wait for it
            self.attempt("TensorBoard's events", self.write_events)

    def attempt(self, name, write, *arguments):
        """Call write(*arguments) and return whether it succeeded; if not, print a warning."""
        try:
            write(*arguments)
            return True
        except Exception as error:  # matplotlib and TensorBoard may raise anything
            print_error(f"{name} of epoch {self.rows[-1]['epoch']} is not written ({error}); the run continues")
            return False

    def write_log(self):
        text = io.StringIO()
        columns = dict.fromkeys([*COLUMNS, *(name for row in self.rows for name in row)])
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: f"{value:.6g}" for name, value in row.items() if not math.isnan(value)})
        write_text(self.folder / "log.csv", text.getvalue())

    def plot(self, name, columns):
        plot_history(self.rows, columns, best_row(self.rows)["epoch"], self.folder / name)

    def write_events(self):
        for name, value in self.rows[-1].items():
            if name != "epoch" and not math.isnan(value):
                self.tensorboard.add_scalar(name, value, self.rows[-1]["epoch"])
        self.tensorboard.flush()

    @on_main
    def save_weights(self, state_dict, args):
        """Save epNNN-....pth every --save-period epochs and at the end, and best.pth if the newest epoch is the best.

        best.json, beside it, records where best.pth comes from; eval_LFW.py --save-threshold adds to it.
        """
        row = self.rows[-1]
        if row["epoch"] % args.save_period == 0 or row["epoch"] == args.epochs:
            name = f"ep{row['epoch']:03d}-loss{row['train_loss']:.3f}-val_loss{row['val_loss']:.3f}.pth"
            self.attempt(name, weights.save, state_dict, self.folder / name)
        if best_row(self.rows) is row and self.attempt("best.pth", weights.save, state_dict, self.folder / "best.pth"):
            measured = {name: value for name, value in row.items() if not math.isnan(value)}
            self.attempt("best.json", self.write_json, "best.json", {"training": self.origin | measured})

    @on_main
    def save_batch_image(self, images, names):
        """Draw a float batch (B, 3, H, W) in [-1, 1], as the network sees it, with names below: batch.png."""
        pixels = ((images[:64] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        save_image(draw_batch(pixels, names[:64]), self.folder / "batch.png")

    @on_main
    def print_best(self):
        """Print the best epoch, and what to do with it."""
        row, folder = best_row(self.rows), shlex.quote(self.folder.as_posix())
        print(f"best.pth is of epoch {row['epoch']}: {describe_row(row)}\n"
              f"    python eval_LFW.py --model-path {folder}\n"
              f"    python predict.py A.jpg B.jpg --model-path {folder}", flush=True)


def describe_row(row):
    return "  ".join(f"{name} {value:.5g}" for name, value in row.items() if name != "epoch" and not math.isnan(value))


def make_folder(save_dir, backbone):
    """Make <save_dir>/<time>_<backbone>/, which no other run has, and return its path."""
    folder = Path(save_dir, f"{time.strftime('%Y_%m_%d_%H_%M_%S')}_{backbone}")
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except OSError as error:
            if not folder.is_dir():
                raise UserError(f"cannot make {folder} ({error.strerror}): choose another --save-dir") from None
            folder = folder.with_name(f"{folder.name}_2")  # another run has started in this second


def commit():
    """Return the commit of this code, with "+" if files were changed since; None if it is not known."""
    try:
        return subprocess.run(["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--match="], cwd=REPOSITORY,
                              capture_output=True, encoding="utf-8", check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def progress_bar(state, epochs):
    """Return a bar over all steps of the run: on a terminal, and elsewhere a line a minute on stdout."""
    terminal = sys.stderr.isatty()
    return tqdm(total=state.learning_rate.total_steps, initial=state.step, desc=f"epoch {state.epoch + 1}/{epochs}",
                unit="step", disable=not distributed.is_main(), mininterval=0.1 if terminal else 60,
                delay=0 if terminal else 60, file=sys.stderr if terminal else sys.stdout)


class StopRequest:
    """SIGINT and SIGTERM as a request to stop after the current step.

    `received` is 0, or the number of the signal that came after listen(). The same one again ends the process at once.
    """

    def __init__(self):
        self.received = 0

    def listen(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, frame):
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        if distributed.is_main():  # not by print(), which the signal may have interrupted
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; the same again stops at once, without saving\n")
