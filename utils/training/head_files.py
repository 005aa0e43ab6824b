"""The head's part of a run's state where its classes are divided over processes: a file for each, beside last.pt.

`head-<step>-<rank>of<processes>.pt` holds {name: (rows, D)}: the weight, its average and what the optimizer remembers.
Another number of processes divides the same rows anew, of which each reads its own from the disk and no others.
"""
import torch
import torch.distributed as dist

from utils.common import distributed
from utils.common.errors import UserError
from utils.weights import checkpoint

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


def write(rows, step, folder):
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


def read(step, processes, folder, first, last):
    """-> {name: rows first..last}, of what that many processes wrote at that step."""
    parts, begin = [], 0
    for rank in range(processes):
        path = folder / name_of(step, rank, processes)
        rows = checkpoint.read(path, "it belongs to the last.pt beside it, put it there too", mmap=True)
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
