"""What a training run is about to do, in words."""
import math

from utils.machine import distributed
from utils.machine.device import describe_device
from utils.training.schedule import LIMITS, REFERENCE_BATCH

GROUPS = ("body", "embedding layer and head", "BatchNorm, PReLU and biases")


def describe(training, batches, val_loader, settings):
    """-> lines: what decays, the data, the head's memory, the machine, learning rate, teacher and first loss."""
    head = training.net.head
    classes, dimensions = head.weight.shape
    processes = distributed.world_size()
    weights, logits = classes * dimensions * 4 / 1e6, batches.batch_size // processes * classes * 4 / 1e6
    copies = 2 + (1 if settings.optimizer_type == "sgd" else 2) + bool(training.average)
    validated, = distributed.reduce([len(val_loader.dataset) if val_loader else 0])
    for name, group in zip(GROUPS, training.optimizer.param_groups):
        count = sum(parameter.numel() for parameter in group["params"])
        yield f"weight decay {group['weight_decay']:g} on {name}: {len(group['params'])} tensors, {count:,} parameters"
    yield (f"{classes} people, {batches.count} pictures to train on, {validated:.0f} to validate on, "
           f"{len(batches)} batches an epoch, {training.learning_rate.total_steps} steps in all")
    yield (f"head: {weights:.1f} MB of weights ({copies} times that with gradients and the optimizer's state), "
           f"{logits:.1f} MB a batch of logits (about four times that within a step)")
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
