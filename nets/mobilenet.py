"""MobileNetV1 for faces (Howard et al. 2017, arXiv 1704.04861), with the layer names of the published weights."""
import torch
from torch import nn


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with groups = channels, which under autocast on a CPU runs in float32 if it has a stride.

    There oneDNN computes the bfloat16 gradient of the input by a reference loop: 66 ms for a batch of 32 x 128x56x56
    against 4 ms in float32 (2 cores of Zen 4), together 190 of the 490 ms of MobileFaceNet's step.
    """

    def __init__(self, channels, kernel_size, stride=1, padding=0):
        super().__init__(channels, channels, kernel_size, stride, padding, groups=channels, bias=False)

    def forward(self, x):
        if self.stride == (1, 1) or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


def conv_bn_relu6(conv):
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6(inplace=True)]


def depthwise_separable(in_channels, out_channels, stride=1):
    return nn.Sequential(
        *conv_bn_relu6(DepthwiseConv2d(in_channels, 3, stride, padding=1)),
        *conv_bn_relu6(nn.Conv2d(in_channels, out_channels, 1, bias=False)),
    )


class MobileNetV1(nn.Module):
    """Embed images (B, 3, 112, 112) as (B, embedding_size), not yet normalised.

    Without residual connections it learns slowly from random weights; start it from published ones.
    """

    def __init__(self, embedding_size=512, dropout=0.5):
        super().__init__()
        self.stage1 = nn.Sequential(
            nn.Sequential(*conv_bn_relu6(nn.Conv2d(3, 32, 3, padding=1, bias=False))),  # the stem keeps 112
            depthwise_separable(32, 64),
            depthwise_separable(64, 128, stride=2),                           # 112 -> 56
            depthwise_separable(128, 128),
            depthwise_separable(128, 256, stride=2),                          # 56 -> 28
            depthwise_separable(256, 256),
        )
        self.stage2 = nn.Sequential(
            depthwise_separable(256, 512, stride=2),                          # 28 -> 14
            *(depthwise_separable(512, 512) for _ in range(5)),
        )
        self.stage3 = nn.Sequential(
            depthwise_separable(512, 1024, stride=2),                         # 14 -> 7
            depthwise_separable(1024, 1024),
        )
        self.sep = nn.Conv2d(1024, 512, 1, bias=False)
        self.sep_bn = nn.BatchNorm2d(512)
        self.prelu = nn.PReLU(512)
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(512 * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x):
        x = self.stage3(self.stage2(self.stage1(x)))
        x = self.prelu(self.sep_bn(self.sep(x)))
        x = self.dropout(self.bn2(x).flatten(1))
        return self.features(self.linear(x))
