"""Seconds for LFW by a plain loop and by eval_LFW.py's own, in turn, and the ratio of the two.

    python benchmarks/lfw_speed.py --lfw-dir lfw
    python benchmarks/lfw_speed.py --lfw-dir lfw --bf16

plain: both pictures of each of the 6,000 pairs decoded and embedded, 256 pairs at once, eager, channels first,
BatchNorm unfolded, malloc as it is: the published eval_LFW.py. ours: utils/evaluation/pairs.py. Each is a process of
its own on the CPU; decoding counts in both. Of eval_LFW.py's flags those of weights, list, folder and precision count.
"""
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from eval_LFW import embedding_options, make_parser
from utils.common.device import keep_freed_memory
from utils.common.errors import script
from utils.evaluation.embedding import inference_copy
from utils.evaluation.metrics import verification_metrics
from utils.evaluation.pairs import embed_pairs, pair_metrics, read_pairs
from utils.faces.images import normalise, preprocess
from utils.weights.checkpoint import load_embedder

PLAIN_BATCH = 256  # pairs, as published


def plain(net, pairs, settings):
    def embed_side(indices):
        images = np.stack([preprocess(pairs.paths[i]) for i in indices])
        return net(normalise(torch.from_numpy(images)).contiguous())

    distances = []
    with torch.no_grad():
        for start in range(0, len(pairs.genuine), PLAIN_BATCH):
            first, second = (embed_side(side[start:start + PLAIN_BATCH]) for side in (pairs.first, pairs.second))
            distances.append((first - second).norm(dim=1))
    return verification_metrics(torch.cat(distances).numpy(), pairs.genuine, pairs.folds, settings.far)


def ours(net, pairs, settings):
    keep_freed_memory(torch.device("cpu"))
    return pair_metrics(embed_pairs(inference_copy(net), pairs, **embedding_options(settings)), pairs, settings.far)[0]


def parse_settings():
    parser = make_parser()
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each loop")
    parser.add_argument("--side", choices=("plain", "ours"), help="one measurement of this loop, as JSON")
    return parser.parse_args()


@script
def main():
    settings = parse_settings()
    if settings.side:
        net = load_embedder(settings.model_path, settings.backbone)
        pairs = read_pairs(settings.lfw_pairs, settings.lfw_dir)
        start = time.perf_counter()
        figures = {"plain": plain, "ours": ours}[settings.side](net, pairs, settings)
        print(json.dumps({"seconds": time.perf_counter() - start, "accuracy": figures.accuracy}))
        return
    seconds = {"plain": [], "ours": []}
    for repeat in range(settings.repeats):
        for side in seconds:
            result = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], check=True,
                                    stdout=subprocess.PIPE, encoding="utf-8")
            result = json.loads(result.stdout)
            seconds[side].append(result["seconds"])
            print(f"{repeat + 1}: {side} {result['seconds']:.1f} s, accuracy {result['accuracy']:.5f}", flush=True)
    ratios = sorted(a / b for a, b in zip(seconds["plain"], seconds["ours"]))
    print(f"median plain {statistics.median(seconds['plain']):.1f} s, ours {statistics.median(seconds['ours']):.1f} s; "
          f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
