"""How often unknown faces are identified falsely, and known ones correctly, in galleries drawn from LFW.

    python benchmarks/open_set.py --lfw-dir lfw
    python benchmarks/open_set.py --lfw-dir lfw --model-path model_data/published_mobilefacenet.pth

A draw takes as many people as --people says, each with two images or more: up to five go into the gallery, up to five
others are known faces. Everybody else is an unknown face, with one image. The threshold is the one that predict.py
chooses for the gallery. FPIR: unknown faces that are identified. DIR: known faces that are identified correctly
(ISO/IEC 19795-1). The images are the 7,701 of LFW's list of pairs.
"""
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.common.device import keep_freed_memory
from utils.common.errors import SettingsParser, script
from utils.evaluation.embedding import inference_copy
from utils.evaluation.gallery import fit_gallery_tail
from utils.evaluation.pairs import embed_pairs, read_pairs
from utils.evaluation.thresholds import Thresholds
from utils.weights.checkpoint import load_embedder


def parse_args():
    parser = SettingsParser(__doc__)
    parser.add_argument("--lfw-dir", default="lfw", help="the aligned images")
    parser.add_argument("--lfw-pairs", default="model_data/lfw_pair.txt", help="the official list of pairs")
    parser.add_argument("--model-path", default="model_data/arcface_mobilefacenet.pth", help="weights (.pth)")
    parser.add_argument("--people", type=int, nargs="+", default=[10, 100, 500], help="sizes of galleries")
    parser.add_argument("--images", type=int, default=5, help="in the gallery of each person, at most")
    parser.add_argument("--least-images", type=int, default=2, help="that LFW has of a person in a gallery")
    parser.add_argument("--draws", type=int, default=20, help="galleries of each size")
    return parser.parse_args()


def draw_rows(rows_of, people, args, generator):
    """Return the rows of the gallery, of known and of unknown faces. rows_of: {identity: rows}."""
    several = [identity for identity, rows in rows_of.items() if len(rows) >= args.least_images]
    chosen = set(generator.choice(several, people, replace=False).tolist())
    gallery, known = [], []
    for identity in sorted(chosen):
        rows = generator.permutation(rows_of[identity])
        count = min(args.images, len(rows) - 1)
        gallery += rows[:count].tolist()
        known += rows[count:count + args.images].tolist()
    unknown = [generator.choice(rows) for identity, rows in rows_of.items() if identity not in chosen]
    return np.array(gallery), np.array(known), np.array(unknown)


def measure(embeddings, identity, rows_of, people, args, generator):
    """Return images, threshold, FPIR, unknown "not sure", DIR, known "not sure" and wrong person of one draw."""
    gallery, known, unknown = draw_rows(rows_of, people, args, generator)
    tail = fit_gallery_tail(embeddings[gallery], np.unique(identity[gallery], return_inverse=True)[1])
    threshold = Thresholds(args.model_path).for_gallery(len(gallery), tail)

    def verdicts(rows):
        cosines = embeddings[rows] @ embeddings[gallery].T
        distances = np.sqrt(np.maximum(0, 2 - 2 * cosines.max(1)))
        return np.array([threshold.verdict(distance) for distance in distances]), gallery[cosines.argmax(1)]

    (of_known, nearest), (of_unknown, _) = verdicts(known), verdicts(unknown)
    right = identity[nearest] == identity[known]
    return (len(gallery), threshold.value, (of_unknown == "same").mean(), (of_unknown == "not sure").mean(),
            ((of_known == "same") & right).mean(), ((of_known == "not sure") & right).mean(),
            ((of_known == "same") & ~right).mean())


@script
def main():
    args = parse_args()
    keep_freed_memory(torch.device("cpu"))
    pairs = read_pairs(args.lfw_pairs, args.lfw_dir)
    net = inference_copy(load_embedder(args.model_path))
    embeddings = embed_pairs(net, pairs, progress=partial(tqdm, desc="LFW", disable=None))
    identity = np.unique([path.parent.name for path in pairs.paths], return_inverse=True)[1]
    rows_of = {number: np.flatnonzero(identity == number) for number in range(identity.max() + 1)}
    print("people  images  threshold  FPIR (min to max)  not sure     DIR  not sure  wrong person")
    for people in args.people:
        rows = np.array([measure(embeddings, identity, rows_of, people, args, np.random.default_rng(draw))
                         for draw in range(args.draws)])
        images, value, fpir, unsure, dir_, unsure_known, wrong = rows.mean(0)
        print(f"{people:6}  {images:6.0f}  {value:9.3f}  {fpir:.2%} ({rows[:, 2].min():.2%} to {rows[:, 2].max():.2%})"
              f"  {unsure:.2%}  {dir_:.2%}  {unsure_known:.2%}  {wrong:.2%}")


if __name__ == "__main__":
    main()
