"""Verification metrics against a plain loop over every threshold, as the LFW protocol defines them."""
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils.evaluation.metrics import (
    best_threshold,
    can_measure_far,
    fold_of_pairs,
    roc,
    threshold_at_far,
    verification_metrics,
)

quick = settings(max_examples=60, derandomize=True, deadline=None)
many_ties = st.sampled_from([0.5, 0.75, 1.0, 1.25, 1.5])
any_distance = st.floats(0, 2, width=32)
distance = st.one_of(many_ties, any_distance)


@st.composite
def folded_pairs(draw):
    """(distances, genuine, folds), each fold with pairs of both kinds in any order, not all distances equal."""
    folds = draw(st.integers(2, 4))
    genuine = []
    for flags in [draw(st.lists(st.booleans(), min_size=3, max_size=3)) for _ in range(folds)]:
        genuine += draw(st.permutations([True, False, *flags]))
    values = draw(st.sampled_from([many_ties, distance]))
    distances = np.array(draw(st.lists(values, min_size=len(genuine), max_size=len(genuine))))
    assume(np.ptp(distances) > 1e-5)
    return distances, np.array(genuine), folds


def brute_best_threshold(distances, genuine):
    """Try every cut between distinct values. Return the middle one of the best, half-way between its neighbors."""
    values = sorted(set(distances))
    cuts = []  # (correct decisions, threshold), the smallest threshold first
    for below, above in zip([None, *values], [*values, None]):
        accepted = [below is not None and d <= below for d in distances]
        correct = sum(bool(a) == bool(g) for a, g in zip(accepted, genuine))
        if below is None:
            threshold = above
        elif above is None:
            threshold = math.nextafter(below, math.inf)
        else:
            threshold = (below + above) / 2
        cuts.append((correct, threshold))
    best = [threshold for correct, threshold in cuts if correct == max(cuts)[0]]
    return best[len(best) // 2]


def brute_threshold_at_far(impostors, target):
    """Return the (m+1)-th smallest impostor distance, m = floor(target * impostors)."""
    allowed = math.floor(Fraction(str(target)) * len(impostors))
    return sorted(impostors)[allowed] if allowed < len(impostors) else math.inf


def brute_verification(distances, genuine, folds, target):
    """Per fold: accuracy, threshold, VAL, FAR, threshold at the target FAR."""
    size, rows = len(distances) // folds, []
    for fold in range(folds):
        test = range(fold * size, (fold + 1) * size)
        train = [i for i in range(len(distances)) if i not in test]
        threshold = brute_best_threshold([distances[i] for i in train], [genuine[i] for i in train])
        at_far = brute_threshold_at_far([distances[i] for i in train if not genuine[i]], target)
        same, other = [i for i in test if genuine[i]], [i for i in test if not genuine[i]]
        rows.append((sum((distances[i] < threshold) == genuine[i] for i in test) / size, threshold,
                     sum(distances[i] < at_far for i in same) / len(same),
                     sum(distances[i] < at_far for i in other) / len(other), at_far))
    return np.array(rows)


def brute_equal_error_rate(distances, genuine):
    """Walk along the ROC to the point at which the rates of false accepts and false rejects cross."""
    points = [(0.0, 1.0)]  # (impostors accepted, genuine pairs rejected)
    for value in sorted(set(distances)):
        points.append((np.mean([d <= value for d, g in zip(distances, genuine) if not g]),
                       np.mean([d > value for d, g in zip(distances, genuine) if g])))
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 >= y1:
            low, high = 0.0, 1.0
            for _ in range(60):
                middle = (low + high) / 2
                below = x0 + middle * (x1 - x0) < y0 + middle * (y1 - y0)
                low, high = (middle, high) if below else (low, middle)
            return x0 + low * (x1 - x0)


@pytest.mark.parametrize(("same", "other", "threshold"), [
    ([0.2, 0.4], [1.0, 1.2], 0.7),                 # perfect separation: half-way between the neighbors
    ([0.2, 1.0, 1.8], [0.6, 1.4, 2.2], 1.2),       # 0.4, 1.2 and 2.0 are best
    ([0.2, 1.0], [0.6, 1.4], 1.2),                 # 0.4 and 1.2 are best: index 2 // 2, the second
    ([0.5, 0.5], [0.5, 0.9], 0.7),                 # equal distances are never cut apart
])
def test_the_middle_one_of_the_best_cuts_counts(same, other, threshold):
    found = best_threshold(np.array(same + other), np.array([True] * len(same) + [False] * len(other)))
    assert found == pytest.approx(threshold, abs=1e-12)


@quick
@given(st.lists(distance, min_size=1, max_size=30), st.sampled_from([0, 0.001, 0.05, 0.1, 0.29, 0.3, 0.5, 0.7, 1]))
def test_the_threshold_at_a_far_is_the_largest_that_accepts_no_more(impostors, target):
    impostors = np.array(impostors)
    threshold = threshold_at_far(impostors, target)
    assert threshold == brute_threshold_at_far(impostors, target)
    allowed = math.floor(Fraction(str(target)) * len(impostors))
    assert (impostors < threshold).sum() <= allowed
    if np.isfinite(threshold):
        assert (impostors <= threshold).sum() > allowed


@pytest.mark.parametrize(("target", "place"), [
    (0, 0), (0.001, 2), (0.0011, 2), (0.01, 27), (0.1, 270), (0.35, 945), (0.7, 1890)])  # 0.35 * 2700 is a float < 945
def test_the_far_count_is_the_exact_product_rounded_down(target, place):
    impostors = np.random.default_rng(0).permutation(2700) / 2700  # as many as nine folds of LFW have
    assert threshold_at_far(impostors, target) == place / 2700


@quick
@given(folded_pairs(), st.sampled_from([0, 0.1, 0.25, 0.5]))
def test_all_metrics_are_those_of_a_loop_over_folds_and_thresholds(pairs, target):
    distances, genuine, folds = pairs
    found = verification_metrics(distances, genuine, folds, target)
    rows = brute_verification(distances.tolist(), genuine.tolist(), folds, target)
    accuracy, threshold, val, far, far_threshold = rows.mean(0)
    assert found.accuracy == pytest.approx(accuracy) and found.fold_accuracies == pytest.approx(rows[:, 0].tolist())
    assert found.accuracy_std == pytest.approx(math.sqrt(np.mean((rows[:, 0] - accuracy) ** 2)))
    assert found.accuracy_standard_error == pytest.approx(found.accuracy_std / math.sqrt(folds - 1))
    assert found.threshold == pytest.approx(threshold) and found.threshold_std == pytest.approx(rows[:, 1].std())
    assert found.val == pytest.approx(val) and found.val_std == pytest.approx(rows[:, 2].std())
    assert found.far == pytest.approx(far) and found.far_threshold == pytest.approx(far_threshold)
    smaller, larger = distances[genuine][:, None], distances[~genuine]
    assert found.auc == pytest.approx(((smaller < larger) + (smaller == larger) / 2).mean())
    assert found.eer == pytest.approx(brute_equal_error_rate(distances, genuine), abs=1e-9)
    assert (found.far_target, found.folds, found.pairs) == (target, folds, len(distances))


@quick
@given(folded_pairs())
def test_every_point_of_the_roc_is_what_its_threshold_accepts(pairs):
    distances, genuine, _ = pairs
    false_positive_rate, true_positive_rate = roc(distances, genuine)
    thresholds = [-1, *np.unique(distances)]
    for x, y, threshold in zip(false_positive_rate, true_positive_rate, thresholds, strict=True):
        accepted = distances <= threshold
        assert x == pytest.approx(accepted[~genuine].mean()) and y == pytest.approx(accepted[genuine].mean())
    assert (false_positive_rate[0], true_positive_rate[0]) == (0, 0)
    assert (false_positive_rate[-1], true_positive_rate[-1]) == (1, 1)


@pytest.mark.parametrize("spread", [0, 5e-8, math.nan])
def test_equal_distances_are_an_error(spread):
    distances = 0.7 + spread * np.arange(20) / 20
    with pytest.raises(ValueError, match=r"distances .* to .*: embeddings have collapsed or are NaN"):
        verification_metrics(distances, np.tile([True, False], 10), 10)


def test_folds_follow_one_another_and_differ_by_at_most_one_pair():
    assert fold_of_pairs(6000, 10).tolist() == np.repeat(np.arange(10), 600).tolist()
    for count in range(10, 40):
        folds = fold_of_pairs(count, 10)
        assert (np.diff(folds) >= 0).all() and np.ptp(np.bincount(folds, minlength=10)) <= 1


@pytest.mark.parametrize("kind", [True, False])
def test_a_fold_with_pairs_of_one_kind_only_is_an_error(kind):
    genuine = np.tile([True, False], 10)
    genuine[8:12] = kind
    with pytest.raises(ValueError, match="fold without both genuine and impostor pairs"):
        verification_metrics(np.linspace(0, 1, 20), genuine, 5)


@pytest.mark.parametrize("impostors, far, can", [
    (300, 1e-3, True), (112, 1e-3, True), (111, 1e-3, False), (12, 0.01, True), (11, 0.01, False),
    (10, 1 / 90, True), (300, 0, False)])
def test_a_far_needs_its_reciprocal_of_impostor_pairs_in_nine_of_ten_folds(impostors, far, can):
    assert can_measure_far(np.tile(np.arange(500) >= impostors, 10), 10, far) == can
