"""utils/common/download.py: a server on this machine stands for the internet."""
import hashlib
import re
import socket
import time

import pytest
from conftest import files, send

from utils.common import download as module
from utils.common.download import download
from utils.common.errors import UserError

CONTENT = bytes(range(256)) * 10_000  # 2.5 MB: several blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_what_is_downloaded_is_what_was_sent_under_any_name(server, tmp_path):
    server.files["/a"] = CONTENT
    path = tmp_path / "权 重" / "a;b.pth"
    assert download(f"{server.address}/a", path, SHA256) == SHA256
    assert path.read_bytes() == CONTENT and files(tmp_path) == ["权 重/a;b.pth"]


def test_content_without_a_length_is_downloaded(server, tmp_path):
    server.files["/a"] = lambda handler: send(handler, CONTENT, {})
    download(f"{server.address}/a", tmp_path / "a.pth", SHA256.upper())
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_file_that_is_there_is_not_downloaded_again(nowhere, tmp_path):
    (tmp_path / "a.pth").write_bytes(CONTENT)
    for known in (SHA256, None):
        assert download(f"{nowhere}/a", tmp_path / "a.pth", known) == SHA256
    assert files(tmp_path) == ["a.pth"]


def test_a_wrong_file_that_is_there_is_a_user_error_and_stays(server, tmp_path):
    server.files["/a"] = CONTENT
    (tmp_path / "a.pth").write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"a\.pth is not the published file: remove it.*{SHA256}"):
        download(f"{server.address}/a", tmp_path / "a.pth", SHA256)
    assert (tmp_path / "a.pth").read_bytes() == b"mine" and server.asked == []


def test_a_download_with_another_hash_is_not_kept(server, tmp_path):
    server.files["/a"] = CONTENT + b"!"
    with pytest.raises(UserError, match=f"{server.address}/a is not the published file.*{SHA256}"):
        download(f"{server.address}/a", tmp_path / "a.pth", SHA256)
    assert files(tmp_path) == []


def test_an_unknown_hash_is_recorded_and_held_against_the_next_download(server, tmp_path):
    server.files["/a"] = CONTENT
    path = tmp_path / "a.pth"
    assert download(f"{server.address}/a", path) == SHA256
    assert (tmp_path / "a.pth.sha256").read_text(encoding="utf-8") == f"{SHA256}  a.pth\n"

    path.unlink()
    server.files["/a"] = b"another"
    with pytest.raises(UserError, match=r"recorded in .*a\.pth\.sha256: try again"):
        download(f"{server.address}/a", path)
    assert files(tmp_path) == ["a.pth.sha256"]

    path.write_bytes(b"changed on disk")
    with pytest.raises(UserError, match=r"a\.pth is not the one recorded in .*a\.pth\.sha256: remove it"):
        download(f"{server.address}/a", path)


def cut_short(handler):
    send(handler, CONTENT[:1_500_000], {"Content-Length": len(CONTENT)})


def cut_chunks(handler):
    send(handler, b"10000\r\n" + CONTENT[:50_000], {"Transfer-Encoding": "chunked"})


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def talk_nonsense(handler):
    handler.wfile.write(b"220 this is not HTTP\r\n")


def say_nonsense_length(handler):
    send(handler, CONTENT, {"Content-Length": "many"})


@pytest.mark.parametrize("answer, words", [
    (None, "404"), (lambda handler: handler.send_error(503), "503"), (hang_up, ""), (talk_nonsense, ""),
    (cut_short, f"1500000 of {len(CONTENT)} bytes"), (cut_chunks, ""), (say_nonsense_length, "many")])
@pytest.mark.parametrize("known", [SHA256, None], ids=["known", "unknown"])
def test_a_download_that_fails_says_what_to_put_where_and_leaves_nothing(server, tmp_path, answer, words, known):
    server.files["/a"] = answer
    with pytest.raises(UserError) as caught:
        download(f"{server.address}/a", tmp_path / "a.pth", known)
    for part in (f"cannot download {server.address}/a", words, f"put it at {tmp_path / 'a.pth'}"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and files(tmp_path) == []


@pytest.fixture
def waits(monkeypatch):
    """The pauses between attempts, which are not waited for."""
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


class Resumable:
    """Breaks off its answers after a million bytes, and goes on where it is asked to; or does neither a third time."""

    def __init__(self, ranges=True, version='"1"'):
        self.ranges, self.version, self.asked = ranges, version, []

    def __call__(self, handler):
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0
        if handler.headers.get("If-Range", self.version) != self.version:
            start = 0
        end = min(len(CONTENT), start + 1_000_000) if self.ranges or len(self.asked) < 3 else len(CONTENT)
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.send_header("ETag", self.version)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.end_headers()
        handler.wfile.write(CONTENT[start:end])


@pytest.mark.parametrize("answer, asked", [
    (Resumable(), [None, "bytes=1000000-", "bytes=2000000-"]),
    (Resumable(ranges=False), [None, "bytes=1000000-", "bytes=1000000-"])], ids=["resumed", "from the start"])
def test_what_breaks_off_goes_on_where_the_server_can(server, tmp_path, waits, answer, asked):
    server.files["/a"] = answer
    assert download(f"{server.address}/a", tmp_path / "a.pth") == SHA256
    assert (tmp_path / "a.pth").read_bytes() == CONTENT and answer.asked == asked and len(waits) == 2


def test_a_file_that_changes_between_attempts_is_fetched_from_its_start(server, tmp_path, waits):
    versions = []

    def answer(handler):
        versions.append(handler.headers.get("If-Range"))
        content = CONTENT if len(versions) > 1 else b"old" * 900_000
        send(handler, content[:2_600_000], {"Content-Length": len(content), "ETag": f'"{len(versions)}"'})
    server.files["/a"] = answer
    assert download(f"{server.address}/a", tmp_path / "a.pth", SHA256) == SHA256
    assert (tmp_path / "a.pth").read_bytes() == CONTENT and versions == [None, '"1"']


@pytest.mark.parametrize("answer, attempts", [
    (lambda handler: handler.send_error(500), 4), (hang_up, 4), (cut_short, 4), (None, 1), (say_nonsense_length, 1),
    (lambda handler: send(handler, b"<html>", {"Content-Type": "text/html; charset=utf-8"}), 1)],
    ids=["500", "hung up", "cut", "404", "nonsense", "page"])
def test_only_what_may_pass_is_tried_again(server, tmp_path, waits, answer, attempts):
    server.files["/a"] = answer
    with pytest.raises(UserError, match=f"cannot download {server.address}/a"):
        download(f"{server.address}/a", tmp_path / "a.pth", SHA256)
    assert len(server.asked) == attempts and waits == [module.PAUSE] * (attempts - 1)


def test_a_web_page_is_called_one(server, tmp_path):
    page = b"<html>Welcome to our hotel</html>"
    server.files["/a"] = lambda handler: send(handler, page, {"Content-Type": "text/html", "Content-Length": len(page)})
    for known in (SHA256, None):
        with pytest.raises(UserError, match=r"a web page came .*login.*put it at .*a\.pth"):
            download(f"{server.address}/a", tmp_path / "a.pth", known)
    assert files(tmp_path) == []


def test_a_server_that_drips_for_ever_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 0.2)

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"drop")
            time.sleep(0.02)
    server.files["/a"] = drip
    began = time.monotonic()
    with pytest.raises(UserError, match="bytes in 0 minutes"):
        download(f"{server.address}/a", tmp_path / "a.pth", SHA256)
    assert time.monotonic() - began < 1.5 and len(server.asked) == 1 and files(tmp_path) == []


def test_what_is_not_right_is_not_recorded(server, tmp_path):
    server.files["/a"] = CONTENT
    with pytest.raises(UserError, match=r"what came from .*put it at .*a\.pth"):
        download(f"{server.address}/a", tmp_path / "a.pth", is_right=lambda path: path.read_bytes() != CONTENT)
    assert files(tmp_path) == []
    download(f"{server.address}/a", tmp_path / "a.pth", is_right=lambda path: path.read_bytes() == CONTENT)
    assert files(tmp_path) == ["a.pth", "a.pth.sha256"]


def test_a_length_that_is_too_short_does_not_pass_for_the_whole(server, tmp_path):
    server.files["/a"] = lambda handler: send(handler, CONTENT, {"Content-Length": len(CONTENT) - 1})
    with pytest.raises(UserError, match="is not the published file"):
        download(f"{server.address}/a", tmp_path / "a.pth", SHA256)
    assert files(tmp_path) == []


def test_nothing_is_at_its_place_before_all_of_it_came(server, tmp_path):
    seen = []

    def look_half_way(handler):
        half = len(CONTENT) // 2
        send(handler, CONTENT[:half], {"Content-Length": len(CONTENT)})
        seen.append((tmp_path / "a.pth").exists())
        handler.wfile.write(CONTENT[half:])
    server.files["/a"] = look_half_way
    download(f"{server.address}/a", tmp_path / "a.pth", SHA256)
    assert seen == [False] and files(tmp_path) == ["a.pth"]


def test_a_place_that_cannot_be_written_is_not_called_a_network_problem(server, tmp_path):
    server.files["/a"] = CONTENT
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot write"):
        download(f"{server.address}/a", tmp_path / "file" / "a.pth", SHA256)
    assert files(tmp_path) == ["file"]
