"""Fixtures. The test data are in ../shared, or in the folder that ARCFACE_SHARED names."""
import builtins
import importlib
import io
import json
import os
import shutil
import sys
import threading
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from script_runner import Runner

# One thread for each of the two test processes. It has to be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["https_proxy"] = "http://127.0.0.1:9"  # no test uses the network: this port refuses connections

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "model_data" / "arcface_mobilefacenet.pth"
SHARED = Path(os.environ.get("ARCFACE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared():
    """The folder of test data; without it a test is skipped, or fails if CI=true."""
    if not SHARED.is_dir():
        reason = f"{SHARED} does not exist: it holds the images and weights that this test reads"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return SHARED


@pytest.fixture(scope="session")
def published_weights(shared):
    return shared / "weights" / "arcface_mobilefacenet.pth"


@pytest.fixture(scope="session")
def arcface(published_weights):
    from arcface import Arcface
    return Arcface(model_path=published_weights, cuda=False)


@pytest.fixture(scope="session")
def detector(shared):
    from utils.faces.detector import MODEL_PATH, FaceDetector
    return FaceDetector(shared / "yunet" / Path(MODEL_PATH).name)


@pytest.fixture
def face_model(shared, tmp_path, monkeypatch):
    """Make tmp_path the working folder and copy the detector's model into it. Return the path of the model."""
    from utils.faces.detector import MODEL_PATH
    (tmp_path / "model_data").mkdir()
    shutil.copy(shared / "yunet" / Path(MODEL_PATH).name, tmp_path / MODEL_PATH)
    monkeypatch.chdir(tmp_path)
    return tmp_path / MODEL_PATH


@pytest.fixture(autouse=True)
def forget_shared_detector():
    """Clear the cached detector, because each test has its own working folder."""
    from utils.faces.face_crop import shared_detector
    shared_detector.cache_clear()


@pytest.fixture(scope="session")
def runner():
    runner = Runner()
    yield runner
    runner.close()


@pytest.fixture
def run_script(runner, tmp_path):
    """run_script("train.py", "--epochs", 1) runs it in tmp_path without a screen and returns a CompletedProcess."""
    return partial(runner.run, cwd=tmp_path)


@pytest.fixture
def call_script(tmp_path, monkeypatch, capfd):
    """Like run_script, but in this process, which saves the imports. For scripts that do not train.

    stdin: the answers to input(), each a line or an exception to raise.
    """
    def call(script, *arguments, stdin=()):
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        # It changes the whole process.
        monkeypatch.setattr(module, "keep_freed_memory", lambda device: None, raising=False)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        answers = iter(stdin)

        def answer(prompt):
            print(prompt, end="")
            found = next(answers, EOFError)
            if isinstance(found, str):
                return found
            raise found
        monkeypatch.setattr(builtins, "input", answer)
        capfd.readouterr()
        try:
            module.main()
            status = 0
        except SystemExit as end:
            status = end.code
        printed = capfd.readouterr()
        return SimpleNamespace(returncode=status, stdout=printed.out, stderr=printed.err)
    return call


@pytest.fixture
def server(monkeypatch):
    """server.files: {"/name": bytes, or a function of the request's handler}; server.asked: the paths of requests."""
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
    """Return an address that refuses connections."""
    return "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def lines(shared):
    """Lines of the first fold of the official list: 3 genuine pairs, 3 impostor pairs, 3 genuine, 3 impostor."""
    first_fold = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:601]
    return first_fold[:3] + first_fold[300:303] + first_fold[3:6] + first_fold[303:306]


@pytest.fixture
def pairs_path(tmp_path, lines):
    """A list of 2 folds of 3 + 3 pairs."""
    return write_rows(tmp_path / "lfw_pair.txt", ["2 3", *lines])


@pytest.fixture
def tiny_lfw(tmp_path, shared, lines, pairs_path):
    """Copy the images of pairs_path to tmp_path/lfw. Return the flags of eval_LFW.py for both."""
    for line in lines:
        fields = line.split()
        first, second = fields[:2], [fields[-2] if len(fields) == 4 else fields[0], fields[-1]]
        for name, number in (first, second):
            (tmp_path / "lfw" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(shared / "lfw" / "images" / name / f"{name}_{int(number):04d}.jpg", tmp_path / "lfw" / name)
    return "--lfw-dir", tmp_path / "lfw", "--lfw-pairs", pairs_path


@pytest.fixture
def weights(published_weights):
    return "--model-path", published_weights


@pytest.fixture
def same(shared):
    folder = shared / "lfw" / "images" / "Abel_Pacheco"
    return folder / "Abel_Pacheco_0001.jpg", folder / "Abel_Pacheco_0004.jpg"


@pytest.fixture(scope="session")
def state():
    """The state dict of the bundled weights."""
    import torch
    return torch.load(BUNDLED, weights_only=True)


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_small_weights(backbone, path):
    """Write weights of a backbone, all ones, in few bytes. Return the path."""
    import torch

    from utils.weights.checkpoint import expected_state
    torch.save({name: torch.ones((), dtype=value.dtype).expand(value.shape)
                for name, value in expected_state(backbone).items()}, path)
    return path


def files(folder):
    """The paths of all files in a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def jpeg(seed):
    """The bytes of a small JPEG file of noise."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "jpeg")
    return file.getvalue()


def assert_user_error(result, *words):
    """The script ended with status 2 and one line on stderr that holds these words."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_rows(path, rows):
    path.write_text("\n".join([*rows, ""]), encoding="utf-8")
    return path


def is_png(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 60
