"""Speed of LFW by a plain loop and by eval_LFW.py's, in turn, and the ratio of the two.

    python benchmarks/lfw_speed.py --lfw-dir lfw
    python benchmarks/lfw_speed.py --lfw-dir lfw --bf16

plain: the published eval_LFW.py. It decodes and embeds both images of each of the 6,000 pairs, 256 pairs at once,
eager, channels first, BatchNorm unfolded, with malloc's defaults. ours: utils/evaluation/pairs.py. Each measurement is
a process of its own on the CPU, decoding included. The flags are those of eval_LFW.py.
"""
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from processes import compare_sides

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


@torch.no_grad()
def measure_plain(net, pairs, args):
    def embed_side(indices):
        images = np.stack([preprocess(pairs.paths[index]) for index in indices])
        return net(normalise(torch.from_numpy(images)).contiguous())

    distances = []
    for start in range(0, len(pairs.genuine), PLAIN_BATCH):
        batch = slice(start, start + PLAIN_BATCH)
        distances.append((embed_side(pairs.first[batch]) - embed_side(pairs.second[batch])).norm(dim=1))
    return verification_metrics(torch.cat(distances).numpy(), pairs.genuine, pairs.folds, args.far)


def measure_ours(net, pairs, args):
    keep_freed_memory(torch.device("cpu"))
    return pair_metrics(embed_pairs(inference_copy(net), pairs, **embedding_options(args)), pairs, args.far)[0]


@script
def main():
    parser = make_parser()
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each loop")
    parser.add_argument("--side", choices=("plain", "ours"), help="one measurement of this loop, as JSON")
    args = parser.parse_args()
    if not args.side:
        compare_sides(args.repeats, "pairs_per_second")
        return
    net, pairs = load_embedder(args.model_path, args.backbone), read_pairs(args.lfw_pairs, args.lfw_dir)
    start = time.perf_counter()
    metrics = {"plain": measure_plain, "ours": measure_ours}[args.side](net, pairs, args)
    print(json.dumps({"pairs_per_second": len(pairs.genuine) / (time.perf_counter() - start),
                      "accuracy": metrics.accuracy}))


if __name__ == "__main__":
    main()
