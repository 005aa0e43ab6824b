"""MobileFaceNet (Chen et al. 2018, arXiv 1804.07573), with the layer names of the published weights."""
from collections import OrderedDict

from torch import nn

from nets.mobilenet import DepthwiseConv2d


def conv_bn(conv):
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(conv.out_channels)))


def conv_bn_prelu(conv):
    layers = conv_bn(conv)
    layers.add_module("prelu", nn.PReLU(conv.out_channels))
    return layers


def pointwise(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


class Bottleneck(nn.Module):
    """Expand with 1x1, filter each channel with 3x3, project with a linear 1x1 (MobileNetV2 with PReLU)."""

    def __init__(self, in_channels, out_channels, expanded, stride=1):
        super().__init__()
        self.conv = conv_bn_prelu(pointwise(in_channels, expanded))
        self.conv_dw = conv_bn_prelu(DepthwiseConv2d(expanded, 3, stride, padding=1))
        self.project = conv_bn(pointwise(expanded, out_channels))
        self.residual = stride == 1

    def forward(self, x):
        out = self.project(self.conv_dw(self.conv(x)))
        return x + out if self.residual else out


def bottlenecks(channels, expanded, count):
    """`count` residual bottlenecks at one resolution."""
    model = nn.Sequential(*(Bottleneck(channels, channels, expanded) for _ in range(count)))
    return nn.Sequential(OrderedDict(model=model))


class MobileFaceNet(nn.Module):
    """Embed images (B, 3, 112, 112) as (B, embedding_size), not yet normalised.

    The 7x7 feature map is reduced by a depthwise convolution that learns one weight per position
    (GDConv) instead of average pooling: the middle of a face is more informative than its corners.
    """

    def __init__(self, embedding_size=128):
        super().__init__()
        self.conv1 = conv_bn_prelu(nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False))   # 112 -> 56
        self.conv2_dw = conv_bn_prelu(DepthwiseConv2d(64, 3, padding=1))
        self.conv_23 = Bottleneck(64, 64, expanded=128, stride=2)             # 56 -> 28
        self.conv_3 = bottlenecks(64, expanded=128, count=4)
        self.conv_34 = Bottleneck(64, 128, expanded=256, stride=2)            # 28 -> 14
        self.conv_4 = bottlenecks(128, expanded=256, count=6)
        self.conv_45 = Bottleneck(128, 128, expanded=512, stride=2)           # 14 -> 7
        self.conv_5 = bottlenecks(128, expanded=256, count=2)
        self.sep = pointwise(128, 512)
        self.sep_bn = nn.BatchNorm2d(512)
        self.prelu = nn.PReLU(512)
        self.GDC_dw = DepthwiseConv2d(512, 7)                                 # 7 -> 1
        self.GDC_bn = nn.BatchNorm2d(512)
        self.features = pointwise(512, embedding_size)
        self.last_bn = nn.BatchNorm2d(embedding_size)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.conv2_dw(self.conv1(x))
        x = self.conv_3(self.conv_23(x))
        x = self.conv_4(self.conv_34(x))
        x = self.conv_5(self.conv_45(x))
        x = self.prelu(self.sep_bn(self.sep(x)))
        x = self.GDC_bn(self.GDC_dw(x))
        x = self.last_bn(self.features(x))
        return x.flatten(1)
