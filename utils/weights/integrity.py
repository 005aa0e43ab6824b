"""Is a file of weights what was written? Its checksums, its recorded SHA-256, and values that no network has."""
import json
import zipfile

import torch

from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.evaluation.thresholds import thresholds_path

# A flip of the highest exponent bit makes of a float32 below 1 one above 1e9, if it was not below 3e-30. The published
# networks hold nothing above 50. Weights beyond it are those of a run that diverges, before they are infinite.
LARGEST = 1e9
AGAIN = "copy or download it again"


class Implausible(UserError):
    """Weights or statistics that are not finite, or beyond LARGEST. They are not written."""


def check_checksums(path):
    """Hold the content of a file that torch.save wrote against the CRC-32 of each of its parts.

    torch.load does not look at them, and one bit of a weight decides whether all faces look alike. 1 GB takes 2 s.
    A file in the format before PyTorch 1.6, a plain pickle, has none. Raises UserError for a damaged file.
    """
    if not has_checksums(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory of the archive may raise almost anything
        raise UserError(f"{path} is damaged or cut short ({first_line(error)}): {AGAIN}") from None
    if damaged:
        raise UserError(f"{path} is damaged ({damaged} does not fit its checksum): {AGAIN}")


def has_checksums(path):
    """Whether a file begins as a zip archive, which is how torch.load decides too."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_recorded_hash(path):
    """Hold a file without checksums against the SHA-256 in the .json beside it, where there is one.

    Raises UserError where it differs. A file with checksums may differ: it is whole, so it is another network, whose
    thresholds are not known (utils/evaluation/thresholds.py says so).
    """
    record = thresholds_path(path)
    try:
        expected = json.loads(record.read_text(encoding="utf-8-sig"))["weights_sha256"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return
    if not has_checksums(path) and expected != hash_file(path):
        raise UserError(f"{path} is damaged, or not the file that {record} is about (the SHA-256 differs): {AGAIN}, "
                        f"or remove {record.name} if it is another one")


def check_values(state, path):
    """Raises UserError for a float32 state dict with values that no trained network has: it names the tensor."""
    for name, value in state.items():
        if fault := fault_of(name, value):
            raise UserError(f"{path} is damaged or of a run that diverged ({name} {fault}): {AGAIN}, or take an "
                            "earlier epoch's")


def fault_of(name, value):
    """What keeps a tensor from being one of a network, in words, or None."""
    expected = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
    if value.dtype != expected or value.layout != torch.strided or value.device.type != "cpu":
        found = [str(kind).removeprefix("torch.") for kind in (value.dtype, value.layout, value.device.type)
                 if kind not in (torch.strided, "cpu")]
        return f"is {' '.join(found)}"
    if expected == torch.int64 or not value.numel():
        return None
    lowest, highest = bounds(value)
    if not max(-lowest, highest) <= LARGEST:
        return f"goes from {lowest:.3g} to {highest:.3g}"
    if name.endswith("running_var") and (lowest < 0 or highest == 0):
        return "is to hold variances, and " + (f"goes down to {lowest:.3g}" if lowest < 0 else "is all 0")
    return None


def bounds(value):
    """The least and the largest value of a tensor, both NaN where there is one."""
    return tuple(bound.item() for bound in value.aminmax())


def find_implausible(content, name=""):
    """-> the dotted name of a tensor in nested dicts and lists that holds NaN or values beyond LARGEST, or None."""
    if isinstance(content, torch.Tensor):
        if not content.is_floating_point() or not content.numel():
            return None
        lowest, highest = bounds(content)
        return None if max(-lowest, highest) <= LARGEST else name
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(
        content, list | tuple) else ()
    found = (find_implausible(value, f"{name}.{key}" if name else str(key)) for key, value in items)
    return next(filter(None, found), None)


def first_line(error):
    """What an exception says, in one line of 120 letters at most."""
    text = str(error).strip()
    return text.splitlines()[0][:120] if text else type(error).__name__
