"""utils/training/run.py: what a run writes, and what happens if it cannot."""
import errno
import math
import os
import time
from types import SimpleNamespace

import pytest
import torch

from utils.drawing import plots
from utils.training import run as module
from utils.training.run import COLUMNS, Run, make_folder


def test_the_curves_mark_the_epoch_of_best_pth(tmp_path, monkeypatch):
    marked = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: marked.update(
        {path.name: figure.legends[0].get_texts()[-1].get_text()}))
    run = Run(tmp_path, {})
    for epoch, accuracy in enumerate((0.7, 0.8, 0.8), 1):
        run.log(row(epoch) | {"lfw_accuracy": accuracy})
    assert marked == {"loss.png": "best.pth: epoch 2", "accuracy.png": "best.pth: epoch 2"}


def row(epoch):
    return dict.fromkeys(COLUMNS, 0.5) | {"epoch": epoch, "lfw_accuracy": math.nan}


@pytest.mark.parametrize("ending, missing, warnings", [
    ("log.csv", {"log.csv"}, 2), ("loss.png", {"loss.png"}, 2), (".pth", {"best.pth", "best.json"}, 3)])
def test_a_file_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, capsys, ending, missing, warnings):
    replace = os.replace

    def replace_unless_refused(source, target):
        if str(target).endswith(ending):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)
    monkeypatch.setattr(os, "replace", replace_unless_refused)
    run = Run(tmp_path, {})
    for epoch in (1, 2):
        run.log(row(epoch))
        run.save_weights({"weight": torch.tensor([1.0])}, SimpleNamespace(save_period=1, epochs=2))
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == warnings
    assert all("is not written" in line and os.strerror(errno.ENOSPC) in line for line in printed)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"log.csv", "loss.png", "accuracy.png", "best.pth", "best.json"} - written == missing
    assert not any(name.endswith(".tmp") for name in written)


def test_a_plot_that_fails_in_its_library_costs_a_warning(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise ValueError("no such font")
    monkeypatch.setattr(module, "plot_history", fail)
    Run(tmp_path, {}).log(row(1))
    assert "loss.png of epoch 1 is not written (no such font)" in capsys.readouterr().err
    assert (tmp_path / "log.csv").is_file()


def test_runs_that_start_in_one_second_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "2026_01_01_00_00_00")
    folders = {make_folder(tmp_path / "logs", "mobilefacenet") for _ in range(3)}
    assert len(folders) == 3 and set((tmp_path / "logs").iterdir()) == folders
