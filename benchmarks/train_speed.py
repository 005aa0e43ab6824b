"""Training speed of a plain loop and of train.py's step, in turn, and the ratio of the two.

    python benchmarks/train_speed.py --annotation-path cls_train.txt
    python benchmarks/train_speed.py --annotation-path cls_train.txt --backbone iresnet50 --batch-size 32 --bf16

plain: the published loop. It is eager, channels first, float32, with the defaults of malloc and cuDNN, a margin by a
one-hot matrix, an accuracy by a softmax, and an optimizer that is not fused. ours: train_step, set up as in train.py
for a long run. Each measurement is a process of its own, and its images are decoded beforehand. The flags are those of
train.py. Peak memory is that of the process, or what PyTorch reserved on a CUDA device.
"""
import math
import resource
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from processes import in_new_processes
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).parent.parent))
from train import init_device, train_step
from utils.common.device import choose_device
from utils.common.errors import script
from utils.data.annotation import read_annotation
from utils.data.augmentation import augment
from utils.data.dataset import EpochBatches, FaceDataset
from utils.training.losses import LabelLoss
from utils.training.settings import check_args, make_parser
from utils.training.state import TrainState, compile_if_it_pays, make_net

WARM_UP = 3  # steps that do not count


def measure(args, ours):
    """Return images per second, peak memory in MB, and the losses of all steps."""
    if not ours:
        args.bf16 = args.fp16 = False
    device = init_device(args) if ours else choose_device(args.device)
    paths, labels = read_annotation(args.annotation_path)
    dataset = FaceDataset(paths, labels, torch.arange(len(labels)), args.input_shape)
    sampler = EpochBatches(len(paths), args.batch_size, args.seed)
    batches = [default_collate([dataset[index] for index in indices])
               for indices in islice(sampler, WARM_UP + args.steps)]
    net = make_net(args, int(labels.max()) + 1, device)
    state = TrainState(args, net, LabelLoss(net), sampler, device)
    if ours:
        compile_if_it_pays(state, args, math.inf)
    else:
        net.to(memory_format=torch.contiguous_format)
        for group in state.optimizer.param_groups:
            group["fused"] = False
    state.set_training_mode(freeze_bn=False)
    seconds, losses = [], []
    for batch in batches:
        start = time.perf_counter()
        losses.append(train_step(state, [batch], args)[0] if ours else plain_step(state, batch, args))
        seconds.append(time.perf_counter() - start)
        state.batch += 1
    peak = (torch.cuda.max_memory_reserved(device) if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return sampler.batch_size / statistics.median(seconds[WARM_UP:]), peak / 2 ** 20, losses


def plain_step(state, batch, args):
    pixels, labels = (tensor.to(state.device) for tensor in batch[:2])
    images, head = augment(pixels, args.seed, state.epoch, state.batch)[0].contiguous(), state.net.head
    for group in state.optimizer.param_groups:
        group["lr"] = state.learning_rate(state.step)
    state.optimizer.zero_grad()
    cosine = F.linear(F.normalize(state.net.arcface(images)), F.normalize(head.weight))
    one_hot = torch.zeros_like(cosine).scatter_(1, labels[:, None], 1)
    logits = (one_hot * head.add_margin(cosine, None) + (1 - one_hot) * cosine) * head.s
    loss = F.nll_loss(F.log_softmax(logits, -1), labels)
    loss.backward()
    state.optimizer.step()
    (F.softmax(logits, -1).argmax(-1) == labels).float().mean().item()
    state.step += 1
    return loss.item()


@script
def main():
    parser = make_parser()
    parser.add_argument("--steps", type=int, default=8, help="counted steps of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each loop")
    args, rates = parser.parse_args(), []
    check_args(args, parser)
    for _ in range(args.repeats):
        (plain, plain_peak, plain_losses), = in_new_processes(measure, (args, False))
        (ours, peak, losses), = in_new_processes(measure, (args, True))
        rates.append((plain, ours, ours / plain))
        print(f"plain {plain:.1f}, ours {ours:.1f} img/s", flush=True)
    (plain, ours, ratio), ratios = map(statistics.median, zip(*rates)), [ratio for *_, ratio in rates]
    print(f"{args.backbone}, batch {args.batch_size}, medians: plain {plain:.1f} img/s, {plain_peak:.0f} MB; ours "
          f"{ours:.1f} img/s, {peak:.0f} MB; ratio {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    difference = max(abs(a - b) for a, b in zip(plain_losses, losses))
    print(f"largest difference of the first {len(losses)} losses: {difference:.2e}")


if __name__ == "__main__":
    main()
