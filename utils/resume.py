"""last.pt: all of a run's state, and how a run goes on from it."""
import random
from pathlib import Path

import numpy as np
import torch

from utils import checkpoint, distributed
from utils.engine import epoch_totals
from utils.errors import UserError

# Settings that may differ when a run goes on: they change where and how it runs, not what it computes.
FREE = {"resume", "force", "num_workers", "device", "save_dir", "save_period", "lfw_eval", "lfw_dir", "lfw_pairs",
        "checkpoint_every", "annotation_path"}


def find_checkpoint(resume, save_dir):
    """--resume's value ("" where it was given without one) -> the last.pt to go on from.

    A path may be the file or its run's folder; without one the newest run in save_dir is taken.
    """
    if resume:
        path = Path(resume)
        path = path / "last.pt" if path.is_dir() else path
    else:
        found = sorted(Path(save_dir).glob("*/last.pt"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise UserError(f"no run in {save_dir} has a last.pt to go on from: give its path, or leave out --resume")
        path = found[-1]
    return path


def read_checkpoint(path):
    state = checkpoint.read(path, "give the last.pt of a run")
    if not isinstance(state, dict) or "rows" not in state:
        raise UserError(f"{path} holds weights, not the state of a run: use --model-path to start from them")
    return state


def check_settings(saved, now, force):
    """Raises UserError where a setting that changes the result differs from the checkpoint's, unless `force`."""
    changed = [f"{name} was {saved[name]}, is {now[name]}" for name in saved
               if name not in FREE and name in now and saved[name] != now[name]]
    if changed:
        message = "the resumed run differs: " + "; ".join(changed)
        if not force:
            raise UserError(message + " (--force goes on all the same)")
        print(message)


def save_checkpoint(training, run, settings, data):
    """Write last.pt. Every process has to call it; rank 0 writes. data: what identifies the training pictures."""
    sums = epoch_totals(training)
    random_states = distributed.gather(get_random_state(training.device))
    if distributed.is_main():
        checkpoint.save({
            "model": training.net.state_dict(),
            "maps": training.objective.maps.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "scaler": training.scaler.state_dict(),
            "average": training.average.state_dict() if training.average else None,
            "step": training.step, "epoch": training.epoch, "batch": training.batch, "sums": sums,
            "random": random_states, "rows": run.rows, "settings": settings, "data": data,
        }, run.folder / "last.pt")


def restore(training, run, state, data, force):
    """Put a checkpoint's state into a new Training and Run, and say where it goes on.

    Raises UserError where the training pictures are others, unless `force`.
    """
    if state["data"] != data and not force:
        raise UserError(f"the annotation file is not the one of {run.folder} (--force goes on all the same)")
    training.net.load_state_dict(state["model"])
    training.objective.maps.load_state_dict(state["maps"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state["scaler"])
    if training.average and state["average"]:
        training.average.load_state_dict(state["average"])
    training.step, training.epoch, training.batch = state["step"], state["epoch"], state["batch"]
    training.sums = dict(state["sums"]) if distributed.is_main() else {}
    run.rows = state["rows"]
    print(f"going on after step {training.step}, in epoch {training.epoch + 1}")
    before, now = len(state["random"]), distributed.world_size()
    if before == now:
        set_random_state(state["random"][distributed.rank()], training.device)
    else:
        print(f"the run had {before} processes and has {now} now: the order of the pictures and flips are the same, "
              "but dropout, BatchNorm's statistics and the order of summation are not, so it is not bit-exact")


def get_random_state(device):
    """Every generator of this process, as plain types and tensors."""
    numpy = np.random.get_state()
    return {"python": random.getstate(), "numpy": [numpy[0], numpy[1].tolist(), *numpy[2:]],
            "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_random_state(state, device):
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state((state["numpy"][0], np.array(state["numpy"][1], np.uint32), *state["numpy"][2:]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
