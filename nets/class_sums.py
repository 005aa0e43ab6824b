"""What a softmax over very many classes needs of them, in one buffer that becomes its own gradient."""
import torch

BLOCK = 2 ** 21  # numbers of a gradient that are worked on at once: a copy of all would be another weight in memory


class ClassSums(torch.autograd.Function):
    """(embeddings (B, D) of length 1, weight (C, D), targets (B, K), s) -> (cosine (B, K), rest (B,), largest (B,)).

    cosine: between each embedding and the rows of its targets. rest: the logarithm of the sum of exp(s * cos) over all
    other classes. largest: their largest s * cos, without gradient. A margin loss is made of these few numbers, by
    autograd, so the softmax need not know the margin. targets: int64, of which two may be equal; -1 has no class here.

    Beside the weight, its gradient and one B x C buffer nothing of that size is ever made: the weight is not
    normalised, its products are. All are of one dtype, float32 or float64, whatever autocast says.
    """

    @staticmethod
    def forward(ctx, embeddings, weight, targets, s):
        with torch.autocast(weight.device.type, enabled=False):
            here, column = targets >= 0, targets.clamp_min(0)
            inverse = torch.linalg.vector_norm(weight, dim=1).clamp_min_(1e-12).reciprocal_()
            buffer = (embeddings @ weight.T).mul_(inverse * s)
            cosine = torch.where(here, buffer.gather(1, column) / s, 0)
            # The least of both, so that a target that is not here, in column 0, does not undo one that is.
            buffer.scatter_reduce_(1, column, torch.where(here, -torch.inf, torch.inf).to(buffer.dtype), "amin")
            largest = buffer.amax(1)
            shift = largest.clamp_min(-2 * s)  # no class is left where the targets are all there are
            rest = buffer.sub_(shift[:, None]).exp_().sum(1).log_().add_(shift)
            ctx.share = (shift - rest.clamp_min(-2 * s)).exp_()  # what makes a softmax of the buffer
        ctx.save_for_backward(embeddings, weight)
        ctx.here, ctx.column, ctx.inverse, ctx.s, ctx.buffer = here, column, inverse, s, buffer
        ctx.mark_non_differentiable(largest)
        return cosine, rest, largest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_cosine, of_rest, _):
        gradient, ctx.buffer = ctx.buffer, None
        if gradient is None:
            raise RuntimeError("the head's logits have become their gradient: for another backward pass compute the "
                               "loss again")
        embeddings, weight = ctx.saved_tensors
        with torch.autocast(weight.device.type, enabled=False):
            gradient.mul_((ctx.share * of_rest)[:, None])
            gradient.scatter_add_(1, ctx.column, torch.where(ctx.here, of_cosine / ctx.s, 0))
            gradient.mul_(ctx.inverse * ctx.s)
            of_embeddings = gradient @ weight
            of_weight = gradient.T @ embeddings
            del gradient
            remove_radial_part_(of_weight, weight, ctx.inverse)
        return of_embeddings, of_weight, None, None


def remove_radial_part_(gradient, weight, inverse):
    """What is left of the gradient (C, D) when the length of the rows of `weight`, 1 / inverse, does not count."""
    rows = max(1, BLOCK // weight.shape[1])
    products = torch.empty_like(weight[:rows])
    for change, row, over in zip(gradient.split(rows), weight.split(rows), inverse.split(rows)):
        along = torch.mul(row, change, out=products[:len(row)]).sum(1)
        change.addcmul_(row, (along * over * over)[:, None], value=-1)
