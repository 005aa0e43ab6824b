"""The weights that bubbliiiing/arcface-pytorch published, trained on CASIA-WebFace; the flags that choose weights."""
import argparse
from contextlib import suppress

from nets.arcface import DEFAULT_BACKBONE, backbone_name
from utils.common.device import DEVICES
from utils.common.errors import UserError
from utils.common.files import download, locate
from utils.weights.checkpoint import find_weights, load_embedder

ADDRESS = "https://github.com/bubbliiiing/arcface-pytorch/releases/download/v1.0"
SHA256 = {  # None: not known, so what is downloaded has to load as weights of this backbone
    "mobilefacenet": "4c08e11a0a2bbf299910210da647c7d8105c348f4c533868e1710dbcf7b22480",
    "mobilenet": None,
    "iresnet50": None,
}


def published_weights(backbone=None):
    """Return the path of a backbone's published weights, downloaded into model_data/ if they are not there yet.

    backbone: None is the default one. Raises UserError for one without published weights, and as `download` does.
    """
    backbone = backbone or DEFAULT_BACKBONE
    with suppress(ValueError):
        backbone = backbone_name(backbone)
    if backbone not in SHA256:
        raise UserError(f"no weights are published for {backbone}: choose from {', '.join(SHA256)}")
    path = locate(f"model_data/published_{backbone}.pth")
    download(f"{ADDRESS}/arcface_{backbone}.pth", path, SHA256[backbone], lambda file: load_embedder(file, backbone))
    return path


def add_network_flags(parser):
    """Add the flags of predict.py and eval_LFW.py that choose a network and how it runs."""
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--model-path", default="model_data/arcface_mobilefacenet.pth",
                         help="the weights: a .pth file, a run's folder for its best.pth, or an .onnx model")
    weights.add_argument("--weights", choices=("bundled", "published"), default="bundled",
                         help="published: those of the original repository, downloaded the first time")
    parser.add_argument("--backbone", help="the network of the weights (default: inferred from the file; mobilefacenet "
                        "for --weights published)")
    parser.add_argument("--letterbox-image", action=argparse.BooleanOptionalAction, default=True,
                        help="pad an image to the network's shape instead of stretching it")
    parser.add_argument("--device", default="auto", help=DEVICES)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, which some devices do faster")


def chosen_weights(args):
    """Return the path, as text, of the weights that these flags choose."""
    return str(published_weights(args.backbone) if args.weights == "published" else find_weights(args.model_path))
