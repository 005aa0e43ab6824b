"""A user's error ends a script with one line on stderr and exit status 2; a bug keeps its traceback."""
import argparse
import functools
import gc
import math
import os
import sys
from contextlib import suppress
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix. The message is one line that names the file and the remedy."""


def print_error(line):
    """Print a line on stderr; torchrun's ranks put theirs before it."""
    rank = f"rank {os.environ['RANK']}: " if "LOCAL_RANK" in os.environ else ""
    print(f"{rank}{line}", file=sys.stderr, flush=True)


def first_line(error):
    """Return the first line of an exception's message, or the name of its class if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def number(kind=float, minimum=-math.inf, maximum=math.inf, above=-math.inf, below=math.inf):
    """Return a type for argparse: a finite number in [minimum, maximum] and strictly between `above` and `below`."""
    limits = {"of at least": minimum, "of at most": maximum, "above": above, "below": below}
    given = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))

    def parse(text):
        with suppress(ValueError, OverflowError):
            value = kind(text)
            if math.isfinite(value) and minimum <= value <= maximum and above < value < below:
                return value
        name = "an integer" if kind is int else "a finite number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {' '.join(filter(None, (name, given)))}")
    return parse


positive_int = number(int, minimum=1)
non_negative_int = number(int, minimum=0)
non_negative_float = number(minimum=0)


def script(main):
    """Decorate a script's main(): print a UserError, or a PermissionError, as one line; end quietly on Ctrl-C and
    on a closed pipe. main() returns None, or the exit status.
    """
    @functools.wraps(main)
    def run():
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # names may hold characters that the terminal cannot show
                stream.reconfigure(errors="backslashreplace")
        try:
            status = main()
            sys.stdout.flush()
        except BrokenPipeError:  # such as `predict.py ... | head -1`
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for what Python flushes at exit
            status = 1
        except (UserError, PermissionError) as error:
            # An error raised in a DataLoader worker arrives with the worker's traceback above its own last line.
            message = str(error).strip().splitlines()[-1].removeprefix("utils.common.errors.UserError: ")
            print_error(f"{Path(sys.argv[0]).name}: {message}")
            status = 2
        except KeyboardInterrupt:
            status = 130
        gc.collect()  # the traceback is gone, so DataLoaders that it held end their workers in order
        if status:
            sys.exit(status)
    return run


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default, unless the help states it in words."""

    def _get_help_string(self, action):
        return action.help if "(default:" in action.help else super()._get_help_string(action)


class SettingsParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, whose flags are never abbreviated and whose help shows defaults."""

    def __init__(self, docstring, **kwargs):
        super().__init__(description=docstring.strip().splitlines()[0], allow_abbrev=False,
                         formatter_class=HelpFormatter, **kwargs)

    def error(self, message):
        print_error(f"{self.prog}: {message} (see python {self.prog} --help)")
        sys.exit(2)
