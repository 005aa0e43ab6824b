"""Galleries of people of LFW, and strangers: how many of them are named, and how many of the right people?

    python benchmarks/open_set.py --lfw-dir lfw
    python benchmarks/open_set.py --lfw-dir lfw --model-path model_data/published_mobilefacenet.pth

For each size of a gallery and each draw: so many people with two or more pictures, up to five of each in the gallery
and up to five others asked about; as strangers everybody else, by a picture each. The threshold is the one that
predict.py would choose for the gallery. FPIR: strangers named; DIR: right people named by their own name (detection and
identification rate, ISO/IEC 19795-1). The pictures are the 7,701 of LFW's list of pairs.
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


def parse_settings():
    parser = SettingsParser(__doc__)
    parser.add_argument("--lfw-dir", default="lfw", help="the aligned pictures")
    parser.add_argument("--lfw-pairs", default="model_data/lfw_pair.txt", help="the official list of pairs")
    parser.add_argument("--model-path", default="model_data/arcface_mobilefacenet.pth", help="weights (.pth)")
    parser.add_argument("--people", type=int, nargs="+", default=[10, 100, 500], help="sizes of galleries")
    parser.add_argument("--pictures", type=int, default=5, help="of each person, at most")
    parser.add_argument("--least-pictures", type=int, default=2, help="that a person of a gallery has in all")
    parser.add_argument("--draws", type=int, default=20, help="galleries of each size")
    return parser.parse_args()


def draw_rows(rows_of, number, settings, generator):
    """{person: rows} -> (rows of a gallery, rows of other pictures of its people, rows of strangers)."""
    several = [person for person, rows in rows_of.items() if len(rows) >= settings.least_pictures]
    chosen = set(generator.choice(several, number, replace=False).tolist())
    gallery, known = [], []
    for person in sorted(chosen):
        rows = generator.permutation(rows_of[person])
        kept = min(settings.pictures, len(rows) - 1)
        gallery += rows[:kept].tolist()
        known += rows[kept:kept + settings.pictures].tolist()
    strangers = [generator.choice(rows) for person, rows in rows_of.items() if person not in chosen]
    return np.array(gallery), np.array(known), np.array(strangers)


def nearest(embeddings, asked, gallery):
    """-> (distance of each to its nearest picture of the gallery, the row of that picture)."""
    cosines = embeddings[asked] @ embeddings[gallery].T
    return np.sqrt(np.maximum(0, 2 - 2 * cosines.max(1))), gallery[cosines.argmax(1)]


def measure(embeddings, person, rows_of, number, settings, generator):
    """-> (pictures, threshold, FPIR, strangers not sure, DIR, right people not sure, another's name) of one draw."""
    gallery, known, strangers = draw_rows(rows_of, number, settings, generator)
    people = np.unique(person[gallery], return_inverse=True)[1]
    tail = fit_gallery_tail(embeddings[gallery], people)
    threshold = Thresholds(settings.model_path).for_gallery(number, len(gallery), tail)
    distances, found = nearest(embeddings, known, gallery)
    right = person[found] == person[known]
    of_known = np.array([threshold.verdict(distance) for distance in distances])
    of_strangers = np.array([threshold.verdict(distance) for distance in nearest(embeddings, strangers, gallery)[0]])
    return (len(gallery), threshold.value, (of_strangers == "same").mean(), (of_strangers == "not sure").mean(),
            ((of_known == "same") & right).mean(), ((of_known == "not sure") & right).mean(),
            ((of_known == "same") & ~right).mean())


@script
def main():
    settings = parse_settings()
    keep_freed_memory(torch.device("cpu"))
    pairs = read_pairs(settings.lfw_pairs, settings.lfw_dir)
    net = inference_copy(load_embedder(settings.model_path))
    embeddings = embed_pairs(net, pairs, progress=partial(tqdm, desc="LFW", disable=None))
    person = np.unique([path.parent.name for path in pairs.paths], return_inverse=True)[1]
    rows_of = {number: np.flatnonzero(person == number) for number in range(person.max() + 1)}
    print("people  pictures  threshold   FPIR (least to most)      not sure     DIR  not sure  another's name")
    for number in settings.people:
        rows = np.array([measure(embeddings, person, rows_of, number, settings, np.random.default_rng(draw))
                         for draw in range(settings.draws)])
        pictures, value, fpir, unsure, dir_, unsure_known, wrong = rows.mean(0)
        least, most = rows[:, 2].min(), rows[:, 2].max()
        print(f"{number:6}  {pictures:8.0f}  {value:9.3f}  {fpir:6.2%} ({least:.2%} to {most:.2%})  "
                  f"{unsure:12.2%}  {dir_:6.2%}  {unsure_known:8.2%}  {wrong:14.2%}")


if __name__ == "__main__":
    main()
