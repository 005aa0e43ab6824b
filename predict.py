"""Compare two pictures of faces: are they one person? Or find a face among the people in a folder.

    python predict.py                                     asks for two file names, again and again
    python predict.py img/1_001.jpg img/1_002.jpg         answers once
    python predict.py A.jpg B.jpg --save comparison.png   and keeps the picture
    python predict.py A.jpg --gallery people --top 3      who is it, of people/<name>/*.jpg, people/<name>.jpg?
    python predict.py A.jpg B.jpg --face 2                the second largest face of each photograph
    python predict.py A.jpg B.jpg --face 1 2              the largest of A.jpg, the second largest of B.jpg
    python predict.py --fps                               measures the speed
    python predict.py A.jpg B.jpg --backbone iresnet50 --weights published --threshold 1.2
    python predict.py A.jpg B.jpg --weights published     with the published weights, downloaded the first time
    python predict.py --download iresnet50                only downloads them
    python predict.py --export arcface.onnx               writes the network for other programs (or .pt2)
"""
import argparse
import os
import re
from functools import partial
from itertools import takewhile

from tqdm import tqdm

from arcface import Arcface
from utils.common.device import DEVICES, describe_device, keep_freed_memory
from utils.common.errors import SettingsParser, UserError, script
from utils.common.files import REPOSITORY, atomic_write
from utils.drawing.contact_sheets import show_image
from utils.evaluation.thresholds import OPERATING_POINTS, WORDS
from utils.weights.export import export
from utils.weights.published import SHA256, published_weights


def parse_settings():
    defaults, switch = Arcface._defaults, argparse.BooleanOptionalAction
    parser = SettingsParser(__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="two pictures to compare; none: ask for them")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--model-path", default=defaults["model_path"],
                         help="the weights: a .pth file, or a run's folder for its best.pth")
    weights.add_argument("--weights", choices=("bundled", "published"), default="bundled",
                         help="published: those of the original repository, downloaded where they are not there yet")
    parser.add_argument("--backbone", help="the network of the weights (default: told from the file; mobilefacenet for "
                        "--weights published)")
    parser.add_argument("--letterbox-image", action=switch, default=defaults["letterbox_image"],
                        help="pad a picture to the network's shape instead of stretching it")
    parser.add_argument("--align", choices=["auto", "yes", "no"], default="auto",
                        help="find and align the face in a photograph; auto: in what is larger than an aligned crop")
    parser.add_argument("--face", nargs="+", default=[defaults["face"]], metavar="K",
                        help="which face of a photograph, 1: the largest; or two numbers, for the first and the second")
    parser.add_argument("--device", default=defaults["device"], help=DEVICES)
    parser.add_argument("--cuda", action=switch, default=defaults["cuda"],
                        help="--no-cuda is another word for --device cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, which some devices do faster")
    parser.add_argument("--threshold", type=float, default=defaults["threshold"],
                        help="one person below this distance (default: that of --operating-point)")
    parser.add_argument("--operating-point", choices=OPERATING_POINTS, default=defaults["operating_point"],
                        help="which of the thresholds that eval_LFW.py --save-threshold measured for the weights; with "
                        "--gallery far-X is the share of strangers who may be named (default: best-accuracy, with "
                        "--gallery far-0.01, and \"not sure\" between the clear cases)")
    parser.add_argument("--gallery", metavar="DIR", help="find one picture among the people in this folder")
    parser.add_argument("--top", type=int, default=5, help="how many people to name, with --gallery")
    parser.add_argument("--save", metavar="FILE.png", help="write the pictures side by side with the verdict")
    parser.add_argument("--show", action=switch, default=True, help="show them in a window where there is a screen")
    parser.add_argument("--fps", action="store_true", help="measure the speed instead")
    parser.add_argument("--batch-size", type=int, default=64, help="for --fps")
    parser.add_argument("--download", choices=tuple(SHA256), help="download these published weights instead")
    parser.add_argument("--export", metavar="FILE", help="write the network as FILE.onnx or FILE.pt2 instead")
    settings = parser.parse_args()
    settings.face, images = faces_and_images(settings.face, parser)
    settings.images += images
    if settings.gallery and len(settings.images) != 1:
        parser.error(f"give one picture to find in --gallery {settings.gallery}, not {len(settings.images)}")
    if settings.gallery and settings.operating_point == "best-accuracy" and settings.threshold is None:
        parser.error("--operating-point best-accuracy is for two pictures and would name most strangers: with "
                     "--gallery leave it out, or give far-0.01 or far-0.001")
    if not settings.gallery and len(settings.images) not in (0, 2):
        parser.error(f"give two pictures, or none to be asked for them, not {len(settings.images)}")
    if settings.export and settings.bf16:
        parser.error("--export writes float32, which its reader may run as it likes: leave out --bf16")
    if min(settings.batch_size, settings.top) < 1:
        parser.error("--batch-size and --top must be at least 1")
    settings.align = {"auto": "auto", "yes": True, "no": False}[settings.align]
    return settings


def faces_and_images(words, parser):
    """What stands behind --face -> (the face of each of two pictures, the pictures that follow its numbers)."""
    numbers = [int(word) for word in takewhile(lambda word: str(word).isdecimal(), words[:2])]
    if not numbers or min(numbers) < 1:
        parser.error(f"--face {words[0]}: give a number from 1, or one for each picture")
    return (numbers[0], numbers[-1]), words[len(numbers):]


def compare(arcface, image_1, image_2, settings):
    match = arcface.verify(image_1, image_2)
    print_remarks(arcface, image_1, image_2)
    print(f"Distance: {match.distance:.3f}  Similarity: {match.similarity:.3f}")
    verdict = WORDS[match.verdict]
    if match.verdict == "not sure":
        verdict += f": one person by this threshold, not below {match.unsure[0]:.3f} = FAR 0.001"
    print(f"Verdict: {verdict} (threshold {match.threshold:.3f} {arcface.threshold_meaning})")
    if settings.save or settings.show:
        save_and_show(arcface.draw(image_1, image_2, match), settings)


def print_remarks(arcface, *images):
    for image, crop in zip(images, arcface.crops):
        for remark in crop.find(image).remarks:
            print(f"{image}: {remark}")


def save_and_show(picture, settings):
    if settings.save:
        with atomic_write(settings.save) as temporary:
            picture.save(temporary, format="png")
        print(f"Picture: {settings.save}")
    if settings.show:
        show_image(picture)


def identify(arcface, image, settings):
    """Print the nearest people of the gallery as a table, the nearest first."""
    arcface.embed([image])  # a picture that does not open is told before thousands are embedded
    print_remarks(arcface, image)
    gallery = arcface.open_gallery(settings.gallery, partial(tqdm, desc="gallery", disable=None))
    for reason in gallery.skipped:
        print(f"skipped: {reason}")
    if gallery.note:
        print(gallery.note)
    print(f"{settings.gallery}: {len(gallery.people)} people, {len(gallery.paths)} pictures, "
          f"{gallery.embedded} of them embedded now")
    candidates, meaning = arcface.identify(image, gallery, settings.top), arcface.gallery_threshold(gallery).meaning
    print("    distance  similarity  verdict           person (nearest picture)")
    for place, candidate in enumerate(candidates, 1):
        print(f"{place:2}  {candidate.distance:8.3f}  {candidate.similarity:10.3f}  {WORDS[candidate.verdict]:16}  "
              f"{candidate.name} ({candidate.picture.relative_to(gallery.folder)})")
    best = candidates[0]
    verdict = {"same": best.name, "not sure": f"not sure: perhaps {best.name}", "different": "nobody in the gallery"}
    print(f"Verdict: {verdict[best.verdict]} (threshold {best.threshold:.3f} {meaning})")
    if settings.save or settings.show:
        save_and_show(arcface.draw_candidates(image, candidates, meaning), settings)


def path_typed(text):
    """What a person typed, pasted or dropped into the terminal -> the path that they mean.

    That may be in quotes or begin with ~; a shell puts a backslash before what is special to it, such as a space, and
    Windows has one between folders.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    path = os.path.expanduser(text)
    readings = path, re.sub(r"\\(.)", r"\1", path), path.replace("\\", "/")
    return next((reading for reading in readings if os.path.exists(reading)), path)


def compare_until_done(arcface, settings):
    """Ask for two file names until an empty line, end of input or Ctrl-C; a bad path is asked for again."""
    print("Two pictures to compare, again and again; an empty line or Ctrl-C ends.")
    try:
        while True:
            paths = []
            while len(paths) < 2:
                path = path_typed(input(f"Input image_{len(paths) + 1} filename:"))
                if not path:
                    return
                try:
                    arcface.embed([path], crop=arcface.crops[len(paths)])
                    paths.append(path)
                except UserError as error:
                    print(error)
            compare(arcface, *paths, settings)
    except (EOFError, KeyboardInterrupt):
        print()


def measure_speed(arcface, settings):
    for batch_size in sorted({1, settings.batch_size}):
        seconds = arcface.get_FPS(REPOSITORY / "img" / "1_001.jpg", 20, batch_size)
        print(f"batch {batch_size}: {1000 * seconds:.2f} ms a picture, {1 / seconds:.1f} images/s (decoding included)")


@script
def main():
    settings = parse_settings()
    if settings.download:
        print(f"{published_weights(settings.download)}: --weights published --backbone {settings.download} uses it")
        return
    if settings.weights == "published":
        settings.model_path = str(published_weights(settings.backbone))
    arcface = Arcface(**{name: getattr(settings, name) for name in
                         ("model_path", "backbone", "letterbox_image", "device", "cuda", "bf16", "align", "face",
                          "threshold", "operating_point")})
    keep_freed_memory(arcface.device)
    print(f"{arcface.model_path} ({arcface.net.backbone}) on {describe_device(arcface.device)}")
    if arcface.threshold_note:
        print(arcface.threshold_note)
    if settings.export:
        print(f"{settings.export}: {export(arcface, settings.export)}")
    elif settings.fps:
        measure_speed(arcface, settings)
    elif settings.gallery:
        identify(arcface, settings.images[0], settings)
    elif settings.images:
        compare(arcface, *settings.images, settings)
    else:
        compare_until_done(arcface, settings)


if __name__ == "__main__":
    main()
