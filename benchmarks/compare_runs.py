"""Curves of several training runs in one picture.

    python benchmarks/compare_runs.py labels=logs/RUN_1 teacher=logs/RUN_2 both=logs/RUN_3
    python benchmarks/compare_runs.py student=logs/FIRST+logs/SECOND --columns val_loss --output student.png

Folders joined by + are pieces of one run, each started from the weights of the one before: their epochs count on. There
is a panel for each of --columns, which are those of log.csv.
"""
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.drawing.plots import new_figure, save_figure
from utils.machine.errors import SettingsParser, UserError, script
from utils.machine.files import read_lines
from utils.training.run import COLUMNS


def parse_settings():
    parser = SettingsParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER[+FOLDER...]")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS[1:], default=["lfw_accuracy"])
    parser.add_argument("--labels", nargs="+", help="of the panels' vertical axes; none: the names of the columns")
    parser.add_argument("--output", default="runs.png")
    settings = parser.parse_args()
    for run in settings.runs:
        if not all(run.partition("=")):
            parser.error(f"{run}: expected NAME=FOLDER, such as labels=logs/RUN")
    if settings.labels and len(settings.labels) != len(settings.columns):
        parser.error(f"--labels: {len(settings.labels)} for {len(settings.columns)} columns")
    return settings


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


@script
def main():
    settings = parse_settings()
    figure = new_figure(width=5.5 * len(settings.columns), height=4.2)
    panels = figure.subplots(1, len(settings.columns), squeeze=False)[0]
    for axes, column, label in zip(panels, settings.columns, settings.labels or settings.columns):
        for run in settings.runs:
            name, _, folders = run.partition("=")
            axes.plot(*read_curve(folders, column), marker=".", label=name)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, settings.output)
    print(f"Picture: {settings.output}")


if __name__ == "__main__":
    main()
