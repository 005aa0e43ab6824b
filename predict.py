"""Compare two pictures of faces: are they one person?

    python predict.py                                     asks for two file names, again and again
    python predict.py img/1_001.jpg img/1_002.jpg         answers once
    python predict.py A.jpg B.jpg --save comparison.png   and keeps the picture
    python predict.py A.jpg B.jpg --face 2                the second largest face of each photograph
    python predict.py --fps                               measures the speed
    python predict.py A.jpg B.jpg --backbone iresnet50 --model-path model_data/arcface_iresnet50.pth --threshold 1.2
"""
import argparse

from arcface import Arcface
from utils.device import describe_device, keep_freed_memory
from utils.errors import SettingsParser, UserError, script
from utils.files import atomic_write
from utils.pictures import show


def parse_settings():
    defaults, switch = Arcface._defaults, argparse.BooleanOptionalAction
    parser = SettingsParser(__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="two pictures to compare; none: ask for them")
    parser.add_argument("--model-path", default=defaults["model_path"], help="weights (.pth)")
    parser.add_argument("--backbone", default=defaults["backbone"], help="the network of the weights")
    parser.add_argument("--letterbox-image", action=switch, default=defaults["letterbox_image"],
                        help="pad, do not stretch")
    parser.add_argument("--align", choices=["auto", "yes", "no"], default="auto",
                        help="find and align the face in a photograph; auto: in what is larger than an aligned crop")
    parser.add_argument("--face", type=int, default=defaults["face"], help="which face of a photograph, 1: the largest")
    parser.add_argument("--cuda", action=switch, default=defaults["cuda"], help="use CUDA if there is one")
    parser.add_argument("--threshold", type=float, default=defaults["threshold"], help="one person below this distance")
    parser.add_argument("--save", metavar="FILE.png", help="write the two pictures side by side with the verdict")
    parser.add_argument("--show", action=switch, default=True, help="show them in a window where there is a screen")
    parser.add_argument("--fps", action="store_true", help="measure the speed instead")
    parser.add_argument("--batch-size", type=int, default=64, help="for --fps")
    settings = parser.parse_args()
    if len(settings.images) not in (0, 2):
        parser.error(f"give two pictures, or none to be asked for them, not {len(settings.images)}")
    if settings.batch_size < 1 or settings.face < 1:
        parser.error("--batch-size and --face must be at least 1")
    settings.align = {"auto": "auto", "yes": True, "no": False}[settings.align]
    return settings


def compare(arcface, image_1, image_2, settings):
    match = arcface.verify(image_1, image_2)
    print(f"Distance: {match.distance:.3f}  Similarity: {match.similarity:.3f}")
    verdict = "same person" if match.same else "different people"
    print(f"Verdict: {verdict} (threshold {match.threshold:.3f} on the distance)")
    if settings.save or settings.show:
        picture = arcface.draw(image_1, image_2, match)
        if settings.save:
            with atomic_write(settings.save) as temporary:
                picture.save(temporary, format="png")
            print(f"Picture: {settings.save}")
        if settings.show:
            show(picture)


def compare_until_done(arcface, settings):
    """Ask for two file names until an empty line, end of input or Ctrl-C; a bad path is asked for again."""
    try:
        while True:
            paths = []
            while len(paths) < 2:
                path = input(f"Input image_{len(paths) + 1} filename:").strip()
                if not path:
                    return
                try:
                    arcface.embed([path])
                    paths.append(path)
                except UserError as error:
                    print(error)
            compare(arcface, *paths, settings)
    except (EOFError, KeyboardInterrupt):
        print()


def measure_speed(arcface, settings):
    for batch_size in sorted({1, settings.batch_size}):
        seconds = arcface.get_FPS("img/1_001.jpg", 20, batch_size)
        print(f"batch {batch_size}: {1000 * seconds:.2f} ms a picture, {1 / seconds:.1f} images/s (decoding included)")


@script
def main():
    settings = parse_settings()
    keep_freed_memory()
    arcface = Arcface(**{name: getattr(settings, name) for name in
                         ("model_path", "backbone", "letterbox_image", "cuda", "align", "face", "threshold")})
    print(f"{settings.model_path} ({arcface.net.backbone}) on {describe_device(arcface.device)}")
    if settings.fps:
        measure_speed(arcface, settings)
    elif settings.images:
        compare(arcface, *settings.images, settings)
    else:
        compare_until_done(arcface, settings)


if __name__ == "__main__":
    main()
