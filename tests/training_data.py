"""Annotation files and run folders for the tests of training."""
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
QUICK = ["--device", "cpu", "--no-lfw-eval", "--no-compile", "--batch-size", "8", "--init-lr", "0.05"]


def write_faces(shared, path, people=4, pictures=10, skip=0):
    """Write an annotation of the first pictures of some people of shared/faces_train. -> its path."""
    folders = sorted(shared.joinpath("faces_train").iterdir())
    folders = [folder for folder in folders if len(list(folder.iterdir())) >= pictures]
    lines = [f"{label};{image}" for label, folder in enumerate(folders[skip:skip + people])
             for image in sorted(folder.iterdir())[:pictures]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def only_run(logs):
    """The folder of the one run in logs."""
    run, = Path(logs).iterdir()
    return run


def weights(run):
    """The weights of a run's last epoch."""
    return torch.load(sorted(Path(run).glob("ep*.pth"))[-1], weights_only=True)


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


def train_command(*arguments):
    return [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
