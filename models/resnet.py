"""ResNet for images: convolutions, BatchNorm and residual sums.

    image -> conv1 -> bn1 -> relu -> maxpool -> layer1 .. layer4 -> avgpool -> fc -> logits

    bottleneck block:   x -> 1x1 -> 3x3 -> 1x1 -> (+) -> relu
                        `------ downsample? -------'

The architecture is that of He et al., "Deep Residual Learning for Image Recognition" (2015), in the variant
known as v1.5: a bottleneck strides in its 3x3 convolution. State-dict keys are torchvision's.
"""

import torch
from torch import Tensor, nn

from ._common import lookup, seeded


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and -34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = projection(in_channels, channels, stride)
        nn.init.constant_(self.bn2.weight, 0.25)  # a faint branch: the sum does not grow from block to block

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out += shortcut
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut: the block of ResNet-50 and deeper."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)
        nn.init.constant_(self.bn3.weight, 0.25)  # a faint branch: the sum does not grow from block to block

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv3(out)
        out = self.bn3(out)
        out += shortcut
        return self.relu(out)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut's 1x1 convolution, or None where input and output have the same shape."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class ResNet(nn.Module):
    """Image [N, 3, H, W] to logits [N, num_classes].

    `layers` counts the blocks of the four stages; `width` is the number of channels of the first.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        width: int = 64,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        expanded = block.expansion * width
        self.layer1 = stage(block, width, width, layers[0], stride=1)
        self.layer2 = stage(block, expanded, 2 * width, layers[1], stride=2)
        self.layer3 = stage(block, 2 * expanded, 4 * width, layers[2], stride=2)
        self.layer4 = stage(block, 4 * expanded, 8 * width, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * expanded, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.fc(x)


def stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, count: int, stride: int
) -> nn.Sequential:
    """`count` blocks in a row, of which the first changes the shape."""
    first = block(in_channels, channels, stride)
    rest = [block(channels * block.expansion, channels) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)


@seeded
def resnet18() -> ResNet:
    """ResNet-18: 11.7 M parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2))


@seeded
def resnet34() -> ResNet:
    """ResNet-34: 21.8 M parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3))


@seeded
def resnet50() -> ResNet:
    """ResNet-50: 25.6 M parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


@seeded
def resnet101() -> ResNet:
    """ResNet-101: 44.5 M parameters."""
    return ResNet(Bottleneck, (3, 4, 23, 3))


@seeded
def small() -> ResNet:
    """Bottleneck blocks on few channels, one stage with a block that repeats: 0.1 M parameters."""
    return ResNet(Bottleneck, (2, 1, 1, 1), width=8, num_classes=10)


build = resnet50

IMAGE_SIZE = {"build": 224, "resnet18": 224, "resnet34": 224, "resnet50": 224, "resnet101": 224, "small": 64}


def example_inputs(batch: int = 1, factory: str = "build") -> tuple[Tensor]:
    """Normalised images, float32 [batch, 3, size, size].

    Each is noise on a tint of its own: noise alone would look the same after pooling.
    """
    size = lookup(IMAGE_SIZE, factory)
    generator = torch.Generator().manual_seed(0)
    tint = torch.randn(batch, 3, 1, 1, generator=generator)
    noise = torch.randn(batch, 3, size, size, generator=generator)
    return (tint + noise,)
