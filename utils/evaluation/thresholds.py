"""The thresholds measured for a weight file, in a JSON file beside it: eval_LFW.py writes them, arcface.py uses them.

    model_data/x.pth   model_data/x.json   {"thresholds": {"best accuracy": 1.167, "FAR 0.01": ..., "FAR 0.001": ...},
                                            "weights_sha256": ..., and how they were measured}
"""
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

from utils.evaluation.metrics import verification
from utils.machine.download import hash_file
from utils.machine.errors import UserError
from utils.machine.files import write_text

FARS = (0.01, 0.001)
OPERATING_POINTS = {"best-accuracy": "best accuracy"} | {f"far-{far:g}": f"FAR {far:g}" for far in FARS}
DEFAULT_THRESHOLD = 1.167  # for weights without a measurement: best accuracy of the published MobileFaceNet on LFW
BY_DEFAULT = "by default, not measured for these weights"
REMEDY = "`python eval_LFW.py --save-threshold` measures them"


class Threshold(NamedTuple):
    value: float      # on the L2 distance
    meaning: str      # what to read after it: "= best accuracy on LFW"
    note: str | None  # why the file beside the weights is not used, in one line


def measure_thresholds(distances, genuine, folds):
    """Distances (N,) and genuine flags (N,), in the order of the folds -> {operating point: threshold}.

    Each is the mean over folds of the threshold chosen on the other folds, as eval_LFW.py prints it
    (utils/evaluation/metrics.py says how it is chosen).
    """
    at_far = {far: verification(distances, genuine, folds, far) for far in FARS}
    return {"best accuracy": at_far[FARS[0]].threshold} | {
        f"FAR {far:g}": figures.far_threshold for far, figures in at_far.items()}


def thresholds_path(weights_path):
    return Path(weights_path).with_suffix(".json")


def save_thresholds(weights_path, record):
    """Write `record` (thresholds, and how they were measured) beside the weights. -> the path of the file.

    Other keys of a file that is there already are kept. Raises UserError where it is no JSON object.
    """
    path = thresholds_path(weights_path)
    kept = read_object(path)
    record = {"weights_sha256": hash_file(weights_path)} | record | {"date": time.strftime("%Y-%m-%d")}
    write_text(path, json.dumps(kept | record, indent=2, ensure_ascii=False) + "\n")
    return path


def choose_threshold(weights_path, operating_point="best-accuracy", given=None):
    """-> Threshold: the `given` one, else the one measured for these weights, else a default that says that it is one.

    Raises UserError for an unknown operating point, and where another than best-accuracy was not measured.
    """
    if operating_point not in OPERATING_POINTS:
        raise UserError(f"operating point {operating_point}: choose among {', '.join(OPERATING_POINTS)}")
    if given is not None:
        return Threshold(float(given), "on the distance", None)
    try:
        measured, benchmark = read_thresholds(weights_path)
        note = None
    except UserError as error:
        measured, note = {}, f"{error}: {REMEDY}"
    name = OPERATING_POINTS[operating_point]
    if name in measured:
        return Threshold(measured[name], f"= {name} on {benchmark}", None)
    if operating_point != "best-accuracy":
        raise UserError(note or f"no threshold at {name} is known for {weights_path}: {REMEDY}")
    return Threshold(DEFAULT_THRESHOLD, BY_DEFAULT, note)


def read_thresholds(weights_path):
    """-> ({operating point: threshold}, name of the benchmark); ({}, "") where none were measured.

    Raises UserError where the file beside the weights cannot be used.
    """
    path = thresholds_path(weights_path)
    record = read_object(path)
    if "thresholds" not in record:
        return {}, ""
    thresholds = record["thresholds"]
    if not isinstance(thresholds, dict) or not all(
            type(value) in (int, float) and math.isfinite(value) for value in thresholds.values()):
        raise UserError(f"the thresholds in {path} are not used, they are no numbers")
    if record.get("weights_sha256") != hash_file(weights_path):
        raise UserError(f"the thresholds in {path} are not used, they are of other weights (the SHA-256 differs)")
    if record.get("aligned") is False:
        raise UserError(f"the thresholds in {path} are not used, they were measured on pictures that are not aligned")
    if record.get("flip"):
        raise UserError(f"the thresholds in {path} are not used, they were measured with --flip")
    return thresholds, record.get("benchmark", "LFW")


def read_object(path):
    """A JSON object as a dict; {} where there is no file. Raises UserError for a file of another kind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} does not read as JSON ({error}), mend or remove it") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object, mend or remove it")
    return found
