"""CPU time and memory of the head's step against the number of classes; by formulas, of millions on many devices.

    python benchmarks/head_scale.py                     measurements beside the formulas
    python benchmarks/head_scale.py --arithmetic        what 2 and 10 million classes take on 8 and 64 devices

one-hot: the published head, which computes the margin for all classes. ours: nets/head.py. sharded: --shard-head over
two ranks, the larger of which counts. sampled: --sample-rate 0.1. A step is forward and backward of the head and SGD
with momentum, for 64 embeddings of 512 dimensions, in float32 on the CPU. Each measurement is a process of its own: the
minimum CPU time of its steps, and its peak memory less that after steps with 2,000 classes. Here malloc returns freed
tensors to the kernel, so that the peak is what is needed; train.py keeps them, and may hold another copy of the weight.
"""
import json
import math
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from processes import run_again

sys.path.insert(0, str(Path(__file__).parent.parent))
from nets.head import ArcMarginProduct
from nets.partial_fc import UNSHARDED, Shard, sampled_head
from nets.softmax import CHUNK
from utils.common import distributed
from utils.common.errors import SettingsParser, script

DIMENSIONS, IMAGES, RANKS, RATE = 512, 64, 2, 0.1
CLASSES = (50_000, 93_431, 200_000)  # the second is MS1MV3's
SIDES = "one-hot", "ours", "sharded", "sampled"


def head_bytes(rows, images, rate=1.0):
    """Return the memory of a head of so many rows at the end of its backward pass, float32 with momentum.

    images: of all ranks that share the head. rate: --sample-rate.
    """
    sample = math.ceil(rate * rows)
    copies = 2 * rows + sample * (1 if rate == 1 else 3)
    return 4 * (copies * DIMENSIONS + sample * images + min(CHUNK, sample * DIMENSIONS))


def expected_bytes(side, classes):
    if side == "one-hot":  # in the backward pass of normalising the weight, with seven tensors of its size
        return 4 * classes * 7 * DIMENSIONS
    return head_bytes(math.ceil(classes / RANKS) if side == "sharded" else classes, IMAGES,
                      RATE if side == "sampled" else 1.0)


def one_hot_losses(head, embeddings, labels):
    """Return the losses as the published scripts compute them, with the margin of every class."""
    cosine = F.linear(F.normalize(embeddings), F.normalize(head.weight))
    sine = (1.0 - cosine.square()).clamp(0, 1).sqrt()
    shifted = cosine * math.cos(head.m) - sine * math.sin(head.m)
    shifted = torch.where(cosine > -math.cos(head.m), shifted, cosine - math.sin(head.m) * head.m)
    one_hot = torch.zeros_like(cosine).scatter_(1, labels[:, None], 1)
    return F.nll_loss(F.log_softmax((one_hot * shifted + (1.0 - one_hot) * cosine) * head.s, -1), labels)


def min_seconds(side, classes, steps):
    """Return the least CPU time of a step. The first step does not count."""
    shard = Shard(distributed.rank(), distributed.world_size()) if side == "sharded" else UNSHARDED
    head = ArcMarginProduct(DIMENSIONS, classes, 64.0, 0.5, shard=shard)
    optimizer, seconds = torch.optim.SGD(head.parameters(), 0.1, 0.9, nesterov=True, fused=True), []
    for number in range(steps):
        embeddings = torch.randn(IMAGES // shard.world_size, DIMENSIONS, requires_grad=True)
        labels = torch.randint(0, classes, (len(embeddings),))
        start = time.process_time()
        optimizer.zero_grad()
        with sampled_head(head, optimizer, labels, RATE if side == "sampled" else 1, number):
            loss = one_hot_losses(head, embeddings, labels) if side == "one-hot" else head.losses(embeddings, labels)[0]
            loss.mean().backward()
            optimizer.step()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def measure(side, classes, steps):
    """Return seconds and bytes, the maximum over the ranks."""
    distributed.start(torch.device("cpu"))
    min_seconds(side, 2000, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = min_seconds(side, classes, steps)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    found = dict(zip(("seconds", "bytes"), distributed.reduce([seconds, peak], largest=True)))
    distributed.stop()
    return found


def measure_all(args):
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)
    print("classes  head      s/step     MB   formula")
    for classes in args.classes:
        for side in SIDES:
            found = run_again("--side", side, "--classes", classes, "--steps", args.steps,
                              launcher=torchrun if side == "sharded" else (), MALLOC_MMAP_THRESHOLD_="1000000")
            expected = expected_bytes(side, classes)
            print(f"{classes:>7}  {side:8} {found['seconds']:7.3f} {found['bytes'] / 1e6:7.0f}  {expected / 1e6:7.0f} "
                  f"({expected / found['bytes'] - 1:+.1%})", flush=True)


def print_arithmetic():
    """Print what a device needs that embeds 128 images of each batch."""
    print("classes     devices  GB/device  with --sample-rate 0.1  TFLOP/step of a device")
    for classes in (2_000_000, 10_000_000):
        for devices in (8, 64):
            rows, images = math.ceil(classes / devices), 128 * devices
            whole, sampled = (head_bytes(rows, images, rate) / 1e9 for rate in (1.0, RATE))
            print(f"{classes:>10,} {devices:>8} {whole:>10.2f} {sampled:>23.2f} "
                  f"{6 * rows * images * DIMENSIONS / 1e12:>23.2f}")


@script
def main():
    parser = SettingsParser(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--steps", type=int, default=4, help="of a measurement; the first does not count")
    parser.add_argument("--side", choices=SIDES, help="one measurement of this head, as JSON")
    parser.add_argument("--arithmetic", action="store_true", help="only print what many devices need")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.classes[0], args.steps)), flush=True)
        return
    if not args.arithmetic:
        measure_all(args)
    print_arithmetic()


if __name__ == "__main__":
    main()
