"""Time and memory of the head's step against the number of people; what a million and more take on many devices.

    python benchmarks/head_scale.py                     measure, print, and draw img/head_scale.png
    python benchmarks/head_scale.py --arithmetic        what 2 and 10 million people take on 8 and 64 devices

one-hot: the published head, whose margin is computed for all people and chosen by a one-hot matrix. ours:
nets/head.py. sharded: --shard-head over two processes, of which the larger figure counts. sampled: --sample-rate 0.1.
A step is forward and backward pass of the head, and SGD with momentum, for 64 pictures with embeddings of 512 numbers;
on the CPU, in float32. Each measurement is a process of its own (two for sharded): the least processor time of its
steps, over all threads, which other work on the machine changes little, and its peak memory, ru_maxrss, less what it
had after the same for 2,000 people. The C library hands freed tensors back at once, so that this is what lives; on a
CPU train.py keeps freed memory (utils/common/device.py), and by chance holds up to another copy of the weight in it.
"""
import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
from nets.head import ArcMarginProduct
from nets.partial_fc import UNSHARDED, Shard, sampled_head
from nets.softmax import CHUNK
from utils.common import distributed

DIMENSIONS, PICTURES = 512, 64
PEOPLE = (50_000, 93_431, 200_000)  # the second is MS1MV3's
SIDES = {"one-hot": "tab:red", "ours": "tab:blue", "sharded": "tab:green", "sampled": "tab:orange"}
PROCESSES, RATE = 2, 0.1


def head_bytes(rows, dimensions, images, rate=1.0):
    """Return the memory of a head of so many rows on this rank, float32 with momentum, at the peak of a step.

    That is at the end of its backward pass. images: of all ranks that share the head. rate: --sample-rate.
    """
    sample = math.ceil(rate * rows)
    copies = 2 * rows + sample * (1 if rate == 1 else 3)
    return 4 * (copies * dimensions + sample * images + min(CHUNK, sample * dimensions))


def expected_bytes(side, people):
    """The formulas. The one-hot head's peak is in the backward pass of normalising its weight, with seven like it."""
    if side == "one-hot":
        return 4 * people * 7 * DIMENSIONS
    rows = math.ceil(people / PROCESSES) if side == "sharded" else people
    return head_bytes(rows, DIMENSIONS, PICTURES, rate=RATE if side == "sampled" else 1.0)


def one_hot_losses(head, embeddings, labels):
    """As in the published scripts: every entry has its margin, and the targets' are chosen by multiplication."""
    cosine = F.linear(F.normalize(embeddings), F.normalize(head.weight))
    sine = (1.0 - cosine.square()).clamp(0, 1).sqrt()
    shifted = cosine * math.cos(head.m) - sine * math.sin(head.m)
    shifted = torch.where(cosine > -math.cos(head.m), shifted, cosine - math.sin(head.m) * head.m)
    one_hot = torch.zeros_like(cosine).scatter_(1, labels[:, None], 1)
    logits = (one_hot * shifted + (1.0 - one_hot) * cosine) * head.s
    return F.nll_loss(F.log_softmax(logits, -1), labels, reduction="none")


def seconds_of_steps(side, people, steps):
    """-> the processor time of each step."""
    shard = Shard(distributed.rank(), distributed.world_size()) if side == "sharded" else UNSHARDED
    head = ArcMarginProduct(DIMENSIONS, people, 64.0, 0.5, shard=shard)
    optimizer = torch.optim.SGD(head.parameters(), 0.1, 0.9, nesterov=True, fused=True)
    pictures, taken = PICTURES // shard.world_size, []
    for number in range(steps):
        embeddings = torch.randn(pictures, DIMENSIONS, requires_grad=True)
        labels = torch.randint(0, people, (pictures,))
        start = time.process_time()
        optimizer.zero_grad()
        with sampled_head(head, optimizer, labels, RATE if side == "sampled" else 1, number):
            if side == "one-hot":
                one_hot_losses(head, embeddings, labels).mean().backward()
            else:
                head.losses(embeddings, labels)[0].mean().backward()
            optimizer.step()
        taken.append(time.process_time() - start)
    return taken


def measure(side, people, steps):
    """-> {"seconds", "bytes"} of this process, and of the others that divide the head with it the largest."""
    distributed.start(torch.device("cpu"))
    seconds_of_steps(side, 2000, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = min(seconds_of_steps(side, people, steps)[1:])
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return dict(zip(("seconds", "bytes"), distributed.reduce([seconds, peak], largest=True)))


def measure_all(arguments):
    """-> {side: [(people, seconds, bytes)]}, printed on the way."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    found = {side: [] for side in SIDES}
    print("people   head      s/step     MB   formula")
    for people in arguments.people:
        for side in SIDES:
            command = [sys.executable, *(torchrun if side == "sharded" else []), __file__, "--side", side,
                       "--people", str(people), "--steps", str(arguments.steps)]
            output = subprocess.run(command, check=True, capture_output=True, encoding="utf-8",
                                    env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}).stdout
            result = json.loads(output.splitlines()[-1])
            expected = expected_bytes(side, people)
            found[side].append((people, result["seconds"], result["bytes"]))
            print(f"{people:>7}  {side:8} {result['seconds']:7.3f} {result['bytes'] / 1e6:7.0f}  {expected / 1e6:7.0f} "
                  f"({expected / result['bytes'] - 1:+.1%})", flush=True)
    return found


def draw(found, path):
    """Two charts: seconds of a step, and memory with the formulas as lines."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=100)
    for side, color in SIDES.items():
        people, seconds, peaks = zip(*found[side])
        times.plot([count / 1e3 for count in people], seconds, "o-", color=color, label=side)
        memory.plot([count / 1e3 for count in people], [peak / 1e9 for peak in peaks], "o", color=color, label=side)
        memory.plot([count / 1e3 for count in people], [expected_bytes(side, count) / 1e9 for count in people], "-",
                    color=color)
    for axes, title in ((times, "processor seconds of a step, a process"),
                        (memory, "GB at its peak; lines: the formulas")):
        axes.set(title=title, xlabel="thousand people", xlim=(0, None), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.canvas.draw()
    pixels = Image.frombuffer("RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba()).convert("RGB")
    pixels.quantize(32).save(path, optimize=True)


def print_arithmetic():
    """Per device, in float32 with SGD's momentum; a device of its own embeds 128 pictures in each batch."""
    print("people      devices  GB/device  with --sample-rate 0.1  TFLOP/step of a device")
    for people in (2_000_000, 10_000_000):
        for devices in (8, 64):
            rows, pictures = math.ceil(people / devices), 128 * devices
            whole, part = (head_bytes(rows, DIMENSIONS, pictures, rate=rate) / 1e9 for rate in (1.0, RATE))
            print(f"{people:>10,} {devices:>8} {whole:>10.2f} {part:>23.2f} "
                  f"{6 * rows * pictures * DIMENSIONS / 1e12:>23.2f}")


def parse_settings():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=PEOPLE)
    parser.add_argument("--steps", type=int, default=4, help="of a measurement; the first is not counted")
    parser.add_argument("--side", choices=SIDES, help="one measurement of this head, as JSON")
    parser.add_argument("--arithmetic", action="store_true", help="measure nothing, print what many devices need")
    parser.add_argument("--output", default=str(Path(__file__).parents[1] / "img" / "head_scale.png"))
    return parser.parse_args()


def main():
    arguments = parse_settings()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.people[0], arguments.steps)), flush=True)
        distributed.stop()
    elif arguments.arithmetic:
        print_arithmetic()
    else:
        draw(measure_all(arguments), arguments.output)
        print_arithmetic()


if __name__ == "__main__":
    main()
