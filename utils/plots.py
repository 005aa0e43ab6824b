"""Curves, with matplotlib, drawn without a screen."""
import math

from utils.files import atomic_write


def new_figure(width=7.0, height=5.0):
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save_figure(figure, path):
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def plot_roc(false_positive_rate, true_positive_rate, points, title, path):
    """points: {label: (FAR, VAL)}, marked on the curve. The FAR axis is logarithmic: what matters is on the left."""
    figure = new_figure()
    axes = figure.add_subplot(xscale="log", xlabel="FAR (impostor pairs accepted)",
                              ylabel="VAL (genuine pairs accepted)")
    axes.plot(false_positive_rate, true_positive_rate, color="tab:blue")
    for label, (far, val) in points.items():
        axes.plot(far, val, "o", label=label)
    axes.set(xlim=(1e-4, 1), ylim=(min(0.5, *(val for _, val in points.values())) - 0.02, 1.005))
    axes.set_title(title, parse_math=False)  # a file's name may hold $
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
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
