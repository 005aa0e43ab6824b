"""What C libraries print to stderr by themselves, such as libjpeg's warnings, which name no file."""
import os
import tempfile
from contextlib import contextmanager
from types import SimpleNamespace

kept = {}  # process -> the file that takes it; one of its own after a fork


@contextmanager
def caught_stderr():
    """Keep it off stderr. Yields an object whose `text` is, behind the block, what came, "" for nothing.

    For one thread at a time: stderr is of the whole process. Costs 5 us where nothing comes.
    """
    caught = SimpleNamespace(text="")
    try:
        if os.getpid() not in kept:
            kept[os.getpid()] = tempfile.TemporaryFile()  # noqa: SIM115, open until the process ends
        file = kept[os.getpid()].fileno()
        before = os.dup(2)
        os.dup2(file, 2)
    except OSError:  # no stderr, or nowhere to keep it
        yield caught
        return
    try:
        yield caught
    finally:
        os.dup2(before, 2)
        os.close(before)
        length = os.lseek(file, 0, os.SEEK_CUR)
        if length:
            os.lseek(file, 0, os.SEEK_SET)
            caught.text = os.read(file, length).decode("utf-8", "replace").strip()
            os.lseek(file, 0, os.SEEK_SET)
            os.ftruncate(file, 0)
