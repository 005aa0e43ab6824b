"""Compare two photos of faces: do they show one person? Or find a face among the people in a folder.

    python predict.py                                     asks for two file names, again and again
    python predict.py img/1_001.jpg img/1_002.jpg         answers once
    python predict.py A.jpg B.jpg --save comparison.png   and draws both faces with the verdict
    python predict.py A.jpg --gallery people --top 3      who is it, of people/<name>/*.jpg, people/<name>.jpg?
    python predict.py A.jpg --gallery people --all-faces  who is everybody in a photo?
    python predict.py A.jpg B.jpg --face 1 2              the main face of A.jpg, the second one of B.jpg
    python predict.py A.jpg B.jpg --weights published     with the published weights, downloaded the first time
    python predict.py --export arcface.onnx               writes the network for other programs
"""
import argparse
import os
import re
import sys
from functools import partial

from tqdm import tqdm

from arcface import Arcface
from utils.common.device import describe_device, describe_versions, keep_freed_memory
from utils.common.errors import SettingsParser, UserError, number, positive_int, script
from utils.common.files import REPOSITORY
from utils.drawing.contact_sheets import draw_everybody, image_format, save_image
from utils.evaluation.thresholds import OPERATING_POINTS, WORDS
from utils.weights.export import export
from utils.weights.published import add_network_flags, chosen_weights, published_weights


def parse_args():
    defaults, switch = Arcface._defaults, argparse.BooleanOptionalAction
    parser = SettingsParser(__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="two images to compare; none: ask for them")
    add_network_flags(parser)
    parser.add_argument("--align", choices=["auto", "yes", "no"], default="auto",
                        help="find and align the face in a photo; auto: in images larger than an aligned crop")
    parser.add_argument("--face", nargs="+", type=positive_int, default=[defaults["face"]], metavar="K",
                        help="which face of a photo, 1: the main one; or two numbers, for the first and the second")
    parser.add_argument("--threshold", type=number(minimum=0, maximum=2), default=defaults["threshold"],
                        help="one person below this distance (default: that of --operating-point)")
    parser.add_argument("--operating-point", choices=OPERATING_POINTS, default=defaults["operating_point"],
                        help="use this threshold of eval_LFW.py --save-threshold; with --gallery, far-X limits the "
                        "rate of unknown identities that are identified (default: best-accuracy, with --gallery "
                        "far-0.01, and \"not sure\" between the clear cases)")
    parser.add_argument("--gallery", metavar="DIR", help="find the face of one image among the people in this folder")
    parser.add_argument("--all-faces", action="store_true", help="with --gallery: every face, from left to right")
    parser.add_argument("--top", type=positive_int, default=5, help="with --gallery: how many people to print")
    parser.add_argument("--save", metavar="FILE.png", help="write an image of the faces with the verdict")
    parser.add_argument("--show", action=switch, default=True, help="show it in a window if there is a screen")
    parser.add_argument("--fps", action="store_true", help="measure the speed instead")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="for --fps")
    parser.add_argument("--download", metavar="BACKBONE", help="download this backbone's published weights instead")
    parser.add_argument("--export", metavar="FILE.onnx", help="write the network instead")
    parser.add_argument("--version", action="store_true", help="print versions, device and weights instead")
    args = parser.parse_args()
    if len(args.face) > (1 if args.gallery else 2):
        parser.error("--face: give one number, or one for each image")
    if args.images and (args.export or args.fps or args.version or args.download):
        parser.error("--export, --fps, --version and --download take no images")
    if args.gallery and len(args.images) != 1:
        parser.error(f"give one image to find in --gallery {args.gallery}, not {len(args.images)}")
    if args.all_faces and (not args.gallery or args.face != [defaults["face"]]):
        parser.error("--all-faces finds every face in a gallery: give --gallery, and no --face")
    if not args.gallery and len(args.images) not in (0, 2):
        parser.error(f"give two images, or none to be asked for them, not {len(args.images)}")
    if args.save:
        image_format(args.save)  # raises UserError before anything is computed
    args.show &= sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    args.face = args.face[0], args.face[-1]
    args.align = {"auto": "auto", "yes": True, "no": False}[args.align]
    return args


def compare(arcface, image_1, image_2, args):
    faces = arcface.find(image_1), arcface.find(image_2, 1)
    match = arcface.verify(*faces)
    for remark in match.remarks:
        print(remark)
    print(f"Distance: {match.distance:.3f}  Similarity: {match.similarity:.3f}")
    verdict = WORDS[match.verdict]
    if match.verdict == "not sure" and not any(face.doubts for face in faces):
        verdict += f": below the threshold, but not below {arcface.pair_threshold.unsure[0]:.3f} (FAR 0.001)"
    print(f"Verdict: {verdict} (threshold {match.threshold:.3f} {arcface.pair_threshold.meaning})")
    if args.save or args.show:
        save_and_show(arcface.draw(*faces, match), args)


def save_and_show(image, args):
    if args.save:
        save_image(image, args.save)
        print(f"Image: {args.save}")
    if args.show:
        image.show()


def identify(arcface, image, args):
    """Print the nearest people of the gallery as a table, or the nearest one of each face."""
    arcface.thresholds.for_gallery(1)  # an operating point that is not for galleries: before all images are embedded
    faces = arcface.find_all(image) if args.all_faces else [arcface.find(image)]  # first: an image that does not open
    gallery = arcface.open_gallery(args.gallery, partial(tqdm, desc="gallery", disable=None))
    for reason in gallery.skipped:
        print(f"skipped: {reason}")
    print(f"{args.gallery}: {len(gallery.names)} people, {len(gallery.paths)} images, {gallery.embedded} embedded now")
    candidates = arcface.identify_all(faces, gallery) if args.all_faces else (
        arcface.identify(faces[0], gallery, args.top))
    for remark in dict.fromkeys(remark for candidate in candidates for remark in candidate.remarks):
        print(remark)
    print(f"{'face' if args.all_faces else '    '}  distance  similarity  verdict           person (nearest image)")
    for row, candidate in enumerate(candidates, 1):
        print(f"{row:4}  {candidate.distance:8.3f}  {candidate.similarity:10.3f}  {WORDS[candidate.verdict]:16}  "
              f"{candidate.name} ({candidate.path.relative_to(gallery.folder)})")
    meaning = arcface.gallery_threshold(gallery).meaning
    best = candidates[0]
    if args.all_faces:
        print(f"Threshold: {best.threshold:.3f} {meaning}")
    else:
        verdict = {"same": best.name, "not sure": f"not sure: the nearest is {best.name}",
                   "different": "nobody in the gallery"}[best.verdict]
        print(f"Verdict: {verdict} (threshold {best.threshold:.3f} {meaning})")
    if args.save or args.show:
        save_and_show(draw_everybody(faces, candidates) if args.all_faces else
                      arcface.draw_candidates(faces[0], candidates, meaning), args)


def path_typed(text):
    """Return the path that somebody typed or dropped into the terminal: in quotes, or with a \\ before spaces."""
    path = os.path.expanduser(text.strip().strip("\"'"))
    unescaped = re.sub(r"\\(.)", r"\1", path)
    return unescaped if os.path.exists(unescaped) else path


def compare_until_done(arcface, args):
    """Ask for two file names until an empty line, end of input or Ctrl-C; an invalid one is asked for again."""
    print("Two images to compare, again and again; an empty line or Ctrl-C ends.")
    try:
        while True:
            faces = []
            while len(faces) < 2:
                path = path_typed(input(f"Input image_{len(faces) + 1} filename:"))
                if not path:
                    return
                try:
                    face = arcface.find(path, len(faces))
                    arcface.embed([face])
                    faces.append(face)
                except UserError as error:
                    print(error)
            compare(arcface, *faces, args)
    except (EOFError, KeyboardInterrupt):
        print()


@script
def main():
    args = parse_args()
    if args.download:
        print(f"{published_weights(args.download)}: --weights published --backbone {args.download} uses it")
        return
    args.model_path = chosen_weights(args)
    if args.version:
        print(describe_versions())  # first: the weights may be at fault
    arcface = Arcface(**{name: value for name, value in vars(args).items() if name in Arcface._defaults})
    keep_freed_memory(arcface.device)
    print(f"{arcface.model_path} ({arcface.net.backbone}) on {describe_device(arcface.device, args.bf16)}")
    if arcface.thresholds.note:
        print(arcface.thresholds.note)
    if args.version:
        print(f"SHA-256 {arcface.thresholds.weights_sha256}")
    elif args.export:
        print(f"{args.export}: {export(arcface, args.export)}")
    elif args.fps:
        for batch_size in sorted({1, args.batch_size}):
            seconds = arcface.get_FPS(REPOSITORY / "img" / "1_001.jpg", 20, batch_size)
            print(f"batch {batch_size}: {1000 * seconds:.2f} ms an image, {1 / seconds:.1f} images/s (with decoding)")
    elif args.gallery:
        identify(arcface, args.images[0], args)
    elif args.images:
        compare(arcface, *args.images, args)
    else:
        compare_until_done(arcface, args)


if __name__ == "__main__":
    main()
