"""Plots, with matplotlib, without a screen."""
import math
import os
from pathlib import Path

import numpy as np

from utils.common.files import atomic_write
from utils.drawing.contact_sheets import font_for, image_format
from utils.evaluation.metrics import roc


def new_figure(width=7.0, height=5.0):
    """Return a matplotlib Figure. It needs no backend: neither pyplot nor a window system is used."""
    os.environ.pop("MPLBACKEND", None)  # without a notebook's package matplotlib fails to import with its backend
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save_figure(figure, path):
    """Write a Figure in the format of the path's extension. Raises UserError."""
    from matplotlib.text import Text
    file_format = image_format(path)
    for text in figure.findobj(Text):
        if not text.get_text().isascii():  # a name: give it a font that has its letters
            font, letters = font_for(text.get_text(), 12)
            text.set_text(letters)
            text.get_fontproperties().set_file(font.path)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=file_format)


def add_legend(figure, *panels):
    """Add a legend of the curves of these axes below all axes."""
    curves = [(curve, label.replace("$", r"\$")) for axes in panels
              for curve, label in zip(*axes.get_legend_handles_labels())]
    figure.legend(*zip(*curves), loc="outside lower center")


def plot_roc(distances, genuine, thresholds, title, path):
    """Plot the ROC curve and a histogram of distances, both with the thresholds marked.

    distances, genuine: (N,). thresholds: {operating point: threshold}. The FAR axis is logarithmic and begins where one
    impostor pair is accepted.
    """
    figure = new_figure(width=13, height=5.6)
    curve, histogram = figure.subplots(1, 2)
    lowest = 1 / max((~genuine).sum(), 10)
    false_positive_rate, true_positive_rate = roc(distances, genuine)
    curve.plot(false_positive_rate, true_positive_rate, color="tab:gray", drawstyle="steps-post")
    bins = np.histogram_bin_edges(distances, 60)
    for label, of_kind, color in (("genuine pairs", genuine, "tab:blue"), ("impostor pairs", ~genuine, "tab:gray")):
        histogram.hist(distances[of_kind], bins, color=color, alpha=0.6, label=label)
    rates = []
    for (name, threshold), color in zip(thresholds.items(), ("tab:green", "tab:orange", "tab:red")):
        far, val = ((distances[of_kind] < threshold).mean() for of_kind in (~genuine, genuine))
        curve.plot(max(far, lowest), val, "o", color=color, clip_on=False, zorder=3,
                   label=f"{name}: threshold {threshold:.3f}, VAL {val:.3f} at FAR {'' if far else '<'}"
                         f"{max(far, lowest):.4f}")
        histogram.axvline(threshold, color=color, linestyle="--")
        rates.append(val)
    curve.set(xscale="log", xlim=(lowest, 1), ylim=(max(-0.02, min(rates) - 0.15), 1.005),
              xlabel="FAR (impostor pairs accepted)", ylabel="VAL (genuine pairs accepted)",
              title=title.replace("$", r"\$"))
    histogram.set(xlabel="L2 distance of the embeddings", ylabel="pairs", title="Distances, and the same thresholds")
    for axes in (curve, histogram):
        axes.grid(alpha=0.3, which="both")
    add_legend(figure, curve, histogram)
    save_figure(figure, path)


def plot_history(rows, columns, best_epoch, path):
    """Plot a curve for each column of log.csv that holds any number.

    rows: the dicts of log.csv. columns: {column: label}. best_epoch: the epoch of best.pth. The file's name, such as
    loss.png, labels the y axis, and its folder, the run, is the title.
    """
    path = Path(path).absolute()
    figure = new_figure()
    axes = figure.add_subplot(xlabel="epoch", ylabel=path.stem, title=path.parent.name.replace("$", r"\$"))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # whole epochs, even if there is only one
    for column, label in columns.items():
        points = [(row["epoch"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]
        if points:
            axes.plot(*zip(*points), marker="." if len(points) < 40 else "", label=label)
    axes.axvline(best_epoch, color="tab:gray", linestyle=":", label=f"best.pth: epoch {best_epoch}")
    axes.grid(alpha=0.3)
    add_legend(figure, axes)
    save_figure(figure, path)
