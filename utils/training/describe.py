"""What a training run is about to do, in words."""
import math

from nets.softmax import BLOCK
from utils.common import distributed
from utils.common.device import describe_device
from utils.training.optim import LIMITS, REFERENCE_BATCH
from utils.training.setup import saves_head

GROUPS = ("body", "embedding layer and head", "BatchNorm, PReLU and biases")


def head_bytes(rows, dimensions, pictures, remembered=1, others=0, rate=1.0, gradients=1):
    """What a head of so many rows, float32, takes at the peak of a step: at the end of its backward pass.

    rows: of this process. pictures: of all processes that divide the head among them. remembered: numbers that the
    optimizer keeps for each weight. others: further copies of the weight, such as its average. rate: --sample-rate.
    gradients: alive at once.
    """
    sample = math.ceil(rate * rows)
    whole = rows * (1 + remembered + others)
    taken = sample * (gradients + (1 + remembered if rate < 1 else 0))
    return 4 * ((whole + taken) * dimensions + sample * pictures + min(BLOCK, sample * dimensions))


def describe_head(training, batches, settings):
    """-> lines: the memory of the head in this process, and where it is not saved."""
    head, processes = training.net.head, distributed.world_size()
    rows, dimensions = head.weight.shape
    divided = head.shard.processes > 1
    pictures = batches.batch_size if divided else batches.batch_size // processes
    # What a second batch gives is added to the gradient of the first.
    peak = head_bytes(rows, dimensions, pictures, settings.momentum > 0 if settings.optimizer_type == "sgd" else 2,
                      bool(training.average), settings.sample_rate, 1 + (settings.accumulate > 1))
    part = f" for {rows} of {head.classes} people" if divided else ""
    yield (f"head: {rows * dimensions * 4 / 1e6:.1f} MB of weights{part}, {peak / 1e6:.1f} MB at the peak of a step, "
           "gradients, optimizer's state and logits included")
    if settings.label_weight and not saves_head(settings, head.classes):
        yield "the epochs' weights leave the head out (--save-head keeps it); last.pt and what is beside it have it"


def describe(training, batches, val_loader, settings):
    """-> lines: what decays, the data, the head's memory, the machine, learning rate, teacher and first loss."""
    head = training.net.head
    processes = distributed.world_size()
    validated, = distributed.reduce([len(val_loader.dataset) if val_loader else 0])
    for name, group in zip(GROUPS, training.optimizer.param_groups):
        count = sum(parameter.numel() for parameter in group["params"])
        yield f"weight decay {group['weight_decay']:g} on {name}: {len(group['params'])} tensors, {count:,} parameters"
    yield (f"{head.classes} people, {batches.count} pictures to train on, {validated:.0f} to validate on, "
           f"{len(batches)} batches an epoch, {training.learning_rate.total_steps} steps in all")
    yield from describe_head(training, batches, settings)
    precision = str(training.autocast_dtype or "float32").removeprefix("torch.")
    layout = "channels last" if settings.channels_last else "channels first"
    yield f"device: {describe_device(training.device)}, {processes} process(es), {precision}, {layout}"
    if settings.scale_lr:
        yield (f"learning rate: {settings.effective_lr:g}, which is --init-lr scaled with the batch and kept within "
               "the published limits (--no-scale-lr: as it is)")
        asked = settings.init_lr * batches.batch_size * settings.accumulate / REFERENCE_BATCH
        if not math.isclose(asked, settings.effective_lr):
            lowest, highest = LIMITS[settings.optimizer_type]
            yield (f"--init-lr {settings.init_lr:g} is not what is used: scaled with the batch it is {asked:g}, beyond "
                   f"the published limits of {settings.optimizer_type}, {lowest:g} to {highest:g} "
                   "(--no-scale-lr: as it is)")
    if settings.teacher:
        stages = len(training.objective.student.stages)
        compared = (f"{stages} stages, apart in the first {training.hint_steps} steps" if stages > 1
                    else "its embeddings alone")
        yield (f"teacher: {settings.teacher}, {compared}; loss = {settings.distill_weight:g} (1 - cosine) + "
               f"{settings.hint_weight:g} hints + {settings.label_weight:g} labels")
    if settings.label_weight:
        yield f"expected initial loss of the labels: {head.expected_initial_loss():.1f} (most of it the margin's share)"
