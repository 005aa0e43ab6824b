"""The loss and accuracy of a network on the pictures that were kept out of training."""
import math
from operator import mul

import torch

from nets.head import IGNORE
from utils.common import distributed
from utils.common.device import send
from utils.common.errors import UserError
from utils.data.dataset import batches_of
from utils.evaluation.embedding import inference_copy
from utils.faces.images import normalise
from utils.training.engine import read


def filled_up(batches, loader):
    """Yield as many and as large batches in every process, as a head whose classes are divided needs.

    What is added is grey, has the label IGNORE and is not among the numbers of the pictures.
    """
    most, = map(int, distributed.reduce([len(loader.dataset)], largest=True))
    shape = (*loader.dataset.input_shape[:2], 3)
    nothing = torch.zeros(0, *shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    for first in range(0, most, loader.batch_size):
        images, labels, used = next(batches, nothing)
        lacking = min(loader.batch_size, most - first) - len(labels)
        yield (torch.cat([images, images.new_full((lacking, *shape), 128)]),
               torch.cat([labels, labels.new_full((lacking,), IGNORE)]), used)


@torch.inference_mode()
def validate(training, loader, bad_pictures):
    """-> {"loss", "accuracy"} of the evaluated network on the validation set, every picture once over all processes.

    Without augmentation and, for accuracy, without the margin; the loss with the whole margin, so that the epochs of
    --margin-warmup-epochs compare. Raises UserError where the loss is not finite.
    """
    net = inference_copy(training.evaluated)
    net.head = training.evaluated.head
    net.head.m = training.margin.m
    losses, correct, counts, bad = [], [], [], []
    batches = batches_of(loader)
    if net.head.shard.processes > 1:
        batches = filled_up(batches, loader)
    for images, labels, used in batches:
        first = sum(counts)
        bad += loader.dataset.replaced(range(first, first + len(used)), used.tolist())
        images, labels = normalise(send(images, training.device)), send(labels, training.device)
        with training.autocast():
            outcome = training.objective.evaluate(net, images, labels)
        losses.append(outcome.loss)
        correct.append(outcome.correct.sum())
        counts.append(len(used))
    bad_pictures.note(bad)
    figures = read(*losses, *correct)  # once, at the end
    loss, correct, count = distributed.reduce([sum(map(mul, figures, counts)), sum(figures[len(counts):]), sum(counts)])
    if not math.isfinite(loss):  # with weights that are finite: what is between them and the embeddings is not
        raise UserError(f"the validation loss is {loss / count} after epoch {training.epoch}: lower --init-lr, or "
                        "train without --fp16 and --bf16")
    return {"loss": loss / count, "accuracy": correct / count}
