"""A head sharded over 2, 3 and 4 ranks is that of one, to 1e-10 in float64; what a sampled step leaves unchanged."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_data import make_args

from nets.partial_fc import Shard, init_rows
from utils.common import distributed
from utils.data.dataset import make_loaders

TOLERANCE = 1e-10
SEVERAL = pytest.mark.parametrize("ranks", [2, 3, 4])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return {name: what head_worker.py saved under that name}."""
    folder = tmp_path_factory.mktemp("heads")
    worker = Path(__file__).parent / "head_worker.py"
    result = subprocess.run([sys.executable, str(worker), str(folder)], capture_output=True, encoding="utf-8",
                            timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    names = ["1", "2", "3", "4", "resumed2", "resumed3", "resumed1"]
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in names}


def assert_equal_runs(found, expected):
    for name in ("weights", "body"):
        assert found[name].keys() == expected[name].keys()
        for key in expected[name]:
            assert_close(found[name][key], expected[name][key])
    assert_close(found["head"], expected["head"])


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@SEVERAL
def test_losses_gradients_and_their_norm_are_those_of_one_rank(results, ranks):
    for case, (*errors, different) in results[str(ranks)]["batches"].items():
        assert max(errors) < TOLERANCE and different == 0, (case, errors, different)


@SEVERAL
@pytest.mark.parametrize("head", ["trained", "norm"])
def test_steps_with_accumulation_clipping_and_an_average_are_those_of_one_rank(results, ranks, head):
    one, several = results["1"][head], results[str(ranks)][head]
    assert torch.equal(several["first"], one["first"])  # equal initial weights
    for found, expected in zip(several["losses"], one["losses"]):
        assert found == pytest.approx(expected, rel=TOLERANCE)
    assert_equal_runs(several, one)
    assert not torch.equal(one["head"], one["first"]) and not torch.equal(one["head"], one["weights"]["head.weight"])


@SEVERAL
def test_validation_is_that_of_one_rank(results, ranks):
    one, several = results["1"]["trained"]["validated"], results[str(ranks)]["trained"]["validated"]
    assert several["val_loss"] == pytest.approx(one["val_loss"], rel=TOLERANCE)
    assert several["val_accuracy"] == one["val_accuracy"]


def test_a_run_resumes_with_another_number_of_ranks(results):
    """One step each on two, three and one rank equals three steps on one rank."""
    assert_equal_runs(results["resumed1"], results["1"]["trained"])
    losses = [results[name]["losses"][0] for name in ("resumed2", "resumed3", "resumed1")]
    for found, expected in zip(losses, results["1"]["trained"]["losses"]):
        assert found == pytest.approx(expected, rel=TOLERANCE)


@SEVERAL
def test_an_overflow_on_one_rank_skips_the_step_on_all(results, ranks):
    assert results[str(ranks)]["overflow"] == [[0, True, 512.0, 0]] * ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_sampled_step_moves_only_its_classes_and_a_fraction_of_the_others(results, ranks):
    """Half of each rank's rows are sampled. The classes of the images of all ranks are among them."""
    sampled = results[str(ranks)]["sampled"]
    moved = torch.cat([torch.tensor(rows, dtype=torch.bool) for rows in sampled["moved"]])
    changed = (sampled["head"] != sampled["before"]).any(1)
    assert torch.equal(changed, moved)
    assert [sum(rows) for rows in sampled["moved"]] == [len(rows) // 2 for rows in sampled["moved"]]
    labels = torch.tensor(sampled["labels"]).flatten()
    assert len(labels) == 24 and moved[labels].all()


def test_rows_are_drawn_as_xavier_uniform_does_and_every_class_is_in_one_part():
    torch.manual_seed(3)
    expected = torch.nn.init.xavier_uniform_(torch.empty(20011, 4))
    after = torch.rand(1)
    for ranks in (1, 3, 4):
        parts = []
        for rank in range(ranks):
            torch.manual_seed(3)
            parts.append(init_rows(20011, 4, *Shard(rank, ranks).bounds(20011)))
            assert torch.rand(1) == after
        assert torch.equal(torch.cat(parts), expected)
    assert [Shard(rank, 4).bounds(3) for rank in range(4)] == [(0, 0), (0, 1), (1, 2), (2, 3)]


def test_all_ranks_get_equally_many_images_to_validate_on(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    args = make_args("--shard-head", "--val-split", 0.25, "--batch-size", 6, "--num-workers", 0)
    counts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        _, loader = make_loaders([""] * 44, torch.arange(44) % 4, args, torch.device("cpu"))
        counts.append(len(loader.dataset))
    assert counts == [3, 3, 3]  # of 11
