"""utils/common/errors.py: numbers in flags, the length of messages, and how a script ends."""
import io
import os
import pickle
import subprocess
import sys

import pytest
from conftest import ROOT

from utils.common.errors import (
    SettingsParser,
    UserError,
    first_line,
    non_negative_float,
    non_negative_int,
    number,
    positive_int,
    script,
)


@pytest.fixture
def parse(capsys):
    """parse(type, text) returns the number, or the line that is printed."""
    def run(kind, text):
        parser = SettingsParser("A script.", prog="script.py")
        parser.add_argument("--value", type=kind)
        try:
            return parser.parse_args([f"--value={text}"]).value
        except SystemExit as end:
            assert end.code == 2
            line, = capsys.readouterr().err.splitlines()
            return line
    return run


@pytest.mark.parametrize("kind, texts", [
    (positive_int, ["1", "70"]), (non_negative_int, ["0", "3"]), (number(), ["-1e3", "0"]),
    (number(above=0), ["1e-9", "2"]), (non_negative_float, ["0", "2.5"]), (number(minimum=0, below=1), ["0", "0.999"])])
def test_numbers_in_range_are_taken(parse, kind, texts):
    assert [parse(kind, text) for text in texts] == list(map(float, texts))


@pytest.mark.parametrize("kind, texts, words", [
    (positive_int, ["0", "-1", "1.5", "nan", "x", "1e400"], "is not an integer of at least 1"),
    (number(), ["nan", "inf", "-inf", "1e999", "x", ""], "is not a finite number"),
    (number(above=0), ["0", "nan", "inf"], "is not a finite number above 0"),
    (number(minimum=0, maximum=1), ["-0.1", "1.1", "nan"], "is not a finite number of at least 0 and of at most 1"),
    (number(minimum=0, below=1), ["1"], "at least 0 and below 1")])
def test_other_numbers_are_one_line_and_status_2(parse, kind, texts, words):
    for text in texts:
        assert words in (line := parse(kind, text)) and line.startswith("script.py: argument --value: "), line


def test_an_error_keeps_its_lines_on_its_way_from_a_worker():
    error = pickle.loads(pickle.dumps(UserError("first\nsecond")))
    assert str(error) == "first\nsecond" and first_line(error) == "first" and first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("error, status, line", [
    (UserError("Traceback of a worker\nutils.common.errors.UserError: a.jpg is damaged: remove it"), 2,
     "script.py: a.jpg is damaged: remove it\n"),
    (PermissionError(13, "Permission denied", "a.pth"), 2, "script.py: [Errno 13] Permission denied: 'a.pth'\n"),
    (KeyboardInterrupt(), 130, ""), (BrokenPipeError(), 1, "")])
@pytest.mark.parametrize("rank", [None, "1"])
def test_a_script_ends_with_one_line(monkeypatch, capsys, error, status, line, rank):
    monkeypatch.setattr(sys, "argv", ["/anywhere/script.py"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which a closed pipe replaces
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("RANK", rank)

    @script
    def main():
        raise error
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status
    assert capsys.readouterr().err == (f"rank {rank}: {line}" if rank and line else line)


def test_a_letter_that_the_output_cannot_show_is_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    script(lambda: print("王"))()
    assert sys.stdout.buffer.getvalue() == b"\\u738b\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
def test_a_script_whose_output_is_a_closed_pipe_prints_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    code = "from utils.common.errors import script; script(lambda: print('a line'))()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")
