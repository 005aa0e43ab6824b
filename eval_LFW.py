"""Measure a network on Labeled Faces in the Wild: accuracy, VAL@FAR, ROC.

    python eval_LFW.py                                                    the weights in model_data/
    python eval_LFW.py --model-path logs/RUN --flip                       those of a run, with flip-averaged embeddings
    python eval_LFW.py --json lfw.json --mistakes mistakes.png            all metrics; the worst errors
    python eval_LFW.py --bin faces_emore/agedb_30.bin                     insightface's file of another benchmark
    python eval_LFW.py --download                                         fetch LFW and align it into lfw/
    python eval_LFW.py --align-from lfw_250                               align the original images into lfw/ first
    python eval_LFW.py --lfw-dir faces --lfw-pairs my_pairs.txt           your own pairs: lines of `path path 1` or 0
    python eval_LFW.py --save-threshold                                   thresholds for predict.py, beside the weights

lfw/ holds the images, aligned to the 112x112 template, as <Person>/<Person>_0001.jpg.
"""
import argparse
import json
import os
from functools import partial

import numpy as np
from tqdm import tqdm

from utils.common.device import choose_device, describe_device, keep_freed_memory
from utils.common.errors import SettingsParser, UserError, non_negative_int, number, positive_int, script
from utils.common.files import hash_file, write_text
from utils.drawing.contact_sheets import draw_errors, image_format, save_image
from utils.drawing.plots import plot_roc
from utils.evaluation.embedding import inference_copy
from utils.evaluation.pairs import align_lfw, check_aligned, embed_pairs, fetch_lfw, pair_metrics, read_bin, read_pairs
from utils.evaluation.thresholds import count_impostors, histogram, impostor_curve, measure_thresholds, save_thresholds
from utils.faces.detector import FaceDetector
from utils.faces.images import check_input_shape, image_name, preprocess
from utils.weights.checkpoint import load_embedder
from utils.weights.published import add_network_flags, chosen_weights


def make_parser():
    switch = argparse.BooleanOptionalAction
    parser = SettingsParser(__doc__)
    add_network_flags(parser)
    parser.add_argument("--input-shape", type=int, nargs=2, default=[112, 112], metavar=("H", "W"),
                        help="height and width that every image is resized to")
    parser.add_argument("--lfw-dir", default="lfw", help="the aligned images")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--bin", metavar="FILE", help="an insightface file of pairs, such as agedb_30.bin, not LFW")
    images.add_argument("--download", action="store_true",
                        help="fetch the images of LFW as scikit-learn does, and align them into --lfw-dir")
    images.add_argument("--align-from", metavar="DIR", help="align the original 250x250 images in DIR into --lfw-dir")
    parser.add_argument("--lfw-pairs", default="model_data/lfw_pair.txt",
                        help="LFW's list, or your own: lines of `path path 1`, or 0 for two people")
    parser.add_argument("--batch-size", type=positive_int, default=256, help="images decoded at once")
    parser.add_argument("--flip", action=switch, default=False,
                        help="sum the embeddings of an image and its horizontal flip")
    parser.add_argument("--far", type=number(above=0, below=1), default=1e-3,
                        help="the false accept rate at which VAL is measured")
    parser.add_argument("--png-save-path", default="model_data/roc_test.png", help="where to write the ROC plot")
    parser.add_argument("--save-threshold", action="store_true",
                        help="write the thresholds beside the weights, where predict.py finds them")
    parser.add_argument("--json", metavar="FILE", help="write all metrics")
    parser.add_argument("--mistakes", metavar="FILE", help="write a contact sheet of the worst errors")
    parser.add_argument("--num-workers", type=non_negative_int, default=4, help="threads that decode images")
    return parser


def read_benchmark(args):
    """Return the Pairs of --bin, or of --lfw-pairs, whose images are first aligned into --lfw-dir if asked for."""
    if args.bin:
        return read_bin(args.bin)
    if args.download or args.align_from:
        detector = FaceDetector()
        source = fetch_lfw() if args.download else args.align_from
        if os.path.realpath(source) == os.path.realpath(args.lfw_dir):
            raise UserError(f"--align-from {source} is --lfw-dir too: give another --lfw-dir for the aligned images")
        counts = align_lfw(read_pairs(args.lfw_pairs, source).paths, source, args.lfw_dir, detector)
        print(f"{args.lfw_dir}: {counts['aligned']} images aligned, {counts['without a face']} without a face cropped "
              f"at the usual place, {counts['kept']} crops kept")
    return read_pairs(args.lfw_pairs, args.lfw_dir)


def print_metrics(metrics):
    print(f"Accuracy: {metrics.accuracy:.5f}+-{metrics.accuracy_std:.5f}")
    print(f"Best_thresholds: {metrics.threshold:.5f}")
    if metrics.val is None:
        print(f"Validation rate: unknown, there are too few impostor pairs for FAR={metrics.far_target:g}")
    else:
        print(f"Validation rate: {metrics.val:.5f}+-{metrics.val_std:.5f} @ FAR={metrics.far:.5f}")
    print(f"AUC: {metrics.auc:.5f}  EER: {metrics.eer:.5f}  "
          f"standard error of the accuracy: {metrics.accuracy_standard_error:.5f}")


def save_measurement(args, metrics, thresholds, counts, benchmark, aligned):
    """Write the file of --save-threshold. counts: those of the impostor distances."""
    kept = ("pairs", "accuracy", "accuracy_std", "val", "val_std", "far", "auc", "eer")
    path = save_thresholds(args.model_path, {
        "backbone": args.backbone, "input_shape": args.input_shape, "letterbox_image": args.letterbox_image,
        "flip": args.flip, "bf16": args.bf16, "benchmark": benchmark, "aligned": aligned,
        **{name: getattr(metrics, name) for name in kept},
        "thresholds": thresholds, "impostors": impostor_curve(counts)}, args.weights_sha256)
    print(f"Thresholds: {path}")


def save_errors(args, pairs, distances, threshold, most=12):
    """Draw the genuine pairs furthest above the threshold and the impostor pairs furthest below it."""
    def pair_to_draw(index):
        sides = pairs.first[index], pairs.second[index]
        images = [preprocess(pairs.paths[side], args.input_shape, args.letterbox_image) for side in sides]
        names = [pairs.identities[side] if pairs.identities else image_name(pairs.paths[side]) for side in sides]
        return *images, distances[index], " / ".join(dict.fromkeys(names))

    wrong = {"One person, rejected": pairs.genuine & (distances >= threshold),
             "Two people, accepted": ~pairs.genuine & (distances < threshold)}
    errors = {}
    for title, mask in wrong.items():
        indices = np.flatnonzero(mask)
        worst = indices[np.argsort(-np.abs(distances[indices] - threshold))][:most]
        errors[title] = len(indices), [pair_to_draw(index) for index in worst]
    save_image(draw_errors(errors, threshold), args.mistakes)
    print(f"Mistakes: {args.mistakes}")


@script
def main():
    args = make_parser().parse_args()
    args.model_path = chosen_weights(args)
    check_input_shape(args.input_shape)
    if args.save_threshold and (args.flip or not args.letterbox_image or args.input_shape != [112, 112]):
        raise UserError("--save-threshold goes with no --flip, --no-letterbox-image or --input-shape")
    for path in filter(None, (args.png_save_path, args.mistakes)):
        image_format(path)  # an unknown ending is an error before anything is computed
    device = choose_device(args.device)
    keep_freed_memory(device)
    if os.path.isfile(args.model_path):  # before they are loaded: a run may replace them
        args.weights_sha256 = hash_file(args.model_path)
    net = inference_copy(load_embedder(args.model_path, args.backbone)).to(device)
    args.backbone = net.backbone
    print(f"{args.model_path} ({net.backbone}) on {describe_device(device, args.bf16)}")
    pairs = read_benchmark(args)
    print(f"{pairs.name}: {len(pairs.genuine)} pairs in {pairs.folds} folds, {len(pairs.paths)} images")
    aligned = check_aligned(pairs)
    if args.save_threshold and aligned is False:
        raise UserError("--save-threshold needs aligned images: predict.py aligns the faces that it compares")
    embeddings = embed_pairs(net, pairs, input_shape=args.input_shape, letterbox=args.letterbox_image,
                             batch_size=args.batch_size, workers=args.num_workers, flip=args.flip, bf16=args.bf16,
                             progress=partial(tqdm, desc=pairs.name, disable=None))
    metrics, distances = pair_metrics(embeddings, pairs, args.far)
    thresholds = measure_thresholds(distances, pairs.genuine, pairs.folds)
    print_metrics(metrics)
    if args.json:
        record = {"benchmark": pairs.name} | metrics._asdict() | {"aligned": aligned, "settings": vars(args)}
        write_text(args.json, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        print(f"Metrics: {args.json}")
    if args.save_threshold:  # all pairs of different people, if identities are known
        counts = (count_impostors(embeddings, pairs.identities) if pairs.identities
                  else histogram(distances[~pairs.genuine]))
        save_measurement(args, metrics, thresholds, counts, pairs.name, aligned)
    if args.mistakes:
        save_errors(args, pairs, distances, metrics.threshold)
    title = f"{pairs.name}: accuracy {metrics.accuracy:.4f}, AUC {metrics.auc:.4f}, EER {metrics.eer:.4f}"
    plot_roc(distances, pairs.genuine, thresholds, title, args.png_save_path)
    print(f"ROC: {args.png_save_path}")


if __name__ == "__main__":
    main()
