"""utils/common/files.py: a file is written whole or not at all."""
import os
import time
from pathlib import Path

import pytest
from conftest import ROOT

from utils.common.errors import UserError
from utils.common.files import atomic_write, locate, read_lines, write_text


def test_a_file_is_replaced_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_text_keeps_its_letters_and_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "王;a b\n\u2028\n")
    assert (tmp_path / "a.txt").read_bytes() == "王;a b\n\u2028\n".encode()
    assert read_lines(tmp_path / "a.txt", "") == ["王;a b", "\u2028"]


def test_a_place_that_cannot_be_written_is_a_user_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.x\.txt"):
        write_text(tmp_path / "file" / "x.txt", "")


def test_the_new_file_is_synced_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """On Windows fsync of another is an error."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.write(number, b"")))
    write_text(tmp_path / "a.txt", "x")
    assert synced == [0]


def test_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """Two computers that share a folder may give their processes the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with atomic_write(tmp_path / "a.txt") as first, atomic_write(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


def test_what_killed_processes_left_goes_after_a_day_and_nothing_else(tmp_path):
    old = [".a.pth.0123456789abcdef.tmp", ".a.pth.4711.tmp", "a.tmp", ".hidden.tmp", ".a.pth.mine.tmp", "a.pth"]
    for name in (*old, ".b.pth.fedcba9876543210.tmp"):
        (tmp_path / name).write_text("")
    for name in old:
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    write_text(tmp_path / "c.txt", "")
    assert sorted(os.listdir(tmp_path)) == [
        ".a.pth.mine.tmp", ".b.pth.fedcba9876543210.tmp", ".hidden.tmp", "a.pth", "a.tmp", "c.txt"]


def test_model_data_is_beside_the_code_unless_the_caller_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "model_data/lfw_pair.txt"
    assert locate(name) == ROOT / name and locate(name).is_file()
    assert locate("cls_train.txt") == Path("cls_train.txt") and locate(tmp_path / name) == tmp_path / name
    write_text(tmp_path / name, "mine")
    assert locate(name).read_text() == "mine"
    monkeypatch.chdir(ROOT)
    assert locate(name) == Path(name) and locate("model_data/to_come.pth") == Path("model_data/to_come.pth")
