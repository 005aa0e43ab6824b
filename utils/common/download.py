"""Fetching a file from the internet: whole, checked, and never over a good one."""
import hashlib
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from tqdm import tqdm

from utils.common.errors import UserError, one_line
from utils.common.files import atomic_write, write_text

ATTEMPTS = 4      # three after the first
PAUSE = 1.0       # seconds between them
SILENCE = 30.0    # seconds without a byte after which an attempt has failed
LONGEST = 3600.0  # seconds for all of it: iResNet-50 has 174 MB, and a server may send a byte now and then for ever


def download(url, path, sha256=None, is_right=None):
    """Fetch `url` into `path` unless it is there already. -> its SHA-256, checked where `sha256` is given.

    Where it is not known the one found is written to <path>.sha256, and a later download must agree with it. Before,
    is_right(path of what came) has to be true.
    Raises UserError, which says what to put where, without a network or with a file that is not the right one;
    `path` is then as it was.
    """
    path, record = Path(path), Path(f"{path}.sha256")
    expected = sha256 or read_record(record)
    right = "the published file" if sha256 else f"the one recorded in {record}"
    if path.is_file():
        return check_hash(path, expected, f"{path} is not {right}: remove it and try again")
    by_hand = f"or download {url} elsewhere and put it at {path}"
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            for offset, block in receive(url, path.name, f"try again with a network, {by_hand}"):
                file.seek(offset)
                file.write(block)
            file.truncate()  # a first attempt may have been longer
        found = check_hash(temporary, expected, f"what came from {url} is not {right}: try again, {by_hand}")
        if expected is None and is_right and not is_right(temporary):
            raise UserError(f"what came from {url} is not what it is to be, but may be the page of a network that asks "
                            f"for a login: try again, {by_hand}")
    if expected is None:
        write_text(record, f"{found}  {path.name}\n")  # the format of sha256sum
    return found


def receive(url, name, remedy):
    """Yield (offset, block) of the content of `url`, behind a progress bar called `name`.

    An attempt that breaks off is followed by another, which goes on there where the server can, else from the start.
    Raises UserError unless all comes.
    """
    began, received, version = time.monotonic(), 0, None
    with tqdm(desc=name, unit="B", unit_scale=True, disable=None) as bar:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(ask(url, received, version), timeout=SILENCE) as answer:
                    offset, bar.total = what_comes(answer, received)
                    bar.update(offset - received)
                    received, version = offset, answer.headers.get("ETag")
                    while block := answer.read1(1 << 20):
                        yield received, block
                        received += len(block)
                        bar.update(len(block))
                        if time.monotonic() - began > LONGEST:
                            raise TimeoutError(f"{received} bytes in {LONGEST / 60:.0f} minutes")
                if received < (bar.total or 0):
                    raise ConnectionError(f"{received} of {bar.total} bytes came")
                return
            except (OSError, ValueError, HTTPException) as error:  # URLError, timeouts and resets are OSErrors
                if attempt == ATTEMPTS or is_final(error) or time.monotonic() - began > LONGEST:
                    raise UserError(f"cannot download {url} ({one_line(error)}): {remedy}") from None
            time.sleep(PAUSE)


def ask(url, received, version):
    """-> the request for what is missing of `url` after `received` bytes of this version (its ETag, or None)."""
    headers = {}
    if received:
        headers["Range"] = f"bytes={received}-"
        if version and not version.startswith("W/"):
            headers["If-Range"] = version  # of another version all is to come
    return urllib.request.Request(url, headers=headers)


def what_comes(answer, received):
    """-> (the offset of the first byte of an answer, at most `received`, the size of the whole or None).

    Raises ValueError for a web page, which is no file that this program asks for, and for a gap.
    """
    if answer.headers.get_content_type() == "text/html":
        raise ValueError("a web page came instead of the file, as from a network that asks for a login")
    length = answer.headers.get("Content-Length")
    offset = int(answer.headers["Content-Range"].split()[1].split("-")[0]) if answer.status == 206 else 0
    if offset > received:
        raise ValueError(f"bytes from {offset} on came instead of those from {received} on")
    return offset, offset + int(length) if length else None


def is_final(error):
    """Whether another attempt would end as this one did: an answer that was understood and is not the file."""
    if isinstance(error, HTTPError):
        return error.code < 500 and error.code not in (408, 429)  # too slow, too many requests
    return isinstance(error, ValueError)


def read_record(path):
    """The hash that a sha256sum file begins with, or None where there is no such file."""
    words = path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []
    return words[0] if words else None


def hash_file(path):
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path, expected, message):
    """-> the SHA-256 of the file. Raises UserError where another is expected."""
    found = hash_file(path)
    if expected and found != expected.lower():
        raise UserError(f"{message} (its SHA-256 is {found} instead of {expected})")
    return found
