"""A user's mistake ends a script with one line on stderr and exit status 2; a bug keeps its traceback."""
import argparse
import functools
import sys
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: the message names the file and the remedy."""


def script(main):
    """Decorate a script's main(): report a UserError in one line, and end quietly on Ctrl-C."""
    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            # An error raised in a DataLoader worker arrives with the worker's traceback above its own last line.
            message = str(error).strip().splitlines()[-1].removeprefix("utils.errors.UserError: ")
            print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
    return run


class SettingsParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, whose flags are never abbreviated and whose help shows defaults."""

    def __init__(self, docstring, **kwargs):
        super().__init__(description=docstring.strip().splitlines()[0], allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message):
        print(f"{self.prog}: {message} (see python {self.prog} --help)", file=sys.stderr)
        sys.exit(2)
