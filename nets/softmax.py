"""What a softmax over very many classes needs of them, in one buffer that becomes its own gradient."""
from contextlib import contextmanager

import torch

BLOCK = 2 ** 21  # numbers of a gradient that are worked on at once: a copy of all would be another weight in memory


@contextmanager
def float32_products(device):
    """Within it products of float32 matrices are of float32, whatever autocast and matmul precision ask for elsewhere.

    A cosine in bfloat16 is wrong by up to 0.002, 0.13 logits at s = 64; in TF32, which precision "high" allows on CUDA,
    a logit moves by up to 0.005.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class ClassSums(torch.autograd.Function):
    """Embeddings (B, D), weight (C, D), columns (B, K) and more -> (cosine (B, K), rest (B,), largest (B,)).

    embeddings: of length 1. columns: int64, the rows of the K targets, of which two may be equal; -1 is none.
    cosine: between each embedding and those rows. rest: the logarithm of the sum of exp(s * cos) over all other
    classes. largest: their largest s * cos, without gradient. A margin loss is made of these few numbers, by autograd,
    so the softmax need not know the margin. All are of one dtype, float32 or float64, whatever autocast says.

    Beside the weight, its gradient and one B x C buffer nothing of that size is ever made: the weight is not
    normalised, its products are.

    learned: whether a backward pass may follow, whose gradient of the weight then has its place from the start.

    shard: where the classes are divided over R processes, `weight` is this one's rows and `columns`, (R * B, K), tells
    of the pictures of all processes which targets are among them. What comes out is of its own B pictures. All
    processes have B alike. Gradients are those of the mean over processes of what each makes of its figures, as
    DistributedDataParallel's are: the weight's is divided by R here, the embeddings' later, with the backbone's.
    """

    @staticmethod
    def forward(ctx, embeddings, weight, columns, s, shard, learned):
        with float32_products(weight.device):
            everyone = shard.gather(embeddings).flatten(0, 1)
            here, column = columns >= 0, columns.clamp_min(0)
            # Before the buffer: freed together, they leave a hole that the next step's fit into again. The other way
            # round a heap that is kept (utils/common/device.py) grew by another weight.
            ctx.of_weight = torch.empty_like(weight) if learned and ctx.needs_input_grad[1] else None
            inverse = torch.linalg.vector_norm(weight, dim=1).clamp_min_(1e-12).reciprocal_()
            buffer = (everyone @ weight.T).mul_(inverse * s)
            if not len(weight):
                buffer = buffer.new_full((len(everyone), 1), -torch.inf)  # a column that stands for nobody
            cosine = torch.where(here, buffer.gather(1, column) / s, 0)
            # The least of both, so that a target that is not here, in column 0, does not undo one that is.
            buffer.scatter_reduce_(1, column, torch.where(here, -torch.inf, torch.inf).to(buffer.dtype), "amin")
            largest = buffer.amax(1)
            shift = largest.clamp_min(-2 * s)  # no class is left where the targets are all there are
            rest = buffer.sub_(shift[:, None]).exp_().sum(1).log_().add_(shift)
            if shard.processes > 1:
                rest, largest = shard.gather(torch.stack([rest, largest])).unbind(1)
                rest, largest = rest.logsumexp(0), largest.amax(0)
                shard.sum_(cosine)  # every target is in one process
            ctx.share = (shift - rest.clamp_min(-2 * s)).exp_()  # what makes a softmax of the buffer
        ctx.save_for_backward(everyone, weight)
        ctx.here, ctx.column, ctx.inverse, ctx.s, ctx.shard, ctx.buffer = here, column, inverse, s, shard, buffer
        cosine, rest, largest = map(shard.own, (cosine, rest, largest))
        ctx.mark_non_differentiable(largest)
        return cosine, rest, largest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_cosine, of_rest, _):
        gradient, ctx.buffer = ctx.buffer, None
        if gradient is None:
            raise RuntimeError("the head's logits have become their gradient: for another backward pass compute the "
                               "loss again")
        everyone, weight = ctx.saved_tensors
        with float32_products(weight.device):
            upstream = ctx.shard.gather(torch.cat([of_cosine, of_rest[:, None]], 1)).flatten(0, 1)
            gradient.mul_((ctx.share * upstream[:, -1])[:, None])
            gradient.scatter_add_(1, ctx.column, torch.where(ctx.here, upstream[:, :-1] / ctx.s, 0))
            gradient = gradient[:, :len(weight)].mul_(ctx.inverse * ctx.s)
            of_embeddings = ctx.shard.own(ctx.shard.sum_(gradient @ weight))
            of_weight, ctx.of_weight = ctx.of_weight, None
            if of_weight is None:  # nothing is learned of the weight
                return of_embeddings, None, None, None, None, None
            torch.mm(gradient.T, everyone, out=of_weight)
            del gradient
            if ctx.shard.processes > 1:
                of_weight.div_(ctx.shard.processes)
            remove_radial_part_(of_weight, weight, ctx.inverse)
        return of_embeddings, of_weight, None, None, None, None


def remove_radial_part_(gradient, weight, inverse):
    """What is left of the gradient (C, D) when the length of the rows of `weight`, 1 / inverse, does not count."""
    rows = max(1, BLOCK // weight.shape[1])
    products = torch.empty_like(weight[:rows])
    for change, row, over in zip(gradient.split(rows), weight.split(rows), inverse.split(rows)):
        along = torch.mul(row, change, out=products[:len(row)]).sum(1)
        change.addcmul_(row, (along * over * over)[:, None], value=-1)
