"""The impostor curve: how near do two people come, in one pair of 10, of 100, ... of a million?

A gallery of many pictures needs a false accept rate (FAR) far below what the 3,000 impostor pairs of a benchmark
resolve. Where the people of a benchmark are known all pairs of their pictures count (29.6 million for LFW); the FARs
beyond the pairs are extrapolated, and said to be.
"""
import math
from statistics import NormalDist

import numpy as np

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
BINS = 100_000            # to each unit of distance, of which there are two: far finer than any FAR is known
BLOCK = 2_000_000         # cosines at once: 40 MB with what is made of them
LEAST_PAIRS = 100         # below, there is no tail to extrapolate
HOW = ("beyond the pairs the cosine is a straight line over the normal quantile of the FAR, fitted from FAR 0.3 to "
       "that of the ten nearest pairs")


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
    counts, rows = np.zeros(2 * BINS + 1, np.int64), max(1, BLOCK // len(person))
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
    if pairs < LEAST_PAIRS:
        return None
    measured = {far: quantile(counts, far) for far in FARS if far * pairs >= 1}
    tail = fit_tail(counts, pairs)
    beyond = {far: round(distance_on(tail, far), 5) for far in FARS if far not in measured}
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
