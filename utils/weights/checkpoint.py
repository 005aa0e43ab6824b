"""Weight files (bare state dicts, the published format) and training checkpoints: read and written safely."""
import functools
import re
import warnings
import zipfile
from pathlib import Path

import torch

from nets.arcface import BACKBONES, ArcfaceNet
from utils.common.errors import UserError, first_line
from utils.common.files import atomic_write, hash_file, locate
from utils.evaluation.thresholds import read_record, thresholds_path
from utils.weights.onnx_model import OnnxModel

# A flip of the highest exponent bit turns nearly every float32 below 1 into one above 1e9. The published networks hold
# nothing above 50, and weights above 1e9 are those of a run that diverges.
LARGEST = 1e9
AGAIN = "copy or download it again"
# Keys under which other programs store a state dict (the last one is insightface's). Prefixes that are removed: of
# DistributedDataParallel, of a network around the backbone, and of torch.compile, which may also be inside a name.
WRAPPERS = ("state_dict", "model", "net", "state_dict_backbone")
PREFIXES = re.compile(r"^((module|backbone|_orig_mod)\.)+|(?<=\.)_orig_mod\.")


class InvalidWeights(UserError):
    """Weights or statistics that are not finite, or above LARGEST."""


def save(content, path):
    """Write a state dict, or a checkpoint of plain types and tensors, with all tensors on the CPU.

    Equal weights make equal files. Raises InvalidWeights for values that no network has, and UserError if the file
    cannot be written.
    """
    content = map_tensors(content, torch.Tensor.cpu)
    if name := find_invalid(content):
        raise InvalidWeights(f"{name} holds values that are not finite or huge, {path} is not written")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:  # torch keeps a path's name in the file
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer raises this on a full disk
            raise OSError(f"is the disk full? {first_line(error)}") from error


def map_tensors(content, convert):
    """Return a copy of nested dicts and lists in which every tensor is convert(tensor)."""
    if isinstance(content, dict):
        return {key: map_tensors(value, convert) for key, value in content.items()}
    if isinstance(content, list):
        return [map_tensors(value, convert) for value in content]
    return convert(content) if isinstance(content, torch.Tensor) else content


def find_invalid(content, name=""):
    """Return the dotted name of a tensor in nested dicts and lists that holds NaN or values above LARGEST, or None."""
    if isinstance(content, dict | list | tuple):
        parts = content.items() if isinstance(content, dict) else enumerate(content)
        found = (find_invalid(value, f"{name}.{key}" if name else str(key)) for key, value in parts)
        return next(filter(None, found), None)
    if isinstance(content, torch.Tensor) and content.is_floating_point() and content.numel():
        lowest, highest = content.aminmax()  # both NaN if one value is
        return None if max(-lowest, highest) <= LARGEST else name
    return None


def load(path, remedy="give the path of a .pth file", mmap=False):
    """Return what `save` wrote, on the CPU. Nothing in the file is executed.

    mmap: leave the tensors on the disk until they are read; copy those that are kept.
    Raises UserError if the file does not load, or does not fit its checksums.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: {remedy}")
    check_checksums(path)
    try:
        if Path(path).suffix.lower() == ".safetensors":
            import safetensors.torch
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to load a plain pickle unsafely
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs the package {error.name}: pip install safetensors") from None
    except Exception as error:  # a damaged file may raise almost anything, IndexError and struct.error among it
        raise UserError(f"{path} is not a file of weights ({first_line(error)}): {remedy}") from None


def check_checksums(path):
    """Check the CRC-32 of each part of a file that torch.save wrote; torch.load does not. 1 GB takes 2 s.

    A file in the format before PyTorch 1.6 has none: it is compared with the SHA-256 in the .json beside it, if there
    is one. Raises UserError for a damaged file.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # as torch.load decides
    if not is_zip:
        record = thresholds_path(path)
        if read_record(record).get("weights_sha256") not in (None, hash_file(path)):
            raise UserError(f"{path} is damaged, or not the file that {record} is about (the SHA-256 differs): "
                            f"{AGAIN}, or remove {record.name} if it is another one")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory of the archive may raise almost anything
        damaged = first_line(error)
    if damaged:
        raise UserError(f"{path} is damaged or cut short ({damaged}): {AGAIN}")


def read_weights(path, remedy="give the path of a .pth file"):
    """Return a state dict in float32, with the names of this repository; those of other programs are translated.

    Raises UserError for a damaged file, and if the file holds something else.
    """
    content = load(path, remedy)
    if isinstance(content, dict) and "model" in content and "settings" in content:
        raise UserError(f"{path} is a training checkpoint, not weights: use the best.pth beside it")
    state = unwrap(content)
    if state is None:
        raise UserError(f"{path} holds no state dict: {remedy}")
    if name := find_invalid(state):
        raise InvalidWeights(f"{path} is damaged or of a run that diverged ({name} holds values that are not finite or "
                             f"huge): {AGAIN}, or take an earlier epoch's")
    return state


def unwrap(content):
    """Return the state dict that a file's content is or holds, translated to this repository's names, or None."""
    while isinstance(content, dict) and (wrappers := [key for key in WRAPPERS if isinstance(content.get(key), dict)]):
        content = content[wrappers[0]]
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        return None
    state = {PREFIXES.sub("", name): value for name, value in content.items()}
    if not any(name.startswith("arcface.") for name in state):
        state = {name if name.startswith("head.") else f"arcface.{name}": value for name, value in state.items()}
    if "arcface.layers.0.layers.0.weight" in state:
        state = rename_layers(state)
    return {name: value.detach().to(torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
            for name, value in state.items()}


def rename_layers(state):
    """Return insightface's MobileFaceNet (scale 1) with our names: the same layers, in the same order."""
    expected = expected_state("mobilefacenet")
    if [value.numel() for value in state.values()] != [value.numel() for value in expected.values()]:
        return state
    return {name: value.reshape(expected[name].shape) for name, value in zip(expected, state.values())}


def find_weights(path):
    """Return the weight file that `path` means: itself, or the best.pth of a run's folder."""
    path = locate(path)
    return path / "best.pth" if path.is_dir() else path


def load_embedder(path, backbone=None):
    """Return the ArcfaceNet of a weight file, without a head and in eval mode, or the OnnxModel of an .onnx file.

    backbone: None infers it from the file. Raises UserError if the file does not fit the backbone exactly.
    """
    if Path(path).suffix.lower() == ".onnx":
        if backbone:
            raise UserError(f"{path} is an ONNX file, which needs no backbone: leave out --backbone")
        return OnnxModel(path)
    state = {name: value for name, value in read_weights(path).items() if not name.startswith("head.")}
    try:
        net = ArcfaceNet(backbone=backbone or infer_backbone(state))
    except ValueError as error:
        raise UserError(str(error)) from None
    load_strictly(net, state, path)
    net.path = path  # for messages
    return net.eval()


def load_for_training(net, path):
    """Load a weight file into a network with a head. Return one sentence on what happened to the head.

    The backbone must fit exactly; a head for another number of classes is left as it was initialized.
    """
    state = read_weights(path)
    classes, found = net.head.classes, state.pop("head.weight", None)
    if found is not None and len(found) == classes:
        state["head.weight"] = found[slice(*net.head.shard.bounds(classes))]
    head = {name: value for name, value in net.state_dict().items() if name.startswith("head.")}
    usable = {name: state[name] for name in head if name in state and state[name].shape == head[name].shape}
    backbone = {name: value for name, value in state.items() if not name.startswith("head.")}
    load_strictly(net, backbone | head | usable, path)
    if "head.weight" in usable:
        return f"loaded backbone and head from {path}"
    why = "the file has none" if found is None else f"the file's is for {len(found)} classes, this one for {classes}"
    return f"loaded the backbone from {path}; the head starts from random weights ({why})"


def load_pretrained_backbone(net, path):
    """Load the backbone's entries of a file that may lack some, such as ImageNet weights without embedding layers.

    Return one sentence on what stays random.
    """
    state = read_weights(path, "put the backbone's weights there, or leave out --pretrained")
    expected = net.state_dict()
    usable = {name: value for name, value in state.items() if name in expected and name.startswith("arcface.")}
    if not usable:
        raise UserError(f"{path} holds nothing of {net.backbone}: give weights with its names")
    load_strictly(net, expected | usable, path)
    missing = [name for name in net.arcface.state_dict() if f"arcface.{name}" not in usable]
    return f"loaded {len(usable)} backbone entries from {path}; random: {', '.join(missing) or 'none'}"


def load_strictly(net, state, path):
    """Load a state dict. Raises UserError, with the differences and a matching backbone, unless it fits exactly."""
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        found, differences = infer_backbone(state), " ".join(str(error).split())
        remedy = f" The file is of {found}: use --backbone {found}" if found != net.backbone else ""
        raise UserError(f"{path} does not fit backbone {net.backbone}: {differences}{remedy}") from None


def infer_backbone(state):
    """Return the backbone whose names and shapes are nearest to those of a state dict."""
    def shapes(state):
        return {(name, value.shape) for name, value in state.items() if name.startswith("arcface.")}
    return min(BACKBONES, key=lambda backbone: len(shapes(state) ^ shapes(expected_state(backbone))))


@functools.cache
def expected_state(backbone):
    """Return the state dict of a backbone on the meta device: names and shapes without values."""
    with torch.device("meta"):
        return ArcfaceNet(backbone=backbone).state_dict()
