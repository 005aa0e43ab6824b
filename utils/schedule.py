"""The learning rate: a pure function of the step."""
import math

REFERENCE_BATCH = 64
# The learning rate that a batch size may scale to (lowest, highest), as in the published scripts.
LIMITS = {"sgd": (5e-4, 1e-1), "adam": (3e-4, 1e-3), "adamw": (3e-4, 1e-3)}


def scale_learning_rate(init_lr, min_lr_ratio, batch_size, optimizer_type):
    """-> (peak, lowest) learning rate: linear in the batch size (Goyal et al. 2017, arXiv 1706.02677), limited."""
    lowest, highest = LIMITS[optimizer_type]
    scale = batch_size / REFERENCE_BATCH
    peak = min(max(init_lr * scale, lowest), highest)
    floor = min(max(init_lr * min_lr_ratio * scale, lowest * 1e-2), highest * 1e-2)
    return peak, min(floor, peak)


def cosine_learning_rate(step, total_steps, steps_per_epoch, peak, lowest):
    """Quadratic warm-up from peak / 10, half a cosine, then a flat end at the lowest rate.

    The warm-up takes a tenth of the run, at most 3 epochs, and the flat end three tenths, at most 15
    epochs: the published schedule, except that it moves every step and not once an epoch.
    """
    warmup = min(0.1 * total_steps, 3 * steps_per_epoch)
    flat = min(0.3 * total_steps, 15 * steps_per_epoch)
    if step < warmup:
        start = max(0.1 * peak, 1e-6)
        return start + (peak - start) * (step / warmup) ** 2
    if step >= total_steps - flat:
        return lowest
    progress = (step - warmup) / (total_steps - warmup - flat)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2


def step_learning_rate(step, total_steps, steps_per_epoch, peak, lowest):
    """Ten equal stretches, from the peak to the lowest rate by a constant factor."""
    stretch = min(step * 10 // total_steps, 9)
    return peak * (lowest / peak) ** (stretch / 9)


SCHEDULES = {"cos": cosine_learning_rate, "step": step_learning_rate}
