"""utils/common/files.py: a file is written whole or not at all."""
import hashlib
import os
import time
from pathlib import Path

import pytest
from conftest import ROOT, files, send

from utils.common.errors import UserError
from utils.common.files import atomic_write, download, locate, read_lines, write_text


def test_a_file_is_replaced_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_text_keeps_its_letters_and_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "王;a b\n\u2028\n")
    assert (tmp_path / "a.txt").read_bytes() == "王;a b\n\u2028\n".encode()
    assert read_lines(tmp_path / "a.txt", "") == ["王;a b", "\u2028"]


def test_a_place_that_cannot_be_written_is_a_user_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.x\.txt"):
        write_text(tmp_path / "file" / "x.txt", "")


def test_the_new_file_is_synced_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """On Windows fsync of another is an error."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.write(number, b"")))
    write_text(tmp_path / "a.txt", "x")
    assert synced == [0]


def test_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """Two computers that share a folder may give their processes the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with atomic_write(tmp_path / "a.txt") as first, atomic_write(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


def test_what_killed_processes_left_goes_after_a_day_and_nothing_else(tmp_path):
    old = [".a.pth.0123456789abcdef.tmp", ".a.pth.4711.tmp", "a.tmp", ".hidden.tmp", ".a.pth.mine.tmp", "a.pth"]
    for name in (*old, ".b.pth.fedcba9876543210.tmp"):
        (tmp_path / name).write_text("")
    for name in old:
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    write_text(tmp_path / "c.txt", "")
    assert sorted(os.listdir(tmp_path)) == [
        ".a.pth.mine.tmp", ".b.pth.fedcba9876543210.tmp", ".hidden.tmp", "a.pth", "a.tmp", "c.txt"]


def test_model_data_is_beside_the_code_unless_the_caller_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "model_data/lfw_pair.txt"
    assert locate(name) == ROOT / name and locate(name).is_file()
    assert locate("cls_train.txt") == Path("cls_train.txt") and locate(tmp_path / name) == tmp_path / name
    write_text(tmp_path / name, "mine")
    assert locate(name).read_text() == "mine"
    monkeypatch.chdir(ROOT)
    assert locate(name) == Path(name) and locate("model_data/to_come.pth") == Path("model_data/to_come.pth")


# A server on this machine stands for the internet.

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_downloaded_under_any_name_once(server, tmp_path):
    server.files["/a"] = CONTENT
    path = tmp_path / "权 重" / "a;b.pth"
    for _ in range(2):
        download(f"{server.address}/a", path, SHA256)
    assert path.read_bytes() == CONTENT and files(tmp_path) == ["权 重/a;b.pth"] and server.asked == ["/a"]


def test_another_file_at_its_place_is_a_user_error_and_stays(nowhere, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"a\.pth is not the published file .*{SHA256}.*remove it"):
        download(f"{nowhere}/a", tmp_path / "a.pth", SHA256)
    assert (tmp_path / "a.pth").read_bytes() == b"mine"


def cut_short(handler):
    send(handler, CONTENT[:5000], {"Content-Length": len(CONTENT)})


def send_nonsense(handler):
    handler.wfile.write(b"220 this is not HTTP\r\n")


@pytest.mark.parametrize("answer, words", [
    (None, "404"), (lambda handler: handler.send_error(503), "503"), (cut_short, "hash"), (send_nonsense, ""),
    (b"<html>log in</html>", "hash"), (CONTENT + b"!", "hash")],
    ids=["missing", "busy", "cut", "nonsense", "page", "longer"])
def test_a_failed_download_is_one_line_with_the_remedy_and_leaves_nothing(server, tmp_path, answer, words):
    server.files["/a"] = answer
    with pytest.raises(UserError) as caught:
        download(f"{server.address}/a", tmp_path / "a.pth", SHA256)
    for part in (f"cannot download {server.address}/a", words, f"put it at {tmp_path / 'a.pth'}"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and files(tmp_path) == []


def test_a_file_of_unknown_hash_has_to_pass_its_check(server, tmp_path):
    def check(path):
        if path.read_bytes() != CONTENT:
            raise UserError("is no such file")
    server.files["/a"] = b"<html>log in</html>"
    with pytest.raises(UserError, match=r"what came from .*/a is not the file \(is no such file\).*put it at .*a\.pth"):
        download(f"{server.address}/a", tmp_path / "a.pth", check=check)
    assert files(tmp_path) == []
    server.files["/a"] = CONTENT
    download(f"{server.address}/a", tmp_path / "a.pth", check=check)
    assert files(tmp_path) == ["a.pth"]
