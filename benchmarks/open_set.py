"""How often unknown faces are identified falsely, and known ones correctly, in galleries drawn from LFW.

    python benchmarks/open_set.py --lfw-dir lfw
    python benchmarks/open_set.py --lfw-dir lfw --model-path model_data/published_mobilefacenet.pth

A draw takes --people identities with two images or more: up to five images go into the gallery, up to five others are
known faces. One image of each other identity is an unknown face. The threshold is the gallery's default. FPIR: unknown
faces that are identified. DIR: known faces that are identified correctly (ISO/IEC 19795-1).
"""
import sys
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from arcface import Arcface
from utils.common.errors import SettingsParser, UserError, positive_int, script
from utils.evaluation.gallery import fit_gallery_tail
from utils.evaluation.pairs import read_pairs

IMAGES, DRAWS = 5, 20  # images in the gallery of each person, at most; galleries of each size


def draw_rows(rows_of, people, least_images, generator):
    """Return the rows of the gallery, of known and of unknown faces. rows_of: {identity: rows}."""
    several = [identity for identity, rows in rows_of.items() if len(rows) >= least_images]
    if people > len(several):
        raise UserError(f"LFW has {len(several)} people with {least_images} images or more: lower --people")
    chosen = set(generator.choice(several, people, replace=False).tolist())
    gallery, known = [], []
    for identity in sorted(chosen):
        rows = generator.permutation(rows_of[identity])
        count = min(IMAGES, len(rows) - 1)
        gallery += rows[:count].tolist()
        known += rows[count:count + IMAGES].tolist()
    unknown = [generator.choice(rows) for identity, rows in rows_of.items() if identity not in chosen]
    return np.array(gallery), np.array(known), np.array(unknown)


def measure(arcface, embeddings, identity, gallery, known, unknown):
    """Return images, threshold, FPIR, unknown "not sure", DIR, known "not sure" and wrong person of one draw."""
    tail = fit_gallery_tail(embeddings[gallery], identity[gallery])
    threshold = arcface.thresholds.for_gallery(len(gallery), tail)

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
    parser = SettingsParser(__doc__)
    parser.add_argument("--lfw-dir", default="lfw", help="the aligned images")
    parser.add_argument("--model-path", default="model_data/arcface_mobilefacenet.pth", help="weights (.pth)")
    parser.add_argument("--people", type=positive_int, nargs="+", default=[10, 100, 500], help="sizes of galleries")
    parser.add_argument("--least-images", type=positive_int, default=2, help="that LFW has of a person in a gallery")
    args = parser.parse_args()
    pairs, arcface = read_pairs("model_data/lfw_pair.txt", args.lfw_dir), Arcface(model_path=args.model_path)
    embeddings = arcface.embed_anything(pairs.paths, progress=partial(tqdm, desc="LFW", disable=None))
    identity = np.unique(pairs.identities, return_inverse=True)[1]
    rows_of = {number: np.flatnonzero(identity == number) for number in range(identity.max() + 1)}
    print("people  images  threshold  FPIR (min to max)  not sure     DIR  not sure  wrong person")
    for people in args.people:
        rows = np.array([measure(arcface, embeddings, identity, *draw_rows(
            rows_of, people, args.least_images, np.random.default_rng(draw))) for draw in range(DRAWS)])
        images, value, fpir, unsure, dir_, unsure_known, wrong = rows.mean(0)
        print(f"{people:6}  {images:6.0f}  {value:9.3f}  {fpir:.2%} ({rows[:, 2].min():.2%} to {rows[:, 2].max():.2%})"
              f"  {unsure:.2%}  {dir_:.2%}  {unsure_known:.2%}  {wrong:.2%}")


if __name__ == "__main__":
    main()
