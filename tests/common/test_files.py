"""utils/common/files.py: a file is written whole or not at all."""
import hashlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
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


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_text_keeps_its_letters_and_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "王;a b\n\u2028\n")
    assert (tmp_path / "a.txt").read_bytes() == "王;a b\n\u2028\n".encode()
    assert read_lines(tmp_path / "a.txt", "") == ["王;a b", "\u2028"]


@pytest.mark.parametrize("name", ["file/x.txt", "folder", "", "x" * 300])
def test_a_place_that_cannot_be_written_is_a_user_error_that_names_it(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"cannot write {tmp_path / name}: "):
        write_text(tmp_path / name, "")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_model_data_is_beside_the_code_unless_the_caller_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "model_data/lfw_pair.txt"
    assert locate(name) == ROOT / name and locate(name).is_file()
    assert locate("cls_train.txt") == Path("cls_train.txt") and locate(tmp_path / name) == tmp_path / name
    write_text(tmp_path / name, "mine")
    assert locate(name).read_text() == "mine"
    monkeypatch.chdir(ROOT)
    assert locate(name) == Path(name) and locate("model_data/to_come.pth") == Path("model_data/to_come.pth")


# Downloads from a local server

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_downloaded_under_any_name_once(server, tmp_path):
    server.files["/a"] = CONTENT
    path = tmp_path / "权 重" / "a;b.pth"
    for _ in range(2):
        download(f"{server.address}/a", path, SHA256)
    assert path.read_bytes() == CONTENT and files(tmp_path) == ["权 重/a;b.pth"] and server.asked == ["/a"]


def test_threads_that_need_one_file_download_it_once_and_restore_the_timeout(server, tmp_path):
    server.files["/a"] = CONTENT
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download(f"{server.address}/a", tmp_path / "a.pth", SHA256), range(4)))
    assert server.asked == ["/a"] and socket.getdefaulttimeout() is None


def test_another_file_at_its_place_is_a_user_error_and_stays(nowhere, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"a\.pth is not the published file .*{SHA256}.*remove it"):
        download(f"{nowhere}/a", tmp_path / "a.pth", SHA256)
    assert (tmp_path / "a.pth").read_bytes() == b"mine"


def cut_short(handler):
    send(handler, CONTENT[:5000], {"Content-Length": len(CONTENT)})


def send_nonsense(handler):
    handler.wfile.write(b"220 this is not HTTP\r\n")


def stay_silent(handler):
    time.sleep(1.5)


@pytest.mark.parametrize("answer, words", [
    (stay_silent, "timed out"), (None, "404"), (cut_short, "hash"), (send_nonsense, ""),
    (b"<html>log in</html>", "hash")],
    ids=["silent", "missing", "cut", "nonsense", "page"])
def test_a_failed_download_is_one_line_with_the_remedy_and_leaves_nothing(
        server, tmp_path, monkeypatch, answer, words):
    monkeypatch.setattr("utils.common.files.SILENCE", 0.5)
    server.files["/a"] = answer
    with pytest.raises(UserError) as caught:
        download(f"{server.address}/a", tmp_path / "a.pth", SHA256)
    for part in (f"cannot download {server.address}/a", words, f"put it at {tmp_path / 'a.pth'}"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and files(tmp_path) == []
