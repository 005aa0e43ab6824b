"""Measure a network on Labeled Faces in the Wild: accuracy, VAL@FAR, ROC.

    python eval_LFW.py                                                    the weights in model_data/
    python eval_LFW.py --weights published --flip                         those of the original repository
    python eval_LFW.py --model-path logs/RUN/best.pth --flip
    python eval_LFW.py --backbone iresnet50 --model-path model_data/published_iresnet50.pth --batch-size 64
    python eval_LFW.py --json lfw.json --mistakes mistakes.png            all figures; the most wrong pairs
    python eval_LFW.py --bin faces_emore/agedb_30.bin                     insightface's file of another benchmark
    python eval_LFW.py --download                                         fetches LFW, aligns it into lfw/
    python eval_LFW.py --save-threshold                                   thresholds for predict.py, beside the weights
    python eval_LFW.py --align --lfw-dir lfw_250                          the original 250x250 pictures, not aligned

lfw/ holds the pictures, aligned to the 112x112 template, as <Person>/<Person>_0001.jpg.
"""
import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.common.device import DEVICES, choose_device, describe_device, keep_freed_memory
from utils.common.errors import SettingsParser, UserError, script
from utils.common.files import atomic_write, write_text
from utils.drawing.contact_sheets import draw_errors
from utils.drawing.plots import plot_roc
from utils.evaluation import lfw
from utils.evaluation.download_lfw import FOLDERS, align_lfw, fetch_lfw
from utils.evaluation.embedding import UselessEmbeddings, inference_copy
from utils.evaluation.metrics import can_measure_far
from utils.evaluation.thresholds import (
    count_distances,
    count_impostors,
    impostor_curve,
    measure_thresholds,
    save_thresholds,
)
from utils.evaluation.verification_file import read_verification_file
from utils.faces.detector import FaceDetector
from utils.faces.images import check_input_shape, preprocess
from utils.weights.checkpoint import find_weights, load_embedder
from utils.weights.published import published_weights


def make_parser():
    switch = argparse.BooleanOptionalAction
    parser = SettingsParser(__doc__)
    parser.add_argument("--backbone", help="the network of the weights (default: told from the file; mobilefacenet for "
                        "--weights published)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--model-path", default="model_data/arcface_mobilefacenet.pth",
                         help="the weights: a .pth file, or a run's folder for its best.pth")
    weights.add_argument("--weights", choices=("bundled", "published"), default="bundled",
                         help="published: those of the original repository, downloaded where they are not there yet")
    parser.add_argument("--input-shape", type=int, nargs=2, default=[112, 112], metavar=("H", "W"),
                        help="height and width that every picture is brought to")
    parser.add_argument("--letterbox-image", action=switch, default=True,
                        help="pad a picture to this shape instead of stretching it")
    parser.add_argument("--lfw-dir", default="lfw", help="the aligned pictures")
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("--bin", metavar="FILE", help="an insightface file of pairs, such as agedb_30.bin, not LFW")
    pictures.add_argument("--download", choices=FOLDERS, nargs="?", const="original",
                          help="fetch the pictures of LFW as scikit-learn does, and align them into --lfw-dir")
    pictures.add_argument("--align", action="store_true", help="find and align the faces in the original pictures")
    parser.add_argument("--lfw-pairs", default="model_data/lfw_pair.txt", help="the official list of pairs")
    parser.add_argument("--batch-size", type=int, default=256, help="pictures decoded (on CUDA: embedded) at once")
    parser.add_argument("--flip", action=switch, default=False, help="sum the embeddings of a picture and its mirror")
    parser.add_argument("--far", type=float, default=1e-3, help="the false accept rate at which VAL is told")
    parser.add_argument("--png-save-path", default="model_data/roc_test.png", help="the ROC picture to write")
    parser.add_argument("--save-threshold", action="store_true",
                        help="write the thresholds beside the weights, where predict.py finds them")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--mistakes", metavar="FILE.png", help="write a contact sheet of the most wrong pairs")
    parser.add_argument("--device", default="auto", help=DEVICES)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, which some devices do faster")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that decode pictures")
    return parser


def parse_settings():
    parser = make_parser()
    settings = parser.parse_args()
    if settings.batch_size < 1 or settings.num_workers < 0:
        parser.error("--batch-size must be at least 1 and --num-workers at least 0")
    if not 0 <= settings.far < 1:
        parser.error("--far must be at least 0 and below 1")
    return settings


def read_benchmark(settings):
    """-> Pairs: those of --bin, or LFW's, which --download fetches and aligns into --lfw-dir."""
    if settings.bin:
        return read_verification_file(settings.bin)
    if settings.download:
        crop = lfw.SubjectCrop(FaceDetector())
        originals = lfw.read_pairs(settings.lfw_pairs, fetch_lfw(settings.download))
        align_lfw(originals.paths, settings.lfw_dir, crop, partial(tqdm, desc="aligning", unit="img", disable=None))
        print(f"{settings.lfw_dir} holds the aligned pictures; {len(crop.without_face)} without a face were cropped "
              "where LFW's faces usually are")
    return lfw.read_pairs(settings.lfw_pairs, settings.lfw_dir)


def print_figures(figures, seconds, pairs):
    pictures, impostors = len(pairs.paths), (~pairs.genuine).sum()
    print(f"Accuracy: {figures.accuracy:.5f}+-{figures.accuracy_std:.5f}")
    print(f"Best_thresholds: {figures.threshold:.5f}")
    if can_measure_far(pairs.genuine, figures.far_target):
        print(f"Validation rate: {figures.val:.5f}+-{figures.val_std:.5f} @ FAR={figures.far:.5f}")
    else:
        print(f"Validation rate: not told, {impostors} impostor pairs are too few for FAR={figures.far_target:g}")
    print(f"AUC: {figures.auc:.5f}  EER: {figures.eer:.5f}  "
          f"standard error of the accuracy: {figures.accuracy_standard_error:.5f}")
    print(f"{pictures} pictures in {seconds:.1f} s ({pictures / seconds:.0f} images/s)")


def measure_impostors(embeddings, distances, pairs):
    """-> the impostor curve of all pairs of two people where people are known, else of the benchmark's; or None."""
    if all(isinstance(path, Path) for path in pairs.paths):
        of = "all pictures of two people"
        counts = count_impostors(embeddings, [path.parent.name for path in pairs.paths])
    else:
        of, counts = "the benchmark's impostor pairs", count_distances(distances[~pairs.genuine])
    curve = impostor_curve(counts)
    return curve and {"of": of} | curve


def describe_measurement(figures, thresholds, impostors, benchmark, aligned, settings):
    """What --save-threshold keeps: the thresholds, the impostor curve, and how they were measured."""
    return {"backbone": settings.backbone, "input_shape": settings.input_shape,
            "letterbox_image": settings.letterbox_image, "flip": settings.flip, "bf16": settings.bf16,
            "benchmark": benchmark, "aligned": aligned, "pairs": figures.pairs,
            "accuracy": figures.accuracy, "accuracy_std": figures.accuracy_std,
            "val": figures.val, "val_std": figures.val_std, "far": figures.far, "auc": figures.auc, "eer": figures.eer,
            "thresholds": thresholds, "impostors": impostors}


def save_mistakes(pairs, distances, threshold, settings, crop, most=12):
    """The genuine pairs furthest beyond the threshold and the impostor pairs furthest within it."""
    def describe(number):
        paths = [pairs.paths[side[number]] for side in (pairs.first, pairs.second)]
        images = [preprocess(crop(path) if crop else path, settings.input_shape, settings.letterbox_image)
                  for path in paths]
        people = dict.fromkeys(path.parent.name for path in paths if isinstance(path, Path))
        return *images, distances[number], " / ".join(people) or f"pair {number + 1}"

    rejected = np.flatnonzero(pairs.genuine & (distances >= threshold))
    accepted = np.flatnonzero(~pairs.genuine & (distances < threshold))
    worst_rejected = rejected[np.argsort(-distances[rejected])][:most]
    worst_accepted = accepted[np.argsort(distances[accepted])][:most]
    picture = draw_errors({"One person, rejected": (len(rejected), [describe(n) for n in worst_rejected]),
                           "Two people, accepted": (len(accepted), [describe(n) for n in worst_accepted])}, threshold)
    with atomic_write(settings.mistakes) as temporary:
        picture.save(temporary, format="png")


@script
def main():
    settings = parse_settings()
    if settings.weights == "published":
        settings.model_path = str(published_weights(settings.backbone))
    settings.model_path = str(find_weights(settings.model_path))
    check_input_shape(settings.input_shape)
    device = choose_device(settings.device)
    keep_freed_memory(device)
    net = inference_copy(load_embedder(settings.model_path, settings.backbone)).to(device)
    settings.backbone = net.backbone
    print(f"{settings.model_path} ({net.backbone}) on {describe_device(device)}")
    pairs = read_benchmark(settings)
    print(f"{pairs.name}: {len(pairs.genuine)} pairs, {len(pairs.paths)} pictures")
    crop = lfw.SubjectCrop(FaceDetector()) if settings.align else None
    aligned = settings.align or not lfw.looks_unaligned(pairs.paths)
    if not aligned:
        print(f"{settings.bin or settings.lfw_dir} {lfw.UNALIGNED}; --align aligns them")

    start = time.perf_counter()
    try:
        embeddings = lfw.embed_pairs(net, pairs, settings, partial(tqdm, desc=pairs.name, disable=None), crop)
    except UselessEmbeddings as error:
        raise UserError(f"{settings.model_path}: {error}") from None
    figures, distances = lfw.measure(embeddings, pairs, settings.far)
    if not can_measure_far(pairs.genuine, settings.far):
        figures = figures._replace(val=None, val_std=None, far=None, far_threshold=None)
    print_figures(figures, time.perf_counter() - start, pairs)
    if crop:
        print(f"aligned; {len(crop.without_face)} pictures without a face, cropped where LFW's faces usually are")

    thresholds = measure_thresholds(distances, pairs.genuine, pairs.folds)
    plot_roc(distances, pairs.genuine, thresholds,
             f"{pairs.name}: accuracy {figures.accuracy:.4f}, AUC {figures.auc:.4f}, EER {figures.eer:.4f}",
             settings.png_save_path)
    print(f"ROC: {settings.png_save_path}")
    if settings.save_threshold:
        path = save_thresholds(settings.model_path, describe_measurement(
            figures, thresholds, measure_impostors(embeddings, distances, pairs), pairs.name, aligned, settings))
        print(f"Thresholds: {path}")
    if settings.json:
        written = {"benchmark": pairs.name} | figures._asdict() | {"aligned": aligned, "settings": vars(settings)}
        write_text(settings.json, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
        print(f"Figures: {settings.json}")
    if settings.mistakes:
        save_mistakes(pairs, distances, figures.threshold, settings, crop)
        print(f"Mistakes: {settings.mistakes}")


if __name__ == "__main__":
    main()
