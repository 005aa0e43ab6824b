"""utils/drawing/plots.py: what is marked on the curves, a legend that covers none of them, and no backend."""
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from utils.drawing import plots
from utils.drawing.plots import plot_history, plot_roc

THRESHOLDS = {"best accuracy": 0.8, "FAR 0.01": 0.7, "FAR 0.001": 0.1}


@pytest.fixture
def figures(monkeypatch):
    """Collect the figures instead of writing them."""
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    return drawn


def make_pairs(impostors, shift):
    rng = np.random.default_rng(0)
    genuine = np.tile([True, False], impostors)
    return rng.uniform(0.3, 0.8, 2 * impostors) + np.where(genuine, 0, shift), genuine


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def assert_legend_beside_the_axes(figure):
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def history(epochs, **values):
    """Rows of log.csv in which a column is a function of the epoch, or missing."""
    columns = {"train_loss", "val_loss"}
    return [{"epoch": epoch} | {name: values.get(name, lambda epoch: math.nan)(epoch) for name in columns}
            for epoch in range(1, epochs + 1)]


def draw_history(rows, folder, best_epoch=1):
    plot_history(rows, {"train_loss": "train", "val_loss": "validation"}, best_epoch, folder / "loss.png")


@pytest.mark.parametrize("shift", [0.4, 1.0])
def test_the_roc_is_drawn_for_any_network_and_marks_every_operating_point(tmp_path, shift):
    distances, genuine = make_pairs(1000, shift)  # apart at 1.0: the FAR is 0
    plot_roc(distances, genuine, THRESHOLDS, "title", tmp_path / "roc.png")
    with Image.open(tmp_path / "roc.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    green, orange, red = (44, 160, 44), (255, 127, 14), (214, 39, 40)  # matplotlib's tab:green and so on
    for color in (green, orange, red):
        assert (pixels == color).all(2).any()
    assert (pixels[:, :pixels.shape[1] // 10] == red).all(2).any()  # the point at FAR 0, on the edge of the axis


def test_the_legend_of_the_roc_covers_no_curve(figures, tmp_path):
    plot_roc(*make_pairs(1000, 0.3), THRESHOLDS, "title", tmp_path / "roc.png")
    assert_legend_beside_the_axes(figures[0])
    names = [label.partition(":")[0] for label in legend_of(figures[0])]
    assert names == [*THRESHOLDS, "genuine pairs", "impostor pairs"]


@pytest.mark.parametrize("epochs", [1, 2, 10, 100])
def test_curves_count_whole_epochs_and_mark_the_best(figures, tmp_path, epochs):
    folder = tmp_path / "2026_11_25_mobilefacenet"
    rows = history(epochs, train_loss=lambda epoch: 40 / epoch, val_loss=lambda epoch: 20 / epoch)
    draw_history(rows, folder, epochs)
    figure, = figures
    assert_legend_beside_the_axes(figure)
    axes, = figure.axes
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) for tick in ticks)
    assert axes.get_title() == folder.name and (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss")
    assert legend_of(figure) == ["train", "validation", f"best.pth: epoch {epochs}"]
    assert list(axes.lines[-1].get_xdata()) == [epochs, epochs]


def test_dollars_in_names_are_no_mathematics(tmp_path):
    folder = tmp_path / r"a$\q$"
    plot_history(history(2, train_loss=float), {"train_loss": r"eval/$\q$_accuracy"}, 1, folder / "loss.png")
    plot_roc(*make_pairs(1000, 0.4), THRESHOLDS, r"$\q$", folder / "roc.png")
    assert sorted(path.name for path in folder.iterdir()) == ["loss.png", "roc.png"]


def test_a_series_without_numbers_is_left_out_and_one_with_gaps_is_drawn(figures, tmp_path):
    draw_history(history(9, train_loss=lambda epoch: math.nan if epoch % 3 == 0 else epoch), tmp_path)
    draw_history(history(3), tmp_path)
    assert [legend_of(figure) for figure in figures] == [["train", "best.pth: epoch 1"], ["best.pth: epoch 1"]]
    assert list(figures[0].axes[0].lines[0].get_xdata()) == [1, 2, 4, 5, 7, 8]


def test_the_backend_of_a_notebook_does_not_matter(tmp_path):
    code = ("import sys; from utils.drawing.plots import new_figure, save_figure\n"
            "figure = new_figure(); figure.subplots().plot([1, 2]); save_figure(figure, sys.argv[1])\n"
            "sys.exit('matplotlib.pyplot' in sys.modules)")
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.jpg"], check=True, cwd=ROOT,
                   env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"
