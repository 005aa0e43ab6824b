"""Mutated weight files: each loads as the original weights, or is a UserError of one line."""
import random
import warnings

import pytest
import torch
from conftest import BUNDLED

from utils.common.errors import UserError
from utils.weights.checkpoint import load_embedder

# Mutations of the bytes of a file: functions of (content, random numbers)

def flip_bits(content, rng):
    for _ in range(rng.choice((1, 1, 1, 8))):
        place = rng.randrange(len(content))
        if rng.random() < 0.3:  # in the directory of the archive
            place = rng.choice((place % 2000, len(content) - 1 - place % 60_000))
        content[place] ^= 1 << rng.randrange(8)
    return content


def cut(content, rng):
    return content[:rng.choice((rng.randrange(len(content)), len(content) - rng.randrange(1, 200)))]


def overwrite(content, rng):
    size = rng.choice((16, 512, 4096, 100_000))
    start = rng.randrange(len(content) - size)
    content[start:start + size] = rng.choice((bytes(size), rng.randbytes(size)))
    return content


# Mutations of the state dict: functions of (state dict, random numbers)

def swap_names(state, rng):
    """Swap the names of two tensors of different shapes."""
    first = rng.choice(list(state))
    second = rng.choice([name for name in state if state[name].shape != state[first].shape])
    return state | {first: state[second], second: state[first]}


def lose_names(state, rng):
    gone = rng.sample(list(state), rng.choice((1, 5, 100)))
    return {name: value for name, value in state.items() if name not in gone}


OF_BYTES = (flip_bits, cut, overwrite)
OF_NAMES = (swap_names, lose_names)


def outcome(path, state, mutation, seed):
    """Write a mutated file and read it. Return "the same", "refused", or what is wrong about the answer."""
    rng = random.Random(seed)
    if mutation in OF_BYTES:
        path.write_bytes(mutation(bytearray(BUNDLED.read_bytes()), rng))
    else:
        torch.save(mutation(state, rng), path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = load_embedder(path, "mobilefacenet").state_dict()
    except UserError as error:
        return "refused" if str(path) in str(error) and "\n" not in str(error) else f"unclear: {error}"
    except Exception as error:
        return repr(error)
    # PyTorch sets a missing num_batches_tracked to 0; the networks do not use it.
    same = all(torch.equal(found[name], value) for name, value in state.items() if value.is_floating_point())
    return "the same" if same else "other weights"


@pytest.mark.parametrize("count", [2, pytest.param(60, marks=pytest.mark.faults)])
@pytest.mark.parametrize("mutation", OF_BYTES + OF_NAMES)
def test_a_mutated_file_loads_as_it_was_or_is_refused(state, tmp_path, mutation, count):
    outcomes = {seed: outcome(tmp_path / "mutated.pth", state, mutation, seed) for seed in range(count)}
    assert set(outcomes.values()) <= {"the same", "refused"}, outcomes
