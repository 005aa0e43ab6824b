"""A CUDA device that computes on the CPU, and notes every wait for it.

Its tensors are on cuda:0 for Python and of the meta device for PyTorch's C++; their values are on the CPU, in `.value`.
An operation that mixes devices fails as on a real one. These wait: reading a value, copying from memory that is not
pinned, and operations whose result has a size that depends on values.
"""
import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).parents[2]
READS_A_VALUE = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
                 aten.is_nonzero.default, aten.equal.default, aten._unique2.default}
BY_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
waits = []  # the innermost frames of each, innermost first


def wait(kind):
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))
              and frame.filename != __file__]
    waits.append(" < ".join([kind, *(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[::-1][:3])]))


class SimulatedTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, value):
        self = torch.Tensor._make_subclass(
            cls, torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta"), False)
        self.value = value
        return self

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.value = other.value

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), keywords=None):
        return run(operation, arguments, keywords or {})

    def tolist(self):
        wait("tolist")
        return self.value.tolist()

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class Device(TorchDispatchMode):
    """Inside this block CPU tensors can be copied to the device."""

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        return run(operation, arguments, keywords or {})


def run(operation, arguments, keywords):
    """Run one operation of PyTorch on the values, and note whether it would have waited."""
    if torch.is_inference_mode_enabled():  # composite operations are not decomposed there
        with Device():
            done = operation.decompose(*arguments, **keywords)
        if done is not NotImplemented:
            return done
    tensors = [one for one in tree_leaves((arguments, keywords)) if isinstance(one, torch.Tensor)]
    simulated = [one for one in tensors if isinstance(one, SimulatedTensor)]
    asked = keywords.get("device")
    here = bool(simulated) if asked is None else torch.device(asked).type in ("cuda", "meta")
    if operation is aten._to_copy.default:
        note_copy(arguments[0], here, keywords.get("non_blocking", False))
    elif operation is aten.copy_.default:
        note_copy(arguments[1], isinstance(arguments[0], SimulatedTensor), keywords.get("non_blocking", False))
    elif operation in BY_INDEX and simulated:
        if any(index.dtype == torch.bool or not isinstance(index, SimulatedTensor)
               for index in tree_leaves(arguments[1]) if isinstance(index, torch.Tensor)):
            wait(str(operation))
    elif simulated and any(not isinstance(one, SimulatedTensor) and one.dim() for one in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two: {operation}")
    elif simulated and operation in READS_A_VALUE:
        wait(str(operation))
    changed = {id(one.value): one for one in simulated}  # operations in place return their argument
    keywords = {name: value for name, value in keywords.items() if name not in ("pin_memory", "non_blocking")}
    if asked is not None:
        keywords["device"] = torch.device("cpu")
    with torch._C._DisableTorchDispatch():
        result = operation(*tree_map(plain, arguments), **tree_map(plain, keywords))

    def wrap(one):
        if not isinstance(one, torch.Tensor) or isinstance(one, SimulatedTensor):
            return one
        return changed[id(one)] if id(one) in changed else SimulatedTensor(one) if here else one
    return tree_map(wrap, result)


def note_copy(source, here, non_blocking):
    if isinstance(source, SimulatedTensor) and not here:
        wait("copy to the CPU")
    if not isinstance(source, SimulatedTensor) and here and not (non_blocking and getattr(source, "pinned", False)):
        wait("copy from memory that is not pinned")


def plain(one):
    return one.value if isinstance(one, SimulatedTensor) else one


def pin_memory(tensor):
    pinned = tensor.clone()
    pinned.pinned = True
    return pinned


@pytest.fixture
def simulated_cuda(monkeypatch):
    """The simulated device. PyTorch finds it in this process during the test."""
    torch._C._ensureCUDADeviceGuardSet()  # autograd asks for the device's stream
    for name, answer in {"_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0,
                         "set_device": None, "get_device_name": "simulated", "is_bf16_supported": True,
                         "manual_seed_all": None, "_is_in_bad_fork": False}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *given, answer=answer, **named: answer)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    with Device():
        yield CUDA
