"""Writing files so that an interrupted run never leaves half of one."""
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.machine.errors import UserError


@contextmanager
def atomic_write(path, durable=True):
    """Yield a temporary path beside `path`; when the block succeeds it becomes `path`, else it is removed.

    The file that was at `path` stays whole until the new one is complete. Raises UserError where it cannot be
    written. durable: wait until the new one is on the disk, so that not even a power cut leaves half of it.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"cannot write {str(path)!r}: that is no file name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_lines(path, remedy):
    """The lines of a UTF-8 text file without their ends; a missing or unreadable one is a UserError."""
    try:
        # Not splitlines(): it also cuts at U+2028 and form feeds, which a file name may hold.
        return Path(path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as UTF-8 text: {error}") from None
