"""The thresholds of a weight file, in a JSON file beside it: eval_LFW.py writes them, arcface.py uses them.

    model_data/x.pth   model_data/x.json   {"thresholds": {"best accuracy": 1.167, "FAR 0.01": ..., "FAR 0.001": ...},
                                            "impostors": {"pairs": ..., "measured": {"0.1": 1.279, ...}, ...},
                                            "weights_sha256": ..., and how they were measured}

Two images are compared at an operating point, chosen on the pairs of a benchmark. A gallery compares a face with all
its images, so it needs a far lower false accept rate (FAR) per pair. Its threshold comes from the impostor curve: the
distance at each FAR over all pairs of two identities of the benchmark (29.6 million for LFW), extrapolated beyond.
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
from utils.evaluation.metrics import can_measure_far, verification_metrics

OPERATING_FARS = (0.01, 0.001)
OPERATING_POINTS = {"best-accuracy": "best accuracy"} | {f"far-{far:g}": f"FAR {far:g}" for far in OPERATING_FARS}
SURE = "FAR 0.001"         # a distance between this threshold and that of best accuracy is "not sure"
DEFAULT_THRESHOLD = 1.167  # of the published MobileFaceNet on LFW at best accuracy, for weights without a measurement
DEFAULT_CURVE = {          # and its impostor curve there
    0.1: 1.27940, 0.01: 1.16093, 0.001: 1.06511, 1e-4: 0.98220, 1e-5: 0.90947, 1e-6: 0.84265}
BY_DEFAULT = "by default, not measured for these weights"
WORDS = {"same": "same person", "not sure": "not sure", "different": "different people"}

GALLERY_FPIR = 0.01  # false positive identification rate: fraction of unknown identities that are falsely identified
UNSURE_FACTOR = 10   # a gallery's verdict is "not sure" up to this multiple of it

CURVE_FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
BINS = 100_000               # per unit of distance; distances are at most 2
COSINES_AT_ONCE = 2_000_000  # 40 MB with the temporary arrays
MIN_ACCEPTED = 20            # pairs: a FAR that accepts fewer is not measured


class Threshold(NamedTuple):
    value: float                 # on the L2 distance
    meaning: str                 # its origin, to print after it: "= best accuracy on LFW"
    unsure: tuple | None = None  # (from, to): the distances at which the verdict is "not sure"

    def verdict(self, distance):
        """Return a key of WORDS."""
        if self.unsure and self.unsure[0] <= distance < self.unsure[1]:
            return "not sure"
        return "same" if distance < self.value else "different"


class Thresholds:
    """The thresholds of a weight file for two images and for galleries.

    operating_point: a key of OPERATING_POINTS, or None for the default of each.
    given: a distance that replaces both, or None.
    `note` is one line on why the file beside the weights is not used, or None.
    Raises UserError for an unknown operating point, and ValueError for a distance outside 0 to 2.
    """

    def __init__(self, weights_path, operating_point=None, given=None):
        if operating_point not in (None, *OPERATING_POINTS):
            raise UserError(f"operating point {operating_point}: choose from {', '.join(OPERATING_POINTS)}")
        if given is not None and not 0 <= given <= 2:
            raise ValueError(f"threshold={given!r}: give an L2 distance from 0 to 2")
        self.weights_path, self.operating_point, self.given = weights_path, operating_point, given
        self.weights_sha256 = hash_file(weights_path)
        self.remedy = f"`python eval_LFW.py --model-path \"{weights_path}\" --save-threshold` measures them"
        path, self.record, self.note = thresholds_path(weights_path), {}, None
        try:
            record = read_record(path)
            if "thresholds" in record and record.get("weights_sha256") != self.weights_sha256:
                raise UserError(f"the thresholds in {path} are not used, they are of other weights "
                                "(the SHA-256 differs)")
            self.record = record
        except UserError as error:
            self.note = f"{error}: {self.remedy}"
        self.benchmark = self.record.get("benchmark", "LFW")

    def for_pair(self):
        """Return the Threshold for two images: by default that of best accuracy, "not sure" down to that of FAR 0.001.

        Raises UserError if the operating point was not measured for these weights.
        """
        if self.given is not None:
            return Threshold(float(self.given), "on the distance")
        measured, name = self.record.get("thresholds", {}), OPERATING_POINTS[self.operating_point or "best-accuracy"]
        if name in measured:
            value, sure = measured[name], measured.get(SURE, math.inf)
            unsure = (sure, value) if self.operating_point is None and sure < value else None
            return Threshold(value, f"= {name} on {self.benchmark}", unsure)
        if name != "best accuracy":
            raise UserError(self.note or f"{name} was not measured: {self.remedy}, if there are enough impostor pairs")
        return Threshold(DEFAULT_THRESHOLD, BY_DEFAULT)

    def for_gallery(self, images, tail=()):
        """Return the Threshold for one face against a gallery of so many images.

        tail: the gallery's own impostor tail, or () for a gallery of few identities.
        At most 1% of unknown identities are identified, with far-0.001 at most 0.1%. An unknown face is compared with
        every image, so the FAR of one comparison is this fraction divided by the number of images (Boole's inequality).
        The impostor curve of the weights and the tail of the gallery each give a distance for this FAR. The smaller one
        is used: the gallery's people may be more alike than those of LFW. Raises UserError for best-accuracy.
        """
        if self.given is not None:
            return Threshold(float(self.given), "on the distance")
        if self.operating_point == "best-accuracy":
            raise UserError("operating point best-accuracy is for two images and would identify most unknown "
                            "identities: for a gallery leave it out, choose far-0.01 or far-0.001, or set a threshold")
        fpir = float(self.operating_point.removeprefix("far-")) if self.operating_point else GALLERY_FPIR
        fars = fpir / images, UNSURE_FACTOR * fpir / images
        if "impostors" in self.record:
            curve, origin = self.record["impostors"]["measured"], f"by the impostor pairs of {self.benchmark}"
        else:
            curve, origin = DEFAULT_CURVE, BY_DEFAULT
        curve = {float(far): distance for far, distance in curve.items()}
        if fars[0] < min(curve):
            origin += ", extrapolated"
        value, unsure = (curve_distance(curve, far) for far in fars)
        if len(tail):
            own_value, own_unsure = (line_distance(tail, far) for far in fars)
            if own_value < value:
                value, origin = own_value, "by its own people, who are more alike"
            unsure = max(value, min(unsure, own_unsure))
        meaning = f"for a gallery of {images}: at most {100 * fpir:g}% of unknown identities are identified, {origin}"
        return Threshold(value, meaning, (value, unsure) if self.operating_point is None else None)


def thresholds_path(weights_path):
    """Return x.json for x.pth, and x.onnx.json for x.onnx, which may be an export of x.pth."""
    path = Path(weights_path)
    return path.with_suffix(".json") if path.suffix == ".pth" else path.with_name(path.name + ".json")


def read_record(path):
    """Return a JSON object as a dict, {} if there is no file. Raises UserError for another kind of file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a JSON object ({error}), fix or remove it") from None


def save_thresholds(weights_path, record, weights_sha256=None):
    """Write `record`, the thresholds and how they were measured, beside the weights and return the file's path.

    Other keys of an existing file stay; keys that are None are removed. Raises UserError if it is not a JSON object.
    """
    path = thresholds_path(weights_path)
    written = read_record(path) | {"date": time.strftime("%Y-%m-%d")} | record
    written["weights_sha256"] = weights_sha256 or hash_file(weights_path)
    written = {name: value for name, value in written.items() if value is not None}
    write_text(path, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return path


def measure_thresholds(distances, genuine, folds):
    """Return {operating point: threshold} of distances (N,) and genuine flags (N,), in the order of the folds.

    Each is the mean over folds of the threshold chosen on the other folds (utils/evaluation/metrics.py). A FAR is left
    out if the other folds hold too few impostor pairs for it.
    """
    thresholds = {"best accuracy": verification_metrics(distances, genuine, folds).threshold}
    for far in OPERATING_FARS:
        if can_measure_far(genuine, folds, far):
            thresholds[f"FAR {far:g}"] = verification_metrics(distances, genuine, folds, far).far_threshold
    return thresholds


def count_impostors(embeddings, identities):
    """Return histogram() of all pairs of two identities, in memory that does not grow with their number.

    embeddings: (N, D), of length 1. identities: N labels of any kind.
    """
    _, identity = np.unique(identities, return_inverse=True)
    order = np.argsort(identity, kind="stable")
    embeddings, identity = np.asarray(embeddings, np.float32)[order], identity[order]
    counts, rows = np.zeros(2 * BINS + 1, np.int64), max(1, COSINES_AT_ONCE // len(identity))
    for start in range(0, len(identity), rows):
        block = slice(start, start + rows)
        cosines = embeddings[block] @ embeddings[start:].T
        later = identity[block, None] < identity[start:]  # identities are sorted, so each pair counts once
        counts += histogram(np.sqrt(np.maximum(0, 2 - 2 * cosines[later])))
    return counts


def histogram(distances):
    """Return the histogram of distances (N,), int64 (2 * BINS + 1,)."""
    return np.bincount((np.asarray(distances) * BINS).astype(np.int64), minlength=2 * BINS + 1)


def impostor_curve(counts):
    """Return the impostor curve of a histogram of distances as a dict for the JSON file; None for under 2,000 pairs.

    Its "measured" holds {FAR: distance}: at most that fraction of the pairs is nearer. FARs that accept under 20 pairs
    are left out, so that curve_distance() extrapolates from two points that are known well. This was tried on samples
    of 3,000 of LFW's 29.6 million pairs. At its distances for 1e-4 to 1e-6 the true FAR was 0.9 to 1.1 times that, on
    average. With a normal distribution fitted to all cosines it was 3 to 6 times, with a generalised Pareto
    distribution 2 to 82 times.
    """
    pairs = int(counts.sum())
    measured = {f"{far:g}": quantile(counts, far) for far in CURVE_FARS if far * pairs >= MIN_ACCEPTED}
    return {"pairs": pairs, "measured": measured} if len(measured) > 1 else None


def quantile(counts, far):
    """Return the largest threshold, to a bin, that accepts at most floor(far * pairs) of the pairs."""
    allowed = math.floor(far * counts.sum() + 1e-9)
    return float(np.searchsorted(np.cumsum(counts), allowed, side="right") / BINS)


def fit_tail(counts, pairs):
    """Return the line of fit_line() through the tail of a histogram of distances.

    FARs from 0.3 down to 10 / pairs are fitted. In smaller ones, one person under two names would tilt the line.
    """
    return fit_line({far: quantile(counts, far) for far in np.geomspace(0.3, 10 / pairs, 30)})


def curve_distance(curve, far):
    """Return the distance at a FAR, from {FAR: distance} of two or more powers of ten.

    Between two of them, and beyond the last, the cosine is a straight line over the normal quantile of the FAR.
    """
    nearest = sorted(curve, key=lambda known: abs(math.log(known / far)))[:2]
    return line_distance(fit_line({known: curve[known] for known in nearest}), far)


def fit_line(curve):
    """Return (slope, intercept) of the cosine over normal_quantile(FAR), fitted to {FAR: distance}."""
    cosines = [1 - distance ** 2 / 2 for distance in curve.values()]
    return np.polyfit([normal_quantile(far) for far in curve], cosines, 1)


def line_distance(line, far):
    """Return the distance at a FAR by the line of fit_line()."""
    slope, intercept = line
    return math.sqrt(max(0.0, 2 - 2 * (intercept + slope * normal_quantile(far))))


def normal_quantile(far):
    """Return the value that a standard normal variable exceeds with probability `far`."""
    return -NormalDist().inv_cdf(far)
