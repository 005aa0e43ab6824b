"""Improved ResNet for faces: iResNet-18 to 200 (Duta et al. 2020, arXiv 2004.04989; ArcFace section 3.1).

The layer names are those of the published weights, which are those of insightface arcface_torch.
"""
from torch import nn


class Block(nn.Module):
    """BN, 3x3 conv, BN, PReLU, 3x3 conv, BN, plus the input: nothing non-linear on the shortcut."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


def stage(in_channels, out_channels, count):
    """`count` blocks, the first of which halves the resolution."""
    blocks = [Block(in_channels, out_channels, stride=2)]
    blocks += [Block(out_channels, out_channels, stride=1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


class IResNet(nn.Module):
    """Embed images (B, 3, 112, 112) as (B, embedding_size), not yet normalised.

    depths: the number of blocks in each of the four stages; (3, 4, 14, 3) is iResNet-50.
    """

    def __init__(self, depths, embedding_size=512, dropout=0.5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)               # 112, the stem keeps the resolution
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        self.layer1 = stage(64, 64, depths[0])                                # 112 -> 56
        self.layer2 = stage(64, 128, depths[1])                               # 56 -> 28
        self.layer3 = stage(128, 256, depths[2])                              # 28 -> 14
        self.layer4 = stage(256, 512, depths[3])                              # 14 -> 7
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512 * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        # The embedding is normalised next, so a scale per dimension would only distort the sphere: frozen at 1.
        self.features.weight.requires_grad = False

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(self.bn2(x).flatten(1))
        return self.features(self.fc(x))
