"""The thresholds measured for a weight file, in a JSON file beside it: eval_LFW.py writes them, arcface.py uses them.

    model_data/x.pth   model_data/x.json   {"thresholds": {"best accuracy": 1.167, "FAR 0.01": ..., "FAR 0.001": ...},
                                            "impostors": {"pairs": ..., "measured": {"0.1": 1.279, ...}, ...},
                                            "weights_sha256": ..., and how they were measured}

Two pictures are judged by an operating point, a gallery by the distances that impostors come to in so many pictures
(the impostor curve, at the end of this file).
"""
import json
import math
import time
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from utils.common.errors import UserError
from utils.common.files import hash_file, write_text
from utils.evaluation.metrics import can_measure_far, fold_of_pairs, verification_metrics

OPERATING_FARS = (0.01, 0.001)
OPERATING_POINTS = {"best-accuracy": "best accuracy"} | {f"far-{far:g}": f"FAR {far:g}" for far in OPERATING_FARS}
SURE = "FAR 0.001"         # one person by best accuracy and not by this one: not sure
DEFAULT_THRESHOLD = 1.167  # for weights without a measurement: best accuracy of the published MobileFaceNet on LFW
DEFAULT_IMPOSTORS = {      # and its impostor curve there
    0.1: 1.27940, 0.01: 1.16093, 0.001: 1.06511, 1e-4: 0.98220, 1e-5: 0.90947, 1e-6: 0.84265}
BY_DEFAULT = "by default, not measured for these weights"
REMEDY = "`python eval_LFW.py --save-threshold` measures them"
WORDS = {"same": "same person", "not sure": "not sure", "different": "different people"}

# Of a gallery: the share of strangers who may be named, if no operating point says another; up to ten times that one
# the verdict is "not sure".
STRANGERS = 0.01
UNSURE = 10

# The impostor curve
CURVE_FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
BINS = 100_000            # to each unit of distance, of which there are two: far finer than any FAR is known
COSINES_AT_ONCE = 2_000_000         # cosines at once: 40 MB with what is made of them
MIN_PAIRS = 100         # below, there is no tail to extrapolate
HOW = ("beyond the pairs the cosine is a straight line over the normal quantile of the FAR, fitted from FAR 0.3 to "
       "that of the ten nearest pairs")


class Threshold(NamedTuple):
    value: float                 # on the L2 distance
    meaning: str                 # what to read after it: "= best accuracy on LFW"
    note: str | None = None      # why the file beside the weights is not used, in one line
    unsure: tuple | None = None  # (from, to): the distances at which the verdict is "not sure"


def judge(distance, threshold, unsure=None):
    """-> "same", "not sure" or "different": a key of WORDS."""
    if unsure and unsure[0] <= distance < unsure[1]:
        return "not sure"
    return "same" if distance < threshold else "different"


def measure_thresholds(distances, genuine, folds):
    """Distances (N,) and genuine flags (N,), in the order of the folds -> {operating point: threshold}.

    Each is the mean over folds of the threshold chosen on the other folds, as eval_LFW.py prints it
    (utils/evaluation/metrics.py says how it is chosen). A FAR for which the other folds hold too few impostor pairs
    is left out.
    """
    thresholds = {"best accuracy": verification_metrics(distances, genuine, folds).threshold}
    genuine, fold_of = np.asarray(genuine, bool), fold_of_pairs(len(genuine), folds)
    for far in OPERATING_FARS:
        if all(can_measure_far(genuine[fold_of != fold], far) for fold in range(folds)):
            thresholds[f"FAR {far:g}"] = verification_metrics(distances, genuine, folds, far).far_threshold
    return thresholds


def thresholds_path(weights_path):
    return Path(weights_path).with_suffix(".json")


def save_thresholds(weights_path, record):
    """Write `record` (thresholds, and how they were measured) beside the weights. -> the path of the file.

    Other keys of a file that is there already are kept; those that are None in `record` go, as what was measured before
    is not of this measurement. Raises UserError where it is no JSON object.
    """
    path = thresholds_path(weights_path)
    written = {"weights_sha256": hash_file(weights_path)} | record | {"date": time.strftime("%Y-%m-%d")}
    written = {name: value for name, value in (read_object(path) | written).items() if value is not None}
    write_text(path, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return path


def choose_threshold(weights_path, operating_point=None, given=None):
    """For two pictures -> Threshold.

    The `given` one, else that of the operating point as measured for these weights. Where neither is asked for it is
    that of best accuracy, else a default that says that it is one, and between FAR 0.001 and best accuracy the verdict
    is "not sure". Raises UserError for an unknown operating point and for one that was not measured.
    """
    check_operating_point(operating_point)
    if given is not None:
        return Threshold(float(given), "on the distance")
    record, note = read_if_usable(weights_path)
    thresholds, name = record.get("thresholds", {}), OPERATING_POINTS[operating_point or "best-accuracy"]
    if name in thresholds:
        value, sure = thresholds[name], thresholds.get(SURE, math.inf)
        unsure = (sure, value) if operating_point is None and sure < value else None
        return Threshold(value, f"= {name} on {record.get('benchmark', 'LFW')}", None, unsure)
    if name != "best accuracy":
        raise UserError(note or f"{name} was not measured for {weights_path}: {REMEDY}, with as many impostor pairs as "
                                "that takes")
    return Threshold(DEFAULT_THRESHOLD, BY_DEFAULT, note)


def choose_gallery_threshold(weights_path, people, pictures, own_tail=(), operating_point=None, given=None):
    """For one picture against a gallery of so many people and pictures -> Threshold.

    The `given` one, else one at which at most 1% of strangers are named; far-0.01 and far-0.001 ask for that share. It
    is the distance at which an impostor pair has this share divided by the number of pictures as its FAR: a stranger
    is compared with every one of them (Boole's inequality). Of the distances by the weights' impostors and by the
    gallery's own people the lower one counts, for people may be more alike than those of LFW: of strangers like them
    the first alone named 30% to 44% in galleries of 20 to 100 children or Indian or Asian adults, both 0.4% to 4%.
    own_tail: utils/evaluation/gallery.py's, () for too few people. Raises UserError for another operating point.
    """
    check_operating_point(operating_point)
    if given is not None:
        return Threshold(float(given), "on the distance")
    if operating_point == "best-accuracy":
        raise UserError("operating point best-accuracy is for two pictures and would name most strangers: for a "
                        "gallery leave it out, choose far-0.01 or far-0.001, or give --threshold")
    aim = float(operating_point.removeprefix("far-")) if operating_point else STRANGERS
    record, note = read_if_usable(weights_path)
    curve, resolved, source = impostor_curve_of(record)
    fars = aim / pictures, UNSURE * aim / pictures
    value, unsure = (distance_at(curve, far) for far in fars)
    source += ", extrapolated" if fars[0] < resolved else ""
    if len(own_tail):
        own = [distance_on(own_tail, far) for far in fars]
        source = "by its own people, who are more alike" if own[0] < value else source
        value, unsure = min(value, own[0]), max(min(unsure, own[1]), min(value, own[0]))
    meaning = (f"for {count(people, 'person', 'people')}, {count(pictures, 'picture', 'pictures')}, so that at most "
               f"{100 * aim:g}% of strangers are named, {source}")
    return Threshold(value, meaning, note, (value, unsure) if operating_point is None else None)


def impostor_curve_of(record):
    """-> ({FAR: distance}, the lowest FAR that was measured, where they are from in words)."""
    if "impostors" not in record:
        return DEFAULT_IMPOSTORS, min(DEFAULT_IMPOSTORS), BY_DEFAULT
    measured, extrapolated = ({float(far): distance for far, distance in record["impostors"].get(kind, {}).items()}
                              for kind in ("measured", "extrapolated"))
    return measured | extrapolated, min(measured), f"by the impostor pairs of {record.get('benchmark', 'LFW')}"


def count(number, one, several):
    return f"{number} {one if number == 1 else several}"


def check_operating_point(name):
    if name is not None and name not in OPERATING_POINTS:
        raise UserError(f"operating point {name}: choose among {', '.join(OPERATING_POINTS)}")


def read_if_usable(weights_path):
    """-> (what was measured for these weights, None); ({}, why that is not used, in one line) where it cannot be."""
    try:
        return read_measured(weights_path), None
    except UserError as error:
        return {}, f"{error}: {REMEDY}"


def read_measured(weights_path):
    """-> what save_thresholds() wrote; {} where nothing was measured.

    Raises UserError where the file beside the weights cannot be used.
    """
    path = thresholds_path(weights_path)
    record = read_object(path)
    if "thresholds" not in record:
        return {}
    if not are_numbers(record["thresholds"]) or not ("impostors" not in record or is_curve(record["impostors"])):
        raise UserError(f"the thresholds in {path} are not used, they are no numbers")
    if record.get("weights_sha256") != hash_file(weights_path):
        raise UserError(f"the thresholds in {path} are not used, they are of other weights (the SHA-256 differs)")
    if record.get("aligned") is False:
        raise UserError(f"the thresholds in {path} are not used, they were measured on pictures that are not aligned")
    if record.get("flip"):
        raise UserError(f"the thresholds in {path} are not used, they were measured with --flip")
    return record


def are_numbers(values):
    """Whether this is a dict of finite numbers."""
    return isinstance(values, dict) and all(
        type(value) in (int, float) and math.isfinite(value) for value in values.values())


def is_curve(impostors):
    """Whether this is what impostor_curve() makes: distances that fall with the FAR."""
    try:
        parts = [impostors["measured"], impostors.get("extrapolated", {})]
        points = sorted((float(far), distance) for part in parts for far, distance in part.items())
    except (TypeError, ValueError, KeyError, AttributeError):
        return False
    if not all(map(are_numbers, parts)) or not parts[0] or len(points) < 2:
        return False
    fars, distances = zip(*points)
    return fars[0] > 0 and fars[-1] < 1 and all(np.diff(fars) > 0) and all(np.diff(distances) >= 0)


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


def count_distances(distances):
    """Distances (N,) -> how many of them lie in each bin, int64 (2 * BINS + 1,)."""
    return np.bincount((np.asarray(distances) * BINS).astype(np.int64), minlength=2 * BINS + 1)


def count_impostors(embeddings, people):
    """Embeddings (N, D) of length 1, whose they are (N) -> count_distances() of all pairs of two people.

    In memory that does not grow with the number of pairs.
    """
    _, person = np.unique(people, return_inverse=True)
    order = np.argsort(person, kind="stable")
    embeddings, person = np.asarray(embeddings, np.float32)[order], person[order]
    counts, rows = np.zeros(2 * BINS + 1, np.int64), max(1, COSINES_AT_ONCE // len(person))
    for start in range(0, len(person), rows):
        block = slice(start, start + rows)
        cosines = embeddings[block] @ embeddings[start:].T
        later = person[block, None] < person[start:]  # sorted by person, so that each pair comes once
        counts += count_distances(np.sqrt(np.maximum(0, 2 - 2 * cosines[later])))
    return counts


def impostor_curve(counts):
    """Counts of impostor distances -> a dict for the JSON file beside the weights; None for fewer than 100 pairs.

    Its "measured" and "extrapolated" hold {FAR: distance}: at most that share of the pairs is nearer.

    The tail, tried on samples of 3,000 of LFW's 29.6 million pairs, with the bundled and the published weights: at the
    distances extrapolated to 1e-4, 1e-5 and 1e-6 the true FAR was 0.97 to 1.3 times, 0.69 to 1.3 times and 0.68 to 1.3
    times that, on average. A normal distribution fitted to all cosines: 3 to 6 times; a generalised Pareto
    distribution fitted to the nearest tenth: 2 to 82 times.
    """
    pairs = int(counts.sum())
    if pairs < MIN_PAIRS:
        return None
    measured = {far: quantile(counts, far) for far in CURVE_FARS if far * pairs >= 1}
    tail = fit_tail(counts, pairs)
    beyond = {far: round(distance_on(tail, far), 5) for far in CURVE_FARS if far not in measured}
    return {"pairs": pairs, "measured": by_name(measured)} | (
        {"extrapolated": by_name(beyond), "how": HOW} if beyond else {})


def by_name(curve):
    return {f"{far:g}": distance for far, distance in curve.items()}


def quantile(counts, far):
    """The largest threshold, to a bin, that accepts at most floor(far * pairs) of the pairs counted."""
    allowed = math.floor(far * counts.sum() + 1e-9)
    return float(np.searchsorted(np.cumsum(counts), allowed, side="right") / BINS)


def fit_tail(counts, pairs):
    """Counts of impostor distances, of so many pairs of people -> (slope, start) of the cosine over deviate(FAR).

    It is fitted from FAR 0.3 to that of ten pairs, so that one person under two names does not tilt it.
    """
    fars = np.geomspace(0.3, 10 / pairs, 30)
    cosines = [1 - quantile(counts, far) ** 2 / 2 for far in fars]
    return np.polyfit([deviate(far) for far in fars], cosines, 1)


def distance_on(tail, far):
    slope, start = tail
    return distance_of(start + slope * deviate(far))


def deviate(far):
    """How many standard deviations a normal variable exceeds with probability `far`."""
    return -NormalDist().inv_cdf(far)


def distance_of(cosine):
    return math.sqrt(max(0.0, 2 - 2 * cosine))


def distance_at(curve, far):
    """{FAR: distance} of two or more FARs -> the distance at any FAR in (0, 1).

    Between two FARs, and beyond the last, the cosine is a straight line over the normal quantile of the FAR.
    """
    fars = sorted(curve, reverse=True)
    deviates = [deviate(known) for known in fars]
    place = int(np.clip(np.searchsorted(deviates, deviate(far)), 1, len(fars) - 1))
    (low, high), (near, beyond) = deviates[place - 1:place + 1], (curve[fars[place - 1]], curve[fars[place]])
    share = (deviate(far) - low) / (high - low)
    cosines = 1 - near ** 2 / 2, 1 - beyond ** 2 / 2
    return distance_of(cosines[0] + share * (cosines[1] - cosines[0]))
