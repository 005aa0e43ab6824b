"""Randomised tests: mutated lists, killed runs, repeated predictions. The long versions have the mark `faults`."""
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT
from training_data import QUICK, assert_same_weights, only_run, train_command, write_faces

from arcface import Arcface
from utils.common.errors import UserError
from utils.data.annotation import check_trainable, read_annotation

faults = pytest.mark.faults


def mutate(content, generator):
    """Return the content with one to three random faults."""
    for _ in range(generator.randint(1, 3)):
        lines = content.split(b"\n")
        place, line = generator.randrange(len(content)), generator.randrange(len(lines))
        kind = generator.randrange(5)
        if kind == 0:    # a flipped bit
            content = content[:place] + bytes([content[place] ^ 1 << generator.randrange(8)]) + content[place + 1:]
        elif kind == 1:  # cut short
            content = content[:max(1, place)]
        elif kind == 2:  # random bytes
            content = content[:place] + generator.randbytes(4) + content[place:]
        elif kind == 3:  # a lost line
            content = b"\n".join(lines[:line] + lines[line + 1:]) or b"\n"
        else:            # another label
            content = b"\n".join([*lines[:line], b"%d;x.jpg" % generator.choice((-1, 3, 2**31, 10**30)), *lines[line:]])
    return content


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=faults)])
def test_a_damaged_list_is_one_line_or_a_list(shared, tmp_path, count):
    whole, path = write_faces(shared, tmp_path / "whole.txt").read_bytes(), tmp_path / "cls_train.txt"
    refused = 0
    for seed in range(count):
        path.write_bytes(mutate(whole, random.Random(seed)))
        try:
            paths, labels = read_annotation(path)
            check_trainable(labels, path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error), seed
            refused += 1
        else:
            assert len(paths) == len(labels) and set(map(int, labels)) == set(range(int(max(labels)) + 1)), seed
            assert all(str(path).strip() for path in paths), seed
    assert count / 4 < refused < count


@faults
def test_a_run_that_is_killed_fifty_times_ends_as_one_that_is_not(shared, tmp_path):
    annotation = write_faces(shared, tmp_path / "cls_train.txt", identities=8)
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", 12, "--val-split", 0.1,
                 "--checkpoint-every", 0.0001, "--num-workers", 1, "--ema", 0.9]
    subprocess.run(train_command(*arguments, "--save-dir", "whole"), cwd=tmp_path, check=True, capture_output=True)
    generator, kills, command = random.Random(1), 0, train_command(*arguments)
    while True:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   encoding="utf-8", start_new_session=True)
        if kills < 50:
            wait_for_steps(process, tmp_path, generator.randrange(3))
            time.sleep(generator.random() * 0.3)
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        printed, _ = process.communicate(timeout=600)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, printed
        if list(tmp_path.glob("logs/*/last.pt")):
            command = train_command("--resume")
    assert_same_weights(only_run(tmp_path / "whole"), only_run(tmp_path / "logs"))


def wait_for_steps(process, folder, count):
    """Wait until the process has written last.pt `count` times, or has ended."""
    last, seen = None, -1
    while process.poll() is None and seen < count:
        found = [path.stat().st_mtime_ns for path in folder.glob("logs/*/last.pt")]
        if found and found[0] != last:
            last, seen = found[0], seen + 1
        time.sleep(0.005)


@faults
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_ten_thousand_predictions_are_the_same_and_take_no_more_memory():
    arcface = Arcface(model_path=ROOT / "model_data" / "arcface_mobilefacenet.pth", device="cpu")
    images = sorted(ROOT.glob("img/?_00?.jpg"))
    pairs = [(first, second) for first in images for second in images]
    expected = [arcface.verify(*pair) for _ in range(2) for pair in pairs][-len(pairs):]
    before = resident_megabytes()
    for number in range(10_000):
        assert arcface.verify(*pairs[number % len(pairs)]) == expected[number % len(pairs)]
    assert resident_megabytes() < before + 20


def resident_megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
