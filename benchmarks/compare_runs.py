"""Curves of several training runs in one picture.

    python benchmarks/compare_runs.py labels=logs/RUN_1 teacher=logs/RUN_2 both=logs/RUN_3
    python benchmarks/compare_runs.py student=logs/FIRST+logs/SECOND --columns val_loss --output student.png
    python benchmarks/compare_runs.py model_data/arcface_mobilefacenet.json --columns val_loss lfw_accuracy \\
        --labels "1 - cosine to the teacher, validation" "accuracy on the 39 people kept out" \\
        --output img/distillation.png

Folders joined by + are pieces of one run, each started from the weights of the one before: their epochs count on. A
weight file's JSON may hold the figures of such pieces (training.pieces): each is a curve of its own. There is a panel
for each of --columns, which are those of log.csv.
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


def parse_settings():
    parser = SettingsParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER[+FOLDER...]", help="or FILE.json")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS[1:], default=["lfw_accuracy"])
    parser.add_argument("--labels", nargs="+", help="of the panels' vertical axes; none: the names of the columns")
    parser.add_argument("--output", default="runs.png")
    settings = parser.parse_args()
    for run in settings.runs:
        if not all(run.partition("=")) and not run.endswith(".json"):
            parser.error(f"{run}: expected NAME=FOLDER, such as labels=logs/RUN, or the JSON file of weights")
    if settings.labels and len(settings.labels) != len(settings.columns):
        parser.error(f"--labels: {len(settings.labels)} for {len(settings.columns)} columns")
    return settings


def read_curves(run, column):
    """NAME=FOLDERS or FILE.json -> [(name, epochs, values)]."""
    name, _, folders = run.partition("=")
    return [(name, *read_curve(folders, column))] if folders else read_pieces(name, column)


def read_curve(folders, column):
    """-> (epochs, values) of the rows that have a number there."""
    points, done = [], 0
    for folder in folders.split("+"):
        rows = list(csv.DictReader(read_lines(Path(folder, "log.csv"), "give the folder of a training run")))
        try:
            points += [(done + int(row["epoch"]), float(row[column])) for row in rows if row[column]]
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{folder}/log.csv has no column {column} of numbers, as train.py writes it") from None
        done += len(rows)
    return tuple(zip(*points)) or ((), ())


def read_pieces(path, column):
    """-> [(its epochs and name, epochs, values)] of each piece, without the epochs where the file holds null."""
    text, done, curves = "\n".join(read_lines(path, "give the JSON file of weights")), 0, []
    try:
        for piece in json.loads(text)["training"]["pieces"]:
            epochs = range(done + 1, done + len(piece[column]) + 1)
            span = f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"
            points = [(epoch, float(value)) for epoch, value in zip(epochs, piece[column]) if value is not None]
            curves.append((f"{span}: {piece['name']}", *(zip(*points) if points else ((), ()))))
            done += len(epochs)
    except (KeyError, ValueError, TypeError, IndexError):
        raise UserError(f"{path} holds no training.pieces with a name and a list {column} of numbers") from None
    return curves


@script
def main():
    settings = parse_settings()
    figure = new_figure(width=5.5 * len(settings.columns), height=4.6)
    panels = figure.subplots(1, len(settings.columns), squeeze=False)[0]
    for axes, column, label in zip(panels, settings.columns, settings.labels or settings.columns):
        for run in settings.runs:
            for name, epochs, values in read_curves(run, column):
                axes.plot(epochs, values, marker=".", label=name)
        axes.set_ylabel(label)
        number_epochs(axes)
        axes.grid(alpha=0.3)
    add_legend(figure, panels[0], columns=1 + len(panels))
    save_figure(figure, settings.output)
    print(f"Picture: {settings.output}")


if __name__ == "__main__":
    main()
