"""Weight files (bare state dicts, the published format) and training checkpoints, read and written safely."""
import copy
import functools
import warnings
from pathlib import Path

import torch

from nets.arcface import BACKBONES, ArcfaceNet
from utils.common.errors import UserError
from utils.common.files import atomic_write, locate
from utils.weights.integrity import (
    Implausible,
    check_checksums,
    check_recorded_hash,
    check_values,
    find_implausible,
    first_line,
    has_checksums,
)
from utils.weights.wrapping import unwrap


def save(content, path):
    """Write a state dict or a checkpoint of plain types and tensors: all of it or nothing, and all on the CPU.

    Raises Implausible for values that no network has, and UserError where the file cannot be written.
    """
    content = on_cpu(content)
    if name := find_implausible(content):
        raise Implausible(f"{name} holds values that are not finite or huge, {path} is not written")
    with atomic_write(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch's writer raises on a full disk, without saying so
            raise OSError(f"is the disk full? {first_line(error)}") from error


def on_cpu(content):
    """Nested dicts and lists -> the same with every tensor on the CPU."""
    if isinstance(content, torch.Tensor):
        return content.cpu()
    if not isinstance(content, dict | list):
        return content
    moved = copy.copy(content)  # a state dict stays one
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        moved[key] = on_cpu(value)
    return moved


def read(path, remedy="give the path of a .pth file", mmap=False):
    """What `save` wrote, on the CPU. Nothing in the file is executed.

    mmap: leave the tensors on the disk until they are read; who keeps one has to copy it.

    Raises UserError where it does not load or does not fit its checksums.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: {remedy}")
    try:
        check_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to load a plain pickle unsafely
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and has_checksums(path))
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise almost anything, IndexError and struct.error among it
        raise UserError(f"{path} is not a file of weights ({first_line(error)}): {remedy}") from None


def read_weights(path, remedy="give the path of a .pth file"):
    """A state dict {name: tensor} of float32, and int64 for BatchNorm's counts, with the names of this repository.

    Other programs' files are made so, and that is printed (utils/weights/wrapping.py). Raises UserError for a
    damaged file (utils/weights/integrity.py) and where the file holds something else.
    """
    content = read(path, remedy)
    if isinstance(content, dict) and "model" in content and "settings" in content:
        raise UserError(f"{path} is a training checkpoint, not weights: use the best.pth beside it")
    check_recorded_hash(path)
    state, done = unwrap(content)
    if state is None:
        held = shorten(list(map(str, content))) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} is no state dict, it holds {held}: {remedy}")
    check_values(state, path)
    if done:
        print(f"{path}: {'; '.join(done)}")
    return state


def find_weights(path):
    """A weight file or the folder of a run, whose best.pth is meant -> the file. Raises UserError where it has none.

    One under model_data/ that the caller has not is the repository's (utils/common/files.py).
    """
    path = locate(path)
    if not path.is_dir():
        return path
    if not (path / "best.pth").is_file():
        raise UserError(f"{path} holds no best.pth: give a weight file, or the folder of a run that has ended an epoch")
    return path / "best.pth"


def load_embedder(path, backbone=None):
    """A weight file -> ArcfaceNet without a head, in eval mode. A head in the file is left out.

    backbone: None takes the one that the file is of. Raises UserError, which lists the differences, where the file is
    not of exactly this backbone, or of none.
    """
    state = {name: value for name, value in read_weights(path).items() if not name.startswith("head.")}
    try:
        net = ArcfaceNet(backbone=backbone or told_backbone(state, path))
    except ValueError as error:
        raise UserError(str(error)) from None
    load_exactly(net, state, path)
    return net.eval()


def load_for_training(net, path):
    """Load a weight file into a network with a head. -> one sentence on what happened to the head.

    The backbone must match exactly; the head is kept as it was made where the class count differs.
    """
    state = read_weights(path)
    classes, found = net.head.classes, state.get("head.weight")
    if found is not None and len(found) == classes:
        found = state["head.weight"] = found[slice(*net.head.shard.bounds(classes))]
    if found is not None and found.shape == net.head.weight.shape:
        load_exactly(net, state, path)
        return f"loaded backbone and head from {path}"
    backbone = {name: value for name, value in state.items() if not name.startswith("head.")}
    load_exactly(net, backbone | {"head.weight": net.head.weight.detach()}, path)
    why = "the file has none" if found is None else f"the file's is for {len(found)} classes, this one for {classes}"
    return f"loaded the backbone from {path}; the head is made anew ({why})"


def load_pretrained_backbone(net, path):
    """Load what `path` holds of the backbone, such as ImageNet weights without the embedding layers.

    -> one sentence on what stays random. Raises UserError for a missing file, a wrong shape or nothing in common.
    """
    found = read_weights(path, "put the backbone's weights there, or leave out --pretrained")
    found = {name.removeprefix("arcface."): value for name, value in found.items()}
    expected = net.arcface.state_dict()
    usable = {name: value for name, value in found.items() if name in expected}
    wrong = [name for name, value in usable.items() if value.shape != expected[name].shape]
    if wrong or not usable:
        raise UserError(f"{path} does not fit {net.backbone}: " + (differences(expected, found)))
    net.arcface.load_state_dict(usable, strict=False)
    absent = expected.keys() - usable.keys()
    return f"loaded {len(usable)} of {len(expected)} backbone entries from {path}" + (
        f"; random: {shorten(sorted(absent))}" if absent else "")


def load_exactly(net, state, path):
    expected = net.state_dict()
    found = differences(expected, state)
    if found:
        raise UserError(f"{path} does not fit backbone {net.backbone}: {found}{guess_backbone(state)}")
    net.load_state_dict(state)


def differences(expected, found):
    """What keeps the state dict `found` from being loaded as `expected`, in one line; "" where nothing does."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    wrong = [f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
             for name in expected if name in found and found[name].shape != expected[name].shape]
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    return "; ".join(f"{len(names)} {kind}: {shorten(names)}" for kind, names in lists.items() if names)


def shorten(names, limit=4):
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def guess_backbone(state):
    """The remedy for weights of another backbone: the one whose names they are, or ""."""
    backbone = backbone_of(state)
    return f". The file is of {backbone}: use --backbone {backbone}" if backbone else ""


def backbone_of(state):
    """The backbone whose names and shapes a state dict has, or None."""
    shapes = shapes_of({name: value for name, value in state.items() if name.startswith("arcface.")})
    return next((backbone for backbone in BACKBONES if shapes == shapes_of(expected_state(backbone))), None)


def shapes_of(state):
    return {name: value.shape for name, value in state.items()}


@functools.cache
def expected_state(backbone):
    """-> the state dict of a backbone, in names and shapes alone."""
    with torch.device("meta"):
        return ArcfaceNet(backbone=backbone).state_dict()


def told_backbone(state, path):
    """The backbone of a state dict. Raises UserError, which compares it with the most similar one, where it is none."""
    backbone = backbone_of(state)
    if backbone is None:
        found = shapes_of(state).items()
        nearest = max(BACKBONES, key=lambda name: len(found & shapes_of(expected_state(name)).items()))
        raise UserError(f"{path} is of none of the backbones {', '.join(BACKBONES)}; compared with {nearest}: "
                        f"{differences(expected_state(nearest), state)}")
    return backbone


def read_backbone_name(path):
    """The backbone that a weight file is of. Raises UserError where it is of none."""
    return told_backbone(read_weights(path), path)
