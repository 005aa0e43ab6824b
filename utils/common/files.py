"""Finding, reading, writing, hashing and downloading files. An interrupted run never leaves half of one."""
import functools
import hashlib
import os
import re
import secrets
import sys
import time
import unicodedata
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import torch

from utils.common.errors import UserError, first_line

REPOSITORY = Path(__file__).resolve().parents[2]
A_DAY = 24 * 3600


def locate(path):
    """The path of a file, relative to the caller -> where it is.

    What is under model_data/ and not there is the repository's own, beside the code: the scripts and Arcface work from
    any folder.
    """
    path = Path(path)
    if path.exists() or path.parts[:1] != ("model_data",) or Path.cwd() == REPOSITORY:
        return path
    return REPOSITORY / path


def identity_name(folder_name):
    """Return the name of an identity, in Unicode's NFC: two folders whose names differ in NFC and NFD alone are one."""
    return unicodedata.normalize("NFC", folder_name)


def is_folder(entry):
    """-> whether an entry of os.scandir is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


@contextmanager
def atomic_write(path, durable=True):
    """Yield a temporary path beside `path`; when the block succeeds it becomes `path`, else it is removed.

    The file that was at `path` stays whole until the new one is complete. Raises UserError where it cannot be
    written. durable: wait until the new one is on the disk, so that not even a power cut leaves half of it.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"cannot write {str(path)!r}: that is no file name")
    # Not the process's number, which two computers or containers may share, as may threads.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        yield temporary
        if durable:
            with open(temporary, "r+b") as file:  # Windows does not sync a file that is open for reading
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@functools.cache
def remove_leftovers(folder):
    """Remove the temporary files of killed processes from a folder: those older than a day, once per process."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if re.fullmatch(r"\..+\.[0-9a-f]+\.tmp(\.[0-9a-f]+\.partial)?", entry.name, re.DOTALL):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > A_DAY:
                        os.unlink(entry)


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


def hash_file(path):
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url, path, sha256=None, check=None):
    """Fetch `url` into `path` unless that file exists, and compare its SHA-256.

    If the hash is not known, check(path of the temporary file) has to accept what was fetched: it raises UserError.
    Raises UserError if the file cannot be fetched or is another one; `path` is then as it was.
    """
    path = Path(path)
    if path.is_file():
        if sha256 and hash_file(path) != sha256:
            raise UserError(f"{path} is not the published file (its SHA-256 is not {sha256}): remove it and try again")
        return
    remedy = f"try again with a network, or download {url} elsewhere and put it at {path}"
    with atomic_write(path) as temporary:
        try:
            torch.hub.download_url_to_file(url, temporary, hash_prefix=sha256, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, ValueError, HTTPException) as error:
            raise UserError(f"cannot download {url} ({first_line(error)}): {remedy}") from None
        try:
            check is None or check(temporary)
        except UserError as error:
            raise UserError(f"what came from {url} is not the file ({first_line(error)}): {remedy}") from None
