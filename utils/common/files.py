"""Finding, reading, writing, hashing and downloading files. An interrupted run never leaves half of one."""
import hashlib
import os
import secrets
import socket
import sys
import threading
import unicodedata
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import torch

from utils.common.errors import UserError, first_line

REPOSITORY = Path(__file__).resolve().parents[2]
SILENCE = 30  # seconds without an answer, after which a download fails
DOWNLOADING = threading.Lock()  # one download at a time: the timeout of sockets is one for all threads


def locate(path):
    """Return `path`, or the repository's file of that name if the working folder has no such file under model_data/."""
    path = Path(path)
    if path.exists() or path.parts[:1] != ("model_data",) or Path.cwd() == REPOSITORY:
        return path
    return REPOSITORY / path


def identity_name(folder_name):
    """Return a name in Unicode's NFC: two folders whose names differ in NFC and NFD alone are one identity."""
    return unicodedata.normalize("NFC", folder_name)


@contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`, which replaces `path` when the block succeeds and is removed if it fails.

    The old file stays whole until the new one is on the disk, also through a power cut. Raises UserError if the file
    cannot be written.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"cannot write {path}: it is a folder")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # unique among computers and threads too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "r+b") as file:  # Windows does not sync a file that is open for reading
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
    """Return the lines of a UTF-8 text file without their ends. Raises UserError if it cannot be read."""
    try:  # splitlines() would also cut at U+2028 and form feeds, which a file name may hold
        return Path(path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as UTF-8 text: {error}") from None


def hash_file(path):
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(url, path, sha256=None, check=None):
    """Fetch `url` into `path` unless that file exists, and compare its SHA-256.

    check: called with the path of the new file, it raises UserError to reject one whose hash is not known.
    Raises UserError if the file cannot be fetched or is another one; `path` is then unchanged.
    """
    path = Path(path)
    with DOWNLOADING:
        if path.is_file():
            if sha256 and hash_file(path) != sha256:
                raise UserError(f"{path} is not the published file (SHA-256 {sha256}): remove it and try again")
            return
        timeout = socket.getdefaulttimeout()
        with atomic_write(path) as temporary:
            try:
                socket.setdefaulttimeout(SILENCE)  # torch.hub sets none: behind a firewall it would wait forever
                torch.hub.download_url_to_file(url, temporary, hash_prefix=sha256, progress=sys.stderr.isatty())
                if check:
                    check(temporary)
            except (OSError, RuntimeError, ValueError, HTTPException, UserError) as error:
                raise UserError(f"cannot download {url} ({first_line(error)}): try again with a network, or download "
                                f"it elsewhere and put it at {path}") from None
            finally:
                socket.setdefaulttimeout(timeout)
