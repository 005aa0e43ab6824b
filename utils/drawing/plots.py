"""Curves, with matplotlib, drawn without a screen."""
import math

import numpy as np

from utils.evaluation.metrics import roc
from utils.machine.files import atomic_write


def new_figure(width=7.0, height=5.0):
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save_figure(figure, path):
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def plot_roc(distances, genuine, thresholds, title, path):
    """Distances (N,), genuine flags (N,), {operating point: threshold} -> two panels with the operating points marked.

    The ROC has a logarithmic FAR axis, as what matters is on the left; beside it, who lies at which distance.
    """
    figure = new_figure(width=13)
    curve, histogram = figure.subplots(1, 2)
    false_positive_rate, true_positive_rate, _ = roc(distances, genuine)
    curve.plot(false_positive_rate, true_positive_rate, color="tab:gray", drawstyle="steps-post")
    bins = np.histogram_bin_edges(distances, 60)
    for label, of_kind, colour in (("genuine pairs", genuine, "tab:blue"), ("impostor pairs", ~genuine, "tab:gray")):
        histogram.hist(distances[of_kind], bins, color=colour, alpha=0.6, label=label)
    rates = []
    for (name, threshold), colour in zip(thresholds.items(), ("tab:green", "tab:orange", "tab:red")):
        far, val = ((distances[of_kind] < threshold).mean() for of_kind in (~genuine, genuine))
        curve.plot(max(far, 1e-4), val, "o", color=colour, clip_on=False, zorder=3,
                   label=f"{name}: threshold {threshold:.3f}, VAL {val:.3f} at FAR {far:.4f}")
        histogram.axvline(threshold, color=colour, linestyle="--")
        rates.append(val)
    curve.set(xscale="log", xlim=(1e-4, 1), ylim=(max(-0.02, min(rates) - 0.15), 1.005),
              xlabel="FAR (impostor pairs accepted)", ylabel="VAL (genuine pairs accepted)")
    curve.set_title(title, parse_math=False)  # a file's name may hold $
    histogram.set(xlabel="L2 distance of the embeddings", ylabel="pairs", title="Distances, and the same thresholds")
    histogram.margins(y=0.12)
    for axes, place in ((curve, "lower right"), (histogram, "upper left")):
        axes.grid(alpha=0.3, which="both")
        axes.legend(loc=place)
    save_figure(figure, path)


def plot_history(rows, columns, ylabel, path):
    """rows: the dicts of log.csv; columns: {column: label}. A curve per column that holds any number."""
    figure = new_figure()
    axes = figure.add_subplot(xlabel="epoch", ylabel=ylabel)
    for column, label in columns.items():
        points = [(row["epoch"], row[column]) for row in rows if math.isfinite(row[column])]
        if points:
            axes.plot(*zip(*points), marker="." if len(points) < 40 else "", label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    save_figure(figure, path)
