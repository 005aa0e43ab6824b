"""Measure a network on Labeled Faces in the Wild: accuracy, VAL@FAR, ROC.

    python eval_LFW.py                                                    the weights in model_data/
    python eval_LFW.py --model-path logs/RUN/best.pth --flip
    python eval_LFW.py --backbone iresnet50 --model-path model_data/arcface_iresnet50.pth --batch-size 64
    python eval_LFW.py --json lfw.json --mistakes mistakes.png            all figures; the most wrong pairs
    python eval_LFW.py --align --lfw-dir lfw_250                          the original 250x250 pictures, not aligned

lfw/ holds the pictures, aligned to the 112x112 template, as <Person>/<Person>_0001.jpg.
"""
import argparse
import json
import time
from functools import partial

import numpy as np
from tqdm import tqdm

from utils import lfw
from utils.checkpoint import load_embedder
from utils.detector import FaceDetector
from utils.device import choose_device, describe_device, keep_freed_memory
from utils.embedding import inference_copy
from utils.errors import SettingsParser, script
from utils.files import atomic_write, write_text
from utils.images import check_input_shape, preprocess
from utils.metrics import roc
from utils.pictures import draw_mistakes
from utils.plots import plot_roc


def make_parser():
    switch = argparse.BooleanOptionalAction
    parser = SettingsParser(__doc__)
    parser.add_argument("--backbone", default="mobilefacenet", help="the network of the weights")
    parser.add_argument("--model-path", default="model_data/arcface_mobilefacenet.pth", help="weights (.pth)")
    parser.add_argument("--input-shape", type=int, nargs=2, default=[112, 112], metavar=("H", "W"))
    parser.add_argument("--letterbox-image", action=switch, default=True, help="pad, not stretch")
    parser.add_argument("--lfw-dir", default="lfw", help="the aligned pictures")
    parser.add_argument("--align", action="store_true", help="find and align the faces in the original pictures")
    parser.add_argument("--lfw-pairs", default="model_data/lfw_pair.txt", help="the official list of pairs")
    parser.add_argument("--batch-size", type=int, default=256, help="pictures decoded (on CUDA: embedded) at once")
    parser.add_argument("--flip", action=switch, default=False, help="sum the embeddings of a picture and its mirror")
    parser.add_argument("--far", type=float, default=1e-3, help="the false accept rate at which VAL is told")
    parser.add_argument("--png-save-path", default="model_data/roc_test.png", help="the ROC picture to write")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--mistakes", metavar="FILE.png", help="write a contact sheet of the most wrong pairs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
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


def print_figures(figures, seconds, pictures):
    print(f"Accuracy: {figures.accuracy:.5f}+-{figures.accuracy_std:.5f}")
    print(f"Best_thresholds: {figures.threshold:.5f}")
    print(f"Validation rate: {figures.val:.5f}+-{figures.val_std:.5f} @ FAR={figures.far:.5f}")
    print(f"AUC: {figures.auc:.5f}  EER: {figures.eer:.5f}  "
          f"standard error of the accuracy: {figures.accuracy_standard_error:.5f}")
    print(f"{pictures} pictures in {seconds:.1f} s ({pictures / seconds:.0f} images/s)")


def save_roc(figures, distances, genuine, path):
    false_positive_rate, true_positive_rate, _ = roc(distances, genuine)
    accepted = distances < figures.threshold
    plot_roc(false_positive_rate, true_positive_rate, {
        f"best accuracy {figures.accuracy:.4f}": (accepted[~genuine].mean(), accepted[genuine].mean()),
        f"VAL {figures.val:.4f} at FAR {figures.far:.4f}": (figures.far, figures.val),
    }, f"LFW: AUC {figures.auc:.4f}, EER {figures.eer:.4f}", path)


def save_mistakes(pairs, distances, threshold, settings, crop, most=12):
    """The genuine pairs furthest beyond the threshold and the impostor pairs furthest within it."""
    def describe(number):
        paths = [pairs.paths[side[number]] for side in (pairs.first, pairs.second)]
        images = [preprocess(crop(path) if crop else path, settings.input_shape, settings.letterbox_image)
                  for path in paths]
        return *images, distances[number], " / ".join(dict.fromkeys(path.parent.name for path in paths))

    rejected = np.flatnonzero(pairs.genuine & (distances >= threshold))
    accepted = np.flatnonzero(~pairs.genuine & (distances < threshold))
    worst_rejected = rejected[np.argsort(-distances[rejected])][:most]
    worst_accepted = accepted[np.argsort(distances[accepted])][:most]
    picture = draw_mistakes({f"One person, rejected ({len(rejected)})": [describe(n) for n in worst_rejected],
                             f"Two people, accepted ({len(accepted)})": [describe(n) for n in worst_accepted]},
                            threshold)
    with atomic_write(settings.mistakes) as temporary:
        picture.save(temporary, format="png")


@script
def main():
    settings = parse_settings()
    keep_freed_memory()
    check_input_shape(settings.input_shape)
    device = choose_device(settings.device)
    net = inference_copy(load_embedder(settings.backbone, settings.model_path)).to(device)
    print(f"{settings.model_path} ({net.backbone}) on {describe_device(device)}")
    pairs = lfw.read_pairs(settings.lfw_pairs, settings.lfw_dir)
    crop = lfw.SubjectCrop(FaceDetector()) if settings.align else None
    aligned = settings.align or not lfw.looks_unaligned(pairs.paths)
    if not aligned:
        print(f"{settings.lfw_dir} holds the un-aligned 250x250 pictures: expect about 71% where the same network has "
              "98.5% on pictures aligned to the 112x112 template; --align aligns them")

    start = time.perf_counter()
    figures, distances = lfw.evaluate(net, pairs, settings, partial(tqdm, desc="LFW", disable=None), crop)
    print_figures(figures, time.perf_counter() - start, len(pairs.paths))
    if crop:
        print(f"aligned; {len(crop.without_face)} pictures without a face, cropped where LFW's faces usually are")

    save_roc(figures, distances, pairs.genuine, settings.png_save_path)
    print(f"ROC: {settings.png_save_path}")
    if settings.json:
        write_text(settings.json, json.dumps(
            figures._asdict() | {"aligned": aligned, "settings": vars(settings)}, indent=2, ensure_ascii=False) + "\n")
        print(f"Figures: {settings.json}")
    if settings.mistakes:
        save_mistakes(pairs, distances, figures.threshold, settings, crop)
        print(f"Mistakes: {settings.mistakes}")


if __name__ == "__main__":
    main()
