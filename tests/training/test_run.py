"""What a run says of itself: time left, the best epoch, whose faces it sees."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.training import progress, run
from utils.training.progress import Progress
from utils.training.run import COLUMNS, Run


@pytest.mark.parametrize("seconds, eta", [
    (0.2, "0:00:00"), (59.7, "0:01:00"), (299.6, "0:05:00"), (299.4, "0:04:59"), (3599.6, "1:00:00"),
    (86399.9, "1 day, 0:00:00"), (3 * 86400 + 4000, "3 days, 1:06:40")])
def test_the_time_left_is_whole_minutes_and_hours(monkeypatch, capsys, seconds, eta):
    """With half of 200 steps done, as much is left as has passed; a line is printed a minute later at the earliest."""
    clock = iter([0.0, seconds])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    training = SimpleNamespace(epoch=0, batch=0, step=0, learning_rate=lambda step: 0.1)
    bar = Progress(training, 200, 1, 200)
    bar.written = -100
    training.step = 100
    bar.report({"loss": 1.0, "accuracy": math.nan, "images_per_second": 5.0})
    assert capsys.readouterr().out.endswith(f" ETA {eta}\n")


@pytest.mark.parametrize("figures, best", [
    ([(0.5, 0.7), (0.4, 0.8), (0.3, 0.8)], 2), ([(0.5, math.nan), (0.3, math.nan), (0.3, math.nan)], 2),
    ([(math.nan, math.nan)] * 3, 3), ([(0.1, math.nan), (0.4, 0.5), (0.2, 0.4)], 2)])
def test_the_curves_mark_the_epoch_of_best_pth(tmp_path, monkeypatch, figures, best):
    marked = {}
    monkeypatch.setattr(run, "plot_history", lambda rows, columns, best_epoch, path: marked.update({path: best_epoch}))
    found = Run(tmp_path)
    for epoch, (val_loss, lfw_accuracy) in enumerate(figures, 1):
        found.log(dict.fromkeys(COLUMNS, 0.5) | {"epoch": epoch, "val_loss": val_loss, "lfw_accuracy": lfw_accuracy})
    assert marked == {tmp_path / "loss.png": best, tmp_path / "accuracy.png": best}


def test_the_batch_picture_has_a_caption_for_each_face(tmp_path, monkeypatch):
    written = []
    draw_batch = run.draw_batch
    monkeypatch.setattr(run, "draw_batch", lambda pixels, names: (
        written.append((pixels, names)), draw_batch(pixels, names))[1])
    Run(tmp_path).save_batch_picture(torch.linspace(-1, 1, 70).reshape(70, 1, 1, 1).expand(70, 3, 8, 8), ["王"] * 70)
    (pixels, names), = written
    assert len(pixels) == len(names) == 64 and pixels.dtype == np.uint8 and pixels[0].max() == 0
    with Image.open(tmp_path / "batch.png") as picture:
        assert picture.width > 8 * 112 and picture.height > 8 * 112
