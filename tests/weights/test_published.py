"""Downloading, and the published weights that it is for: a server on this machine stands for the internet."""
import hashlib
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import assert_user_error

from nets.arcface import ArcfaceNet
from utils.machine.download import download, hash_file
from utils.machine.errors import UserError
from utils.weights import published
from utils.weights.checkpoint import save

CONTENT = bytes(range(256)) * 10_000  # 2.5 MB: several blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """server.files: {"/name": bytes, or a function of the request's handler}; server.asked: what was asked for."""
    server = SimpleNamespace(files={}, asked=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            answer = server.files.get(self.path)
            if callable(answer):
                answer(self)
            elif answer is None:
                self.send_error(404)
            else:
                send(self, answer, {"Content-Length": len(answer)})

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server.address = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield server
        listening.shutdown()
        thread.join()


def send(handler, content, headers):
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name, str(value))
    handler.end_headers()
    with suppress(OSError):  # the client may have gone
        handler.wfile.write(content)


@pytest.fixture
def nowhere():
    """An address where nothing listens: what a machine without a network finds."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# download()

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


# The published weights

@pytest.fixture
def publisher(server, monkeypatch, published_weights):
    """The server in place of the publisher's, with the real MobileFaceNet."""
    monkeypatch.setattr(published, "ADDRESS", server.address)
    server.files["/arcface_mobilefacenet.pth"] = published_weights.read_bytes()
    return server


@pytest.fixture
def pair(shared):
    folder = shared / "lfw" / "images" / "Abel_Pacheco"
    return folder / "Abel_Pacheco_0001.jpg", folder / "Abel_Pacheco_0004.jpg"


def test_each_backbone_has_its_own_file_beside_the_bundled_one(server, monkeypatch, tmp_path):
    monkeypatch.setattr(published, "ADDRESS", server.address)
    monkeypatch.setattr(published, "SHA256", dict.fromkeys(published.SHA256))
    for backbone in ("mobilefacenet", "mobilenet", "iresnet50"):
        server.files[f"/arcface_{backbone}.pth"] = backbone.encode()
        path = published.published_weights(backbone, tmp_path)
        assert path.read_bytes() == backbone.encode() and path.name == f"published_{backbone}.pth"
    assert published.published_weights("mobilenetv1", tmp_path).name == "published_mobilenet.pth"


@pytest.mark.parametrize("backbone, word", [("iresnet18", "no weights are published for iresnet18"),
                                            ("resnet7", "unknown backbone")])
def test_a_backbone_without_published_weights_is_a_user_error_that_lists_those_with(nowhere, tmp_path, backbone, word):
    with pytest.raises(UserError, match=rf"{word}.*mobilefacenet, mobilenet.*iresnet50"):
        published.published_weights(backbone, tmp_path)


def test_the_published_file_is_the_one_whose_hash_is_known(published_weights):
    assert hash_file(published_weights) == published.SHA256["mobilefacenet"]


def test_predict_downloads_and_uses_the_published_weights(call_script, publisher, pair, tmp_path):
    result = call_script("predict.py", "--download", "mobilefacenet")
    assert result.returncode == 0 and result.stderr == "" and "model_data/published_mobilefacenet.pth" in result.stdout
    assert files(tmp_path) == ["model_data/published_mobilefacenet.pth"]
    result = call_script("predict.py", *pair, "--no-cuda", "--weights", "published")
    assert result.returncode == 0 and result.stdout.startswith("model_data/published_mobilefacenet.pth (mobilefacenet)")
    assert publisher.asked == ["/arcface_mobilefacenet.pth"]
    by_path = call_script("predict.py", *pair, "--no-cuda", "--model-path", "model_data/published_mobilefacenet.pth")
    assert by_path.stdout == result.stdout


def test_eval_uses_the_published_weights_of_the_backbone(call_script, publisher, shared, tmp_path):
    """Told by the line about the weights; the pictures, which are not there, are what ends the script."""
    save(ArcfaceNet(backbone="mobilenet").state_dict(), tmp_path / "made.pth")
    publisher.files["/arcface_mobilenet.pth"] = (tmp_path / "made.pth").read_bytes()
    for backbone in ("mobilefacenet", "mobilenet"):
        result = call_script("eval_LFW.py", "--weights", "published", "--backbone", backbone, "--device", "cpu",
                      "--lfw-pairs", shared / "lfw" / "pairs.txt", "--lfw-dir", "gone")
        assert_user_error(result, "gone")
        assert result.stdout.startswith(f"model_data/published_{backbone}.pth ({backbone})")


@pytest.mark.parametrize("script", ["predict.py", "eval_LFW.py"])
def test_without_a_network_the_scripts_say_in_one_line_what_to_put_where(call_script, script, nowhere, monkeypatch):
    monkeypatch.setattr(published, "ADDRESS", nowhere)
    for backbone in ("mobilefacenet", "iresnet50"):
        assert_user_error(call_script(script, "--weights", "published", "--backbone", backbone),
                          f"download {nowhere}/arcface_{backbone}.pth", f"model_data/published_{backbone}.pth")


@pytest.mark.parametrize("script", ["predict.py", "eval_LFW.py"])
def test_weights_named_twice_or_unknown_are_a_user_error(call_script, script, published_weights):
    assert_user_error(call_script(script, "--weights", "published", "--model-path", published_weights),
                      "--weights", "--model-path")
    assert_user_error(call_script(script, "--weights", "best"), "--weights", "best", "published")


def test_an_unknown_download_is_a_user_error(call_script):
    assert_user_error(call_script("predict.py", "--download", "iresnet18"), "iresnet18", "mobilefacenet")
