"""The weights that bubbliiiing/arcface-pytorch published, trained on CASIA-WebFace."""
from nets.arcface import DEFAULT_BACKBONE, backbone_name
from utils.common.errors import UserError
from utils.common.files import download, locate
from utils.weights.checkpoint import load_embedder

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
    try:
        backbone = backbone_name(backbone or DEFAULT_BACKBONE)
    except ValueError as error:
        raise UserError(str(error)) from None
    if backbone not in SHA256:
        raise UserError(f"no weights are published for {backbone}: choose --backbone {', '.join(SHA256)}")
    path = locate(f"model_data/published_{backbone}.pth")
    download(f"{ADDRESS}/arcface_{backbone}.pth", path, SHA256[backbone], lambda file: load_embedder(file, backbone))
    return path
