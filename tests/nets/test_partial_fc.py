"""nets/partial_fc.py: what a step of a sampled head computes, and what it leaves unchanged."""
import pytest
import torch
import torch.nn.functional as F

from nets.head import ArcMarginProduct
from nets.partial_fc import sampled_head
from utils.training.optim import clip_gradients

LABELS = torch.tensor([3, 40, 7, 3])


def make(kind=torch.optim.SGD, **settings):
    torch.manual_seed(1)
    head = ArcMarginProduct(8, 50, 16.0, 0.5)
    return head, kind(head.parameters(), 0.1, **settings), torch.randn(4, 8)


def step(head, optimizer, embeddings, rate, seed):
    """Return (losses, the rows that were sampled)."""
    optimizer.zero_grad()
    with sampled_head(head, optimizer, LABELS, rate, seed):
        losses, _ = head.losses(embeddings, LABELS)
        losses.mean().backward()
        clip_gradients(head.parameters(), head, 0)
        optimizer.step()
        return losses.detach(), head.sample


def test_the_loss_is_that_of_a_head_that_has_the_sample_alone():
    head, optimizer, embeddings = make()
    whole = head.weight.detach().clone()
    losses, rows = step(head, optimizer, embeddings, 0.3, 5)
    assert len(rows) == 15 and rows.unique().equal(rows) and set(LABELS.tolist()) <= set(rows.tolist())
    small = ArcMarginProduct(8, 15, 16.0, 0.5)
    small.weight.data.copy_(whole[rows])
    labels = torch.searchsorted(rows, LABELS)
    torch.testing.assert_close(losses, F.cross_entropy(small(embeddings, labels), labels, reduction="none"))


def test_all_classes_of_a_step_are_sampled_however_small_the_fraction():
    rows = step(*make(), 0.01, 5)[1].tolist()
    assert len(rows) == len(LABELS) and {3, 7, 40} <= set(rows)


@pytest.mark.parametrize(("kind", "settings"), [
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True, "fused": True}), (torch.optim.SGD, {}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True})])
def test_rows_that_are_not_drawn_keep_their_optimizer_state(kind, settings):
    head, optimizer, embeddings = make(kind, **settings)
    for seed in range(4):
        weight = head.weight.detach().clone()
        before = {name: value.clone() for name, value in optimizer.state[head.weight].items() if torch.is_tensor(value)}
        _, rows = step(head, optimizer, embeddings, 0.3, seed)
        drawn = torch.zeros(50, dtype=torch.bool).index_fill_(0, rows, True)
        assert torch.equal((head.weight != weight).any(1), drawn)
        for name, value in before.items():
            if value.ndim == 2:
                assert torch.equal(optimizer.state[head.weight][name][~drawn], value[~drawn])
    state = [value for value in optimizer.state[head.weight].values() if torch.is_tensor(value) and value.ndim]
    assert all(value.shape == (50, 8) for value in state)


def test_an_error_within_leaves_the_head_whole():
    head, optimizer, _ = make(momentum=0.9)
    before = head.weight.detach().clone()
    with pytest.raises(RuntimeError), sampled_head(head, optimizer, LABELS, 0.3, 1):
        raise RuntimeError
    assert torch.equal(head.weight, before) and head.sample is None
