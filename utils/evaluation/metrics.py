"""Verification metrics by the LFW View 2 protocol, exact: all thresholds that make a difference are tried.

Distances are L2 distances of normalised embeddings. A pair is accepted, as images of one person, if its distance is
below the threshold. `genuine` marks the pairs of one person; the others are impostor pairs.
Protocol: Huang et al. 2007, http://vis-www.cs.umass.edu/lfw/, "View 2", unrestricted with labeled outside data.
"""
import math
from typing import NamedTuple

import numpy as np


class VerificationMetrics(NamedTuple):
    """Metrics over `folds` test folds; std is the population's, over the folds."""
    accuracy: float
    accuracy_std: float
    accuracy_standard_error: float  # ddof=1 / sqrt(folds)
    threshold: float                # mean over folds
    threshold_std: float
    val: float | None               # fraction of genuine pairs accepted (TAR), mean over folds; None: see pair_metrics
    val_std: float
    far: float                      # fraction of impostor pairs accepted, mean over folds
    far_target: float
    far_threshold: float            # at the FAR target, mean over folds
    auc: float
    eer: float
    folds: int
    pairs: int
    fold_accuracies: list


def verification_metrics(distances, genuine, folds=10, far_target=1e-3):
    """Return the VerificationMetrics of distances (N,) and genuine flags (N,), in the order of the folds.

    The thresholds of a fold are chosen on the other folds. Raises ValueError if a distance is not finite or all
    are equal (collapsed embeddings), and for a fold without a genuine or an impostor pair.
    """
    distances, genuine = np.asarray(distances, np.float64), np.asarray(genuine, bool)
    if not 1e-6 <= np.ptp(distances) < np.inf:  # also if one is NaN
        raise ValueError(f"distances {distances.min():g} to {distances.max():g}: embeddings have collapsed or are NaN")
    fold_of = fold_of_pairs(len(distances), folds)
    rows = []
    for fold in range(folds):
        test, train = fold_of == fold, fold_of != fold
        if genuine[test].all() or not genuine[test].any():
            raise ValueError("a fold without both genuine and impostor pairs has no accuracy")
        threshold = best_threshold(distances[train], genuine[train])
        far_threshold = threshold_at_far(distances[train & ~genuine], far_target)
        accuracy = np.mean((distances[test] < threshold) == genuine[test])
        accepted = distances[test] < far_threshold
        val, far = accepted[genuine[test]].mean(), accepted[~genuine[test]].mean()
        rows.append((accuracy, threshold, val, far, far_threshold))
    accuracies, thresholds, vals, fars, far_thresholds = np.array(rows).T
    false_positive_rate, true_positive_rate = roc(distances, genuine)
    # Where false accepts and false rejects are equally frequent; their difference rises from -1 to 1.
    equal_error_rate = np.interp(0, false_positive_rate - (1 - true_positive_rate), false_positive_rate).item()
    return VerificationMetrics(
        accuracies.mean().item(), accuracies.std().item(), accuracies.std(ddof=1).item() / math.sqrt(folds),
        thresholds.mean().item(), thresholds.std().item(), vals.mean().item(), vals.std().item(),
        fars.mean().item(), far_target, far_thresholds.mean().item(),
        np.trapezoid(true_positive_rate, false_positive_rate).item(), equal_error_rate, folds, len(distances),
        accuracies.tolist())


def fold_of_pairs(count, folds):
    """Return the fold (count,) of each pair: the folds follow one another and differ by at most one pair."""
    return np.arange(count) * folds // count


def best_threshold(distances, genuine):
    """Return the threshold with the most correct decisions on these pairs.

    Every cut between two distinct neighboring distances is tried. Of equally good cuts the middle one is taken (index
    len // 2); the threshold is half-way between its two neighbors.
    """
    order = np.argsort(distances)
    distances, genuine = distances[order], genuine[order]
    accepted_genuine = np.concatenate([[0], np.cumsum(genuine)])
    accepted_impostor = np.concatenate([[0], np.cumsum(~genuine)])
    correct = accepted_genuine + accepted_impostor[-1] - accepted_impostor
    between = np.concatenate([[True], distances[1:] > distances[:-1], [True]])
    cuts = np.flatnonzero(between & (correct == correct[between].max()))
    edges = np.concatenate([distances[:1], distances, [np.nextafter(distances[-1], np.inf)]])  # accept nothing, or all
    below, above = edges[cuts[len(cuts) // 2]:][:2]
    middle = (below + above) / 2
    return middle if middle > below else above  # adjacent floats have no middle


def threshold_at_far(impostor_distances, far_target):
    """Return the largest threshold that accepts at most floor(far_target * impostors) of these impostor pairs."""
    allowed = math.floor(far_target * len(impostor_distances) + 1e-9)
    if allowed >= len(impostor_distances):
        return np.inf
    return np.partition(impostor_distances, allowed)[allowed]


def can_measure_far(genuine, folds, far):
    """Return whether each fold's threshold for this false accept rate comes from at least 1 / far impostor pairs."""
    genuine, fold_of = np.asarray(genuine, bool), fold_of_pairs(len(genuine), folds)
    return all(far * np.sum(~genuine[fold_of != fold]) >= 1 - 1e-9 for fold in range(folds))


def roc(distances, genuine):
    """Return (false positive rate, true positive rate), each (K+1,): at no pair, and up to each distinct distance."""
    order = np.argsort(distances)
    distances, genuine = distances[order], genuine[order]
    last_of_value = np.append(distances[1:] > distances[:-1], True)
    true_positives = np.cumsum(genuine)[last_of_value]
    false_positives = np.cumsum(~genuine)[last_of_value]
    return np.append(0, false_positives) / (~genuine).sum(), np.append(0, true_positives) / genuine.sum()
