"""benchmarks/gpu.py on a CPU in a small size, and its CUDA graph on a simulated one."""
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, read_json
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu import capture_step, count_work

from nets.head import ArcMarginProduct


class SimulatedGraph(TorchDispatchMode):
    """Records operations while it is entered. replay() runs them again and writes into the recorded outputs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        if operation.namespace == "aten":
            self.calls.append((operation, args, kwargs or {}, outputs))
        return outputs

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, outputs in self.calls:
            for recorded, output in zip(tree_leaves(outputs), tree_leaves(operation(*args, **kwargs))):
                if isinstance(recorded, torch.Tensor):
                    recorded.copy_(output)


def train(wrap):
    """Return the losses of six steps, and the weights after them."""
    torch.manual_seed(1)
    body, head = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8)), ArcMarginProduct(8, 20, 8.0, 0.3)
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], 0.1, 0.9, fused=True)

    def compute(images, labels):
        optimizer.zero_grad(set_to_none=True)
        loss = head.losses(body(images), labels)[0].mean()
        loss.backward()
        return loss.detach()

    step, losses = wrap(compute), []
    for _ in range(6):
        losses.append(step(torch.randn(5, 6), torch.randint(20, (5,))).item())
        optimizer.step()
    return losses, head.weight


def test_replayed_steps_equal_eager_ones(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, simulated in {"Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": SimulatedGraph,
                            "graph": lambda graph, **options: graph, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, simulated)
    (eager, weight), (replayed, weight_of_graph) = train(lambda compute: compute), train(capture_step)
    assert replayed == eager and len(set(eager)) == 6
    assert torch.equal(weight_of_graph, weight)


def test_the_multiplications_of_an_image_are_counted():
    assert count_work("mobilefacenet")[0] == pytest.approx(221e6, rel=1e-3)


def test_a_small_size_runs_on_a_cpu(run_script, tmp_path):
    result = run_script("benchmarks/gpu.py", "--device", "cpu", "--only", "training", "head")
    assert result.returncode == 0, result.stderr
    rows = read_json(tmp_path / "gpu.json")
    rows = {row["measurement"]: row for row in rows}
    assert rows["training"]["img/s"] > 0 and rows["training"]["kernels"] > 700
    assert rows["training"]["loss difference"] == 0 and rows["training"]["floor img/s"] > 0
    assert rows["head"]["ms"] > rows["head"]["floor ms"] > 0
    assert "| training | mobilefacenet | 4 | eager |" in result.stdout
