"""ArcfaceNet: a backbone that embeds faces, and the head that trains it."""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from nets.head import ArcMarginProduct
from nets.iresnet import IResNet
from nets.mobilefacenet import MobileFaceNet
from nets.mobilenet import MobileNetV1
from nets.partial_fc import UNSHARDED


class Backbone(NamedTuple):
    """Everything that the rest of the repository knows of a backbone."""
    build: Callable[[], nn.Module]
    embedding_size: int
    scale: float          # the head's s
    embedding_layer: str  # the layer whose weight makes the embedding
    compile_pays: bool    # torch.compile speeds up its training on a CPU (see utils/training/state.py)


BACKBONES = {
    "mobilefacenet": Backbone(MobileFaceNet, 128, 32.0, "features", True),
    "mobilenet": Backbone(MobileNetV1, 512, 64.0, "linear", False),
    "iresnet18": Backbone(partial(IResNet, (2, 2, 2, 2)), 512, 64.0, "fc", True),
    "iresnet34": Backbone(partial(IResNet, (3, 4, 6, 3)), 512, 64.0, "fc", True),
    "iresnet50": Backbone(partial(IResNet, (3, 4, 14, 3)), 512, 64.0, "fc", True),
    "iresnet100": Backbone(partial(IResNet, (3, 13, 30, 3)), 512, 64.0, "fc", True),
    "iresnet200": Backbone(partial(IResNet, (6, 26, 60, 6)), 512, 64.0, "fc", True),
}
DEFAULT_BACKBONE = "mobilefacenet"
HEADS = {"arcface": ArcMarginProduct}


def backbone_name(name):
    """Return the key of BACKBONES for a name or an alias: "mobilenetv1" and "arcface_mobilenet" are "mobilenet".

    Raises ValueError for an unknown name.
    """
    key = name.removeprefix("arcface_").replace("mobilenetv1", "mobilenet")
    if key not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    return key


class ArcfaceNet(nn.Module):
    """`net(images)` returns L2-normalised embeddings (B, D), `net(images, labels)` scaled margin logits (B, C).

    images: float32 (B, 3, 112, 112) in [-1, 1]; labels: int64 (B,) in 0..num_classes-1.
    num_classes: None builds a network without a head, for evaluation and prediction.
    s: the head's scale, None for the backbone's. m, easy_margin, shard: see nets/head.py. head: a key of HEADS.

    `state_dict()` has the names of the published files: `arcface.<layer>...` and `head.weight`.
    """

    def __init__(self, num_classes=None, backbone=DEFAULT_BACKBONE, s=None, m=0.5, easy_margin=False, head="arcface",
                 shard=UNSHARDED):
        super().__init__()
        self.backbone = backbone_name(backbone)
        kind = BACKBONES[self.backbone]
        self.embedding_size = kind.embedding_size
        self.arcface = kind.build()  # the backbone; the published files name it so
        if num_classes is not None:
            self.head = HEADS[head](kind.embedding_size, num_classes, kind.scale if s is None else s, m, easy_margin,
                                    shard)

    def forward(self, images, labels=None):
        embeddings = self.arcface(images)
        if labels is not None:
            return self.head(embeddings, labels)
        # In float32 at least, so that the length is 1 to seven digits under bf16 autocast too.
        return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
