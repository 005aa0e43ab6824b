"""Weight files as other programs write them: wrapped, with other prefixes, in another precision."""
import torch

WRAPPERS = ("state_dict", "model", "net")
# Of DistributedDataParallel, of programs whose network holds a backbone, and of torch.compile.
PREFIXES = ("module.", "backbone.", "_orig_mod.")


def unwrap(content):
    """What a file holds -> (state dict {name: tensor} with the names of this repository, what was done, in words).

    The state dict is None where there is none in it, or where it is not clear which one is meant.
    """
    done = []
    while not is_state_dict(content):
        wrappers = [key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        if len(wrappers) != 1:
            return None, []
        rest = ", ".join(str(key) for key in content if key != wrappers[0])
        done.append(f"taken from its {wrappers[0]!r}" + (f" (left out: {rest})" if rest else ""))
        content = content[wrappers[0]]
    state, prefixes = rename(content)
    if len(state) < len(content):  # two names have become one
        return None, []
    if prefixes:
        done.append(f"names without {', '.join(prefixes)}")
    if state and not any(name.startswith("arcface.") for name in state):
        state = {name if name.startswith("head.") else f"arcface.{name}": value for name, value in state.items()}
        done.append("bare names, as insightface's, put under arcface.")
    precisions = {str(value.dtype).removeprefix("torch.") for value in state.values()
                  if value.is_floating_point() and value.dtype != torch.float32}
    if precisions:
        done.append(f"{', '.join(sorted(precisions))} made float32")
    return {name: convert(name, value) for name, value in state.items()}, done


def is_state_dict(content):
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())


def rename(state):
    """-> (the state dict with its names without PREFIXES, however many there are, and the prefixes that there were)."""
    renamed, found = {}, {}
    for name, value in state.items():
        while prefix := next(filter(name.startswith, PREFIXES), None):
            name, found[prefix] = name.removeprefix(prefix), None
        if "._orig_mod." in name:  # a part of the network was compiled
            name, found["_orig_mod."] = name.replace("._orig_mod.", "."), None
        renamed[name] = value
    return renamed, list(found)


def convert(name, value):
    """Floating point becomes float32, and int64 again where it counts BatchNorm's batches (after .half() of each)."""
    if not value.is_floating_point() or value.layout != torch.strided:
        return value
    if name.endswith("num_batches_tracked"):
        return value.detach().nan_to_num().long()  # a count beyond float16 is infinite there; nothing reads it
    return value.detach().float()
