"""utils/machine/files.py: a file is written whole or not at all."""
import os

import pytest

from utils.machine.errors import UserError
from utils.machine.files import atomic_write, read_lines, write_text


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
