"""last.pt: all of a run's state, and how a run goes on from it."""
import copy
import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from utils.common import distributed
from utils.common.errors import UserError
from utils.training.engine import Diverged, new_sums
from utils.weights import checkpoint
from utils.weights.checkpoint import InvalidWeights, find_invalid

OF_ONE_START = {"resume", "force"}  # what is said of this start alone, and not kept
# Settings that may differ when a run goes on: they change where and how it runs, not what it computes.
FREE = {"num_workers", "device", "save_dir", "save_period", "checkpoint_every", "annotation_path",
        "datasets_path", "rec", "unlabeled", "shard_head", "save_head"}
# Settings that what is saved is made for.
FIXED = {"backbone", "optimizer_type", "batch_size", "accumulate"}
# What last.pt holds.
KINDS = {"model": dict, "maps": dict, "optimizer": dict, "scaler": dict, "average": dict | None, "step": int,
         "epoch": int, "batch": int, "sums": list, "random": list, "rows": list, "settings": dict, "data": str}


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
    """-> what save_checkpoint wrote. Raises UserError for a file that is damaged or holds something else."""
    state = checkpoint.load(path, "give the last.pt of a run", mmap=True)
    if not isinstance(state, dict) or "rows" not in state:
        raise UserError(f"{path} holds weights, not the state of a run: use --model-path to start from them")
    wrong = [name for name, kind in KINDS.items() if not isinstance(state.get(name), kind)]
    if wrong:
        raise UserError(f"{path} is not the state of a run of this program ({', '.join(wrong)} missing or of another "
                        "kind): start a new run, from its best.pth with --model-path")
    if name := find_invalid(state):
        raise UserError(f"{path} is not a good state to go on from ({name} holds values that are not finite or huge): "
                        "start a new run, from an earlier epoch's weights with --model-path")
    return state


def what_is_left(run, step):
    """What can be gone on from after `step` has diverged, in words."""
    path = run.folder / "last.pt"
    if not path.is_file():
        return "no state was saved yet (--checkpoint-every)"
    if read_checkpoint(path)["step"] == step:
        return "last.pt holds the state that it diverges from: start a new run, from an earlier epoch's weights"
    return "last.pt holds the last good state"


def check_settings(saved, now, force):
    """Raises UserError where a setting that changes the result differs from the checkpoint's, unless `force`."""
    changed = {name: f"{name} was {saved[name]}, is {now[name]}" for name in saved
               if name not in FREE | OF_ONE_START and name in now and saved[name] != now[name]}
    if changed:
        message = "the resumed run differs: " + "; ".join(changed.values())
        fixed = ", ".join(name for name in changed if name in FIXED)
        if fixed:
            raise UserError(f"{message} (its state does not fit another {fixed}: start a new run, from its best.pth "
                            "with --model-path)")
        if not force:
            raise UserError(message + " (--force goes on all the same)")
        print(message)


def save_checkpoint(training, run, settings, data_sha256):
    """Write last.pt. Every process has to call it; rank 0 writes. data_sha256: of the TrainingSet.

    Raises Diverged for a state with values that are not finite or huge; last.pt stays as it was.
    """
    sums = distributed.gather(training.sums)
    random_states = distributed.gather(get_random_state(training.device))
    kept = {name: value for name, value in settings.items() if name not in OF_ONE_START}
    model, optimizer = training.net.state_dict(), training.optimizer.state_dict()
    average = training.average.state_dict() if training.average else None
    head = training.net.head
    state = {
        "model": model, "maps": training.objective.maps.state_dict(), "optimizer": optimizer,
        "scaler": training.scale.state_dict(), "average": average, "shards": head.shard.processes,
        "people": head.classes, "step": training.step, "epoch": training.epoch, "batch": training.batch, "sums": sums,
        "random": random_states, "rows": run.rows, "settings": kept, "data": data_sha256,
    }
    try:
        if head.shard.processes > 1:
            write_rows(split_state(training, model, optimizer, average), training.step, run.folder)
        if distributed.is_main():
            checkpoint.save(state, run.folder / "last.pt")
            remove_others(training.step, head.shard.processes, run.folder)
    except InvalidWeights as error:
        raise Diverged(str(error), {"step": training.step, "epoch": training.epoch + 1,
                                    "lr": training.learning_rate(max(0, training.step - 1))}) from None


def restore(training, run, state, data_sha256, force):
    """Put a checkpoint's state into a new Training and Run, and say where it goes on.

    Raises UserError where the training pictures are others, unless `force`, and where the state is not of this network.
    """
    if state["data"] != data_sha256:
        message = f"the training pictures are not those of {run.folder}"
        people = training.net.head.classes
        known = state["people"] if "people" in state else len(state["model"]["head.weight"])
        if people != known:
            raise UserError(f"{message}: {people} people instead of {known} (start a new run from its best.pth with "
                            "--model-path)")
        if not force:
            raise UserError(f"{message} (--force goes on all the same)")
        print(message)
    try:
        restore_head(training, run, state)
        training.net.load_state_dict(state["model"])
        training.objective.maps.load_state_dict(state["maps"])
        restore_optimizer(training.optimizer, copy.deepcopy(state["optimizer"]))  # else it would stay on the disk
        training.scale.load_state_dict(state["scaler"])
        if training.average and state["average"]:
            training.average.load_state_dict(state["average"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{run.folder / 'last.pt'} does not fit what is to be trained ({reason}): start a new run, "
                        "from its best.pth with --model-path") from None
    training.step, training.epoch, training.batch = state["step"], state["epoch"], state["batch"]
    run.rows = state["rows"]
    print(f"going on after step {training.step}, in epoch {training.epoch + 1}")
    before, now = len(state["random"]), distributed.world_size()
    # In the order of new_sums(); a run begun before there were pictures without labels has no count of those with.
    state["sums"] = [sums and {name: sums.get(name, sums["images"]) for name in new_sums()} for sums in state["sums"]]
    if before == now:
        training.sums = state["sums"][distributed.rank()]
        set_random_state(state["random"][distributed.rank()], training.device)
    else:
        if distributed.is_main():
            training.sums = {name: sum(of_one[name] for of_one in state["sums"]) for name in state["sums"][0]}
            for name in training.sums.keys() & {"seconds", "waiting"}:  # which epoch_totals divides by the processes
                training.sums[name] *= now / before
        print(f"the run had {before} processes and has {now} now: the order of the pictures and flips are the same, "
              "but dropout, BatchNorm's statistics and the order of summation are not, so it is not bit-exact")


def restore_head(training, run, state):
    """Put into the state dicts the rows of the head that this process has now, however they were divided before."""
    head, dicts = training.net.head, (state["model"], state["optimizer"], state["average"])
    first, last = head.shard.bounds(head.classes)
    if state.get("shards", 1) > 1:
        rows = read_rows(state["step"], state["shards"], run.folder, first, last)
    elif head.shard.processes > 1:
        rows = {name: value[first:last] for name, value in split_state(training, *dicts).items()}
    else:
        return
    join_state(training, rows, *dicts)


def restore_optimizer(optimizer, state):
    """Load what it has gathered, but keep the settings of this start, which --force may have changed."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, now in zip(optimizer.param_groups, settings):
        group.update(now)


def get_random_state(device):
    """Every generator of this process, as plain types and tensors."""
    numpy = np.random.get_state()
    return {"python": random.getstate(), "numpy": [numpy[0], numpy[1].tolist(), *numpy[2:]],
            "torch": torch.get_rng_state(),
            "cuda": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()}  # or of "mps"


def set_random_state(state, device):
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state((state["numpy"][0], np.array(state["numpy"][1], np.uint32), *state["numpy"][2:]))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and state["cuda"] is not None:
        torch.get_device_module(device).set_rng_state(state["cuda"])


WEIGHT = "head.weight"


def split_state(training, model, optimizer, average):
    """Take the head's rows out of the three state dicts, in place. -> {name: rows}.

    average: None where there is none.
    """
    rows = {"weight": model.pop(WEIGHT)}
    if average:
        rows["average"] = average.pop(f"module.{WEIGHT}")
    number = head_number(training)
    remembered = optimizer["state"][number] = dict(optimizer["state"].get(number, {}))  # that dict is the optimizer's
    for name in [name for name, value in remembered.items() if torch.is_tensor(value) and value.ndim == 2]:
        rows[f"optimizer.{name}"] = remembered.pop(name)
    return rows


def join_state(training, rows, model, optimizer, average):
    """What split_state took goes back."""
    rows = dict(rows)
    model[WEIGHT] = rows.pop("weight")
    if "average" in rows:
        kept = rows.pop("average")
        if average:
            average[f"module.{WEIGHT}"] = kept
    for name, value in rows.items():
        optimizer["state"].setdefault(head_number(training), {})[name.removeprefix("optimizer.")] = value


def head_number(training):
    """The number of the head's weight in the optimizer's state dict."""
    parameters = [one for group in training.optimizer.param_groups for one in group["params"]]
    return next(number for number, one in enumerate(parameters) if one is training.net.head.weight)


def name_of(step, rank, processes):
    return f"head-{step}-{rank}of{processes}.pt"


def write_rows(rows, step, folder):
    """Every process writes its own; all are on the disk when this returns. Raises as checkpoint.save does, in all."""
    fault = None
    try:
        checkpoint.save(rows, folder / name_of(step, distributed.rank(), distributed.world_size()))
    except UserError as error:
        fault = error
    # An exchange: it also keeps rank 0 from writing last.pt, which names these files, before they are there.
    fault = next(filter(None, distributed.gather(fault)), None)
    if fault:
        raise fault


def remove_others(step, processes, folder):
    """Remove the files that last.pt no longer means: those of other steps and of other numbers of processes."""
    current = {name_of(step, rank, processes) for rank in range(processes)} if processes > 1 else ()
    for path in folder.glob("head-*of*.pt"):
        if path.name not in current:
            path.unlink(missing_ok=True)


def read_rows(step, processes, folder, first, last):
    """-> {name: rows first..last}, of what that many processes wrote at that step."""
    parts, begin = [], 0
    for rank in range(processes):
        path = folder / name_of(step, rank, processes)
        rows = checkpoint.load(path, "it belongs to the last.pt beside it, put it there too", mmap=True)
        end = begin + len(rows["weight"])
        if (first < end and begin < last) or rank == 0:
            parts.append({name: value[max(0, first - begin):max(0, last - begin)] for name, value in rows.items()})
        begin = end
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def whole_weight(head):
    """-> the (C, D) weight on rank 0's CPU, gathered part by part; None in the other processes."""
    shard, weight = head.shard, head.weight.detach()
    if shard.processes == 1:
        return weight
    if shard.rank:
        dist.send(weight.contiguous(), 0)
        return None
    parts = [weight.cpu()]
    for rank in range(1, shard.processes):
        first, last = shard._replace(rank=rank).bounds(head.classes)
        part = weight.new_empty(last - first, weight.shape[1])
        dist.recv(part, rank)
        parts.append(part.cpu())
    return torch.cat(parts)
