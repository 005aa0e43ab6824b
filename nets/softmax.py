"""Memory-efficient softmax cross-entropy: one B x C buffer holds the logits and is overwritten by their gradient."""
from contextlib import contextmanager

import torch

CHUNK = 2 ** 21  # elements of a weight gradient that are changed at once; a temporary for all would double its memory


@contextmanager
def float32_products(device):
    """Run matrix products in full float32: autocast and TF32 are off inside this block.

    In bfloat16 a cosine is wrong by up to 0.002, which is 0.13 in a logit at s = 64; TF32 moves a logit by up to 0.005.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class SoftmaxTerms(torch.autograd.Function):
    """Return (cosine (B, K), lse_negatives (B,), max_negative (B,)), from which a margin loss is made by autograd.

    cosine: of each embedding and its K targets. lse_negatives, max_negative: log-sum-exp and maximum of the logits of
    all other classes; max_negative has no gradient. For K = 1, with z_j = s cos(theta_j) and phi the margin's function:

        loss            = -log(exp(s phi) / (exp(s phi) + sum_j exp(z_j))) = softplus(lse_negatives - s phi(theta_y))
        lse_negatives   = log(sum_j exp(z_j)), over the negatives j != y
        d loss/d phi    = -s p, with p = sigmoid(lse_negatives - s phi), the probability of all negatives together
        d loss/d z_j    = p exp(z_j - lse_negatives)
        d loss/d x      = sum_j (d loss/d cos_j) w_j / |w_j|, for the embedding x of length 1
        d loss/d w_j    = sum_x (d loss/d cos_j) x / |w_j|, without its part along w_j

    The caller's autograd computes `loss` and d loss/d phi; this function computes all other lines.

    embeddings: (B, D), of length 1. weight: (C, D), not normalised, so that no normalised copy of it is made.
    target_rows: int64 (B, K), rows of `weight`, which may repeat; -1 means no target. s: the scale.
    shard: with sharded classes `weight` holds this rank's rows, target_rows is (world_size * B, K) for the images of
    all ranks; a target on another rank is -1. All ranks have the same B. The returned values are of this rank's images.
    Gradients are means over the ranks: grad_weight is divided by the world size here, the backbone's gradients by
    DistributedDataParallel.
    needs_backward: allocate grad_weight before the buffer.
    """

    @staticmethod
    def forward(ctx, embeddings, weight, target_rows, s, shard, needs_backward):
        with float32_products(weight.device):
            x = shard.gather(embeddings).flatten(0, 1)
            has_target, column = target_rows >= 0, target_rows.clamp_min(0)
            # Allocated before the buffer, because both are freed together and the next step reuses their memory. In the
            # other order the process (keep_freed_memory in utils/common/device.py) grew by another weight.
            ctx.grad_weight = torch.empty_like(weight) if needs_backward and ctx.needs_input_grad[1] else None
            inverse_norm = torch.linalg.vector_norm(weight, dim=1).clamp_min_(1e-12).reciprocal_()
            buffer = (x @ weight.T).mul_(inverse_norm * s)                 # logits z of all classes
            if not len(weight):
                buffer = buffer.new_full((len(x), 1), -torch.inf)          # a shard without classes: one dummy column
            cosine = torch.where(has_target, buffer.gather(1, column) / s, 0)
            # "amin" with +inf leaves column 0 as it is for rows without a target here.
            hidden = torch.where(has_target, -torch.inf, torch.inf).to(buffer.dtype)
            buffer.scatter_reduce_(1, column, hidden, "amin")              # z, and -inf at the targets
            max_negative = buffer.amax(1)
            shift = max_negative.clamp_min(-2 * s)                         # max_negative is -inf without negatives
            buffer.sub_(shift[:, None]).exp_()                             # exp(z - shift), and 0 at the targets
            lse_negatives = buffer.sum(1).log_().add_(shift)
            if shard.world_size > 1:
                lse_negatives, max_negative = shard.gather(torch.stack([lse_negatives, max_negative])).unbind(1)
                lse_negatives, max_negative = lse_negatives.logsumexp(0), max_negative.amax(0)
                shard.sum_(cosine)  # each target is on one rank
            ctx.to_softmax = (shift - lse_negatives.clamp_min(-2 * s)).exp_()
        ctx.save_for_backward(x, weight)
        ctx.has_target, ctx.column, ctx.inverse_norm = has_target, column, inverse_norm
        ctx.s, ctx.shard, ctx.buffer = s, shard, buffer
        cosine, lse_negatives, max_negative = map(shard.own, (cosine, lse_negatives, max_negative))
        ctx.mark_non_differentiable(max_negative)
        return cosine, lse_negatives, max_negative

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_cosine, grad_lse, _):
        buffer, ctx.buffer = ctx.buffer, None
        if buffer is None:
            raise RuntimeError("the head's logits were overwritten by their gradient: compute the loss again for "
                               "another backward pass")
        x, weight = ctx.saved_tensors
        with float32_products(weight.device):
            grads = ctx.shard.gather(torch.cat([grad_cosine, grad_lse[:, None]], 1)).flatten(0, 1)
            buffer.mul_((ctx.to_softmax * grads[:, -1])[:, None])          # d loss/d z of the negatives
            buffer.scatter_add_(1, ctx.column, torch.where(ctx.has_target, grads[:, :-1] / ctx.s, 0))  # of all classes
            buffer = buffer[:, :len(weight)].mul_(ctx.inverse_norm * ctx.s)  # d loss/d cos_j, divided by |w_j|
            grad_embeddings = ctx.shard.own(ctx.shard.sum_(buffer @ weight))
            grad_weight, ctx.grad_weight = ctx.grad_weight, None
            if grad_weight is not None:
                torch.mm(buffer.T, x, out=grad_weight)
                del buffer
                if ctx.shard.world_size > 1:
                    grad_weight.div_(ctx.shard.world_size)
                remove_radial_part_(grad_weight, weight, ctx.inverse_norm)
        return grad_embeddings, grad_weight, None, None, None, None


def remove_radial_part_(grad_weight, weight, inverse_norm):
    """Project the gradient (C, D) of each row onto the directions orthogonal to that row of `weight`, in place."""
    rows = max(1, CHUNK // weight.shape[1])
    products = torch.empty_like(weight[:rows])
    for grad, row, inverse in zip(grad_weight.split(rows), weight.split(rows), inverse_norm.split(rows)):
        along = torch.mul(row, grad, out=products[:len(row)]).sum(1)
        grad.addcmul_(row, (along * inverse * inverse)[:, None], value=-1)
