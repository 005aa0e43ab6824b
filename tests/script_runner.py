"""Run scripts in processes forked from one that has imported PyTorch, which saves 4 s per run.

    Runner().run("train.py", "--epochs", 1, cwd=folder) -> CompletedProcess

This file is also that process. It reads requests from stdin, a line of JSON each, and answers with the exit status.
"""
import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Packages that the scripts import. Nothing of the repository is imported here.
PACKAGES = ("torch", "torch._dynamo", "torch.ao.quantization", "torch.fx.experimental.optimization", "torchvision.io",
            "torch.utils.data", "PIL.Image", "matplotlib.figure", "matplotlib.backends.backend_agg", "tqdm")


class Runner:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        encoding="utf-8")

    def run(self, script, *arguments, cwd, stdin="", timeout=120):
        """Run the script in a folder, without a screen."""
        arguments = list(map(str, arguments))
        environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
        environment["PYTHONUTF8"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            names = {name: os.path.join(folder, name) for name in ("stdin", "stdout", "stderr")}
            Path(names["stdin"]).write_text(stdin, encoding="utf-8")
            request = {"script": script, "arguments": arguments, "cwd": str(cwd), "environment": environment,
                       "timeout": timeout, **names}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            status = json.loads(self.process.stdout.readline())
            printed = [Path(names[name]).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        if status is None:
            raise subprocess.TimeoutExpired([script, *arguments], timeout, *printed)
        return subprocess.CompletedProcess([script, *arguments], status, *printed)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve():
    for package in PACKAGES:
        importlib.import_module(package)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(run_script(request))
        print(json.dumps(wait(child, request["timeout"])), flush=True)


def wait(child, timeout):
    """Return the exit status of a child, negative for a signal, or None after a timeout."""
    signal.signal(signal.SIGALRM, lambda number, frame: os.killpg(child, signal.SIGKILL))
    signal.alarm(timeout)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = signal.alarm(0)
    return status if left or status != -signal.SIGKILL else None


def run_script(request):
    """Run the script in the child and return its exit status."""
    os.setsid()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(request[name], os.O_RDONLY if not number else os.O_WRONLY | os.O_CREAT), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8", closefd=False)
                                         for number, mode in ((0, "r"), (1, "w"), (2, "w")))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    path = str(ROOT / request["script"])
    sys.argv, sys.path[0] = [path, *request["arguments"]], str(Path(path).parent)
    try:
        runpy.run_path(path, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status


if __name__ == "__main__":
    serve()
