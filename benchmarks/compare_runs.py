"""Plot the curves of several training runs.

    python benchmarks/compare_runs.py labels=logs/RUN_1 teacher=logs/RUN_2
    python benchmarks/compare_runs.py model_data/arcface_mobilefacenet.json --columns val_loss lfw_accuracy \\
        --labels "1 - cosine to the teacher" "accuracy on held-out identities" --output img/distillation.png

There is a panel for each of --columns, which are those of log.csv. The JSON file of weights holds the columns of the
phases of its training (training.pieces); each phase is a curve, and the epochs are counted on.
"""
import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.common.errors import SettingsParser, UserError, script
from utils.common.files import read_lines
from utils.drawing.plots import add_legend, new_figure, number_epochs, save_figure
from utils.training.run import COLUMNS


def parse_args():
    parser = SettingsParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="or FILE.json")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS[1:], default=["lfw_accuracy"])
    parser.add_argument("--labels", nargs="+", help="of the vertical axes (default: the columns)")
    parser.add_argument("--output", default="runs.png")
    args = parser.parse_args()
    if len(args.labels or args.columns) != len(args.columns):
        parser.error(f"--labels: {len(args.labels)} for {len(args.columns)} columns")
    return args


def read_curves(run, column):
    """Return (name, epochs, values) of each curve, without the epochs that have no value."""
    name, _, folder = run.partition("=")
    text = read_lines(Path(folder, "log.csv") if folder else run, "give NAME=FOLDER of a run, or the JSON of weights")
    curves, done = [], 0
    try:
        phases = json.loads("\n".join(text))["training"]["pieces"] if not folder else [
            {"name": name, column: [row[column] for row in csv.DictReader(text)]}]
        for phase in phases:
            points = [(epoch, float(value)) for epoch, value in enumerate(phase[column], done + 1)
                      if value not in ("", None)]
            curves.append((phase["name"], *(zip(*points) if points else ((), ()))))
            done += len(phase[column])
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{folder or run} holds no column {column} of numbers") from None
    return curves


@script
def main():
    args = parse_args()
    figure = new_figure(width=5.5 * len(args.columns), height=4.6)
    panels = figure.subplots(1, len(args.columns), squeeze=False)[0]
    for axes, column, label in zip(panels, args.columns, args.labels or args.columns):
        for run in args.runs:
            for name, epochs, values in read_curves(run, column):
                axes.plot(epochs, values, marker=".", label=name)
        axes.set_ylabel(label)
        number_epochs(axes)
        axes.grid(alpha=0.3)
    add_legend(figure, panels[0])
    save_figure(figure, args.output)
    print(f"Plot: {args.output}")


if __name__ == "__main__":
    main()
