"""CPU time and memory of the head's step against the number of classes.

    python benchmarks/head_scale.py
    python benchmarks/head_scale.py --classes 5000 --steps 2

one-hot: the published head, which computes the margin for all classes. ours: nets/head.py. sharded: --shard-head over
two ranks, the larger of which counts. sampled: --sample-rate 0.1. A step is forward and backward of the head and SGD
with momentum, for 64 embeddings of 512 dimensions, in float32 on the CPU. A measurement is the minimum CPU time of its
steps, and the peak memory less that after steps with 2,000 classes. Here malloc returns freed tensors to the kernel.
"""
import math
import os
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from processes import in_new_processes

sys.path.insert(0, str(Path(__file__).parent.parent))
from nets.head import ArcMarginProduct
from nets.partial_fc import UNSHARDED, Shard, sampled_head
from utils.common import distributed
from utils.common.errors import SettingsParser, script

DIMENSIONS, IMAGES, RANKS, RATE = 512, 64, 2, 0.1
CLASSES = (50_000, 93_431, 200_000)  # the second is MS1MV3's


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
    shard = Shard(distributed.rank(), RANKS) if side == "sharded" else UNSHARDED
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


def measure(side, classes, steps, rank):
    """Return seconds and megabytes of one rank."""
    if side == "sharded":  # as torchrun does
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        distributed.start(torch.device("cpu"))
    min_seconds(side, 2000, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = min_seconds(side, classes, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    distributed.stop()
    return seconds, peak * 1024 / 1e6


@script
def main():
    parser = SettingsParser(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--steps", type=int, default=4, help="of a measurement; the first does not count")
    args = parser.parse_args()
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "1000000", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511",
                   "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    print("classes  head      s/step     MB")
    for classes in args.classes:
        for side in ("one-hot", "ours", "sharded", "sampled"):
            ranks = range(RANKS if side == "sharded" else 1)
            found = in_new_processes(measure, *((side, classes, args.steps, rank) for rank in ranks))
            seconds, megabytes = map(max, zip(*found))
            print(f"{classes:>7}  {side:8} {seconds:7.3f} {megabytes:7.0f}", flush=True)


if __name__ == "__main__":
    main()
