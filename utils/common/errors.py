"""A user's mistake ends a script with one line on stderr and exit status 2; a bug keeps its traceback."""
import argparse
import functools
import gc
import os
import sys
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: the message names the file and the remedy."""


def tell(line):
    """Print a line on stderr; of torchrun's processes rank 0 alone does, or the first other one where it has none."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        print(line, file=sys.stderr)
    else:
        from utils.common.distributed import tell_once  # it imports this file
        tell_once(line)


def one_line(error):
    """What an exception says, without line ends; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def script(main):
    """Decorate a script's main(): a UserError is reported in one line, Ctrl-C and a reader who leaves end quietly.

    main() returns None, or the status to exit with.
    """
    @functools.wraps(main)
    def run():
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # names may hold what the terminal or the pipe cannot show
                stream.reconfigure(errors="backslashreplace")
        try:
            status = main()
            sys.stdout.flush()
        except BrokenPipeError:  # such as `predict.py ... | head -1`
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for what Python flushes at exit
            status = 1
        except UserError as error:
            # An error raised in a DataLoader worker arrives with the worker's traceback above its own last line.
            message = str(error).strip().splitlines()[-1].removeprefix("utils.common.errors.UserError: ")
            status = 2
        except KeyboardInterrupt:
            status = 130
        # Here the traceback is gone, and with it what it held: DataLoaders have ended their workers in order.
        gc.collect()
        if status == 2:
            tell(f"{Path(sys.argv[0]).name}: {message}")
        if status:
            sys.exit(status)
    return run


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default, unless the help tells it in words."""

    def _get_help_string(self, action):
        return action.help if "(default:" in action.help else super()._get_help_string(action)


class SettingsParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, whose flags are never abbreviated and whose help shows defaults."""

    def __init__(self, docstring, **kwargs):
        super().__init__(description=docstring.strip().splitlines()[0], allow_abbrev=False,
                         formatter_class=HelpFormatter, **kwargs)

    def error(self, message):
        tell(f"{self.prog}: {message} (see python {self.prog} --help)")
        sys.exit(2)
