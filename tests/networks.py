"""Nine well-known convolutional networks, written down small: their topology and every pooling, with few channels.

The poolings are those of the papers and of torchvision, with the same kernels, strides, paddings, ceil modes and
places, as modules or as calls of torch.nn.functional where torchvision calls them so. Channels are divided, images are
small, and blocks that repeat without a pooling are fewer.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def unit(i: int, o: int, k=1, stride=1, pad=None, groups=1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    pad = (k // 2 if isinstance(k, int) else tuple(n // 2 for n in k)) if pad is None else pad
    return nn.Sequential(nn.Conv2d(i, o, k, stride, pad, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class AlexNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(16, 24, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Linear(32 * 36, 10)

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in (8, 12, 16, 16, 16):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)]
            channels = width
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Linear(channels * 49, 10)

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Residual(nn.Module):
    """The basic block of ResNet-18, or with a bottleneck that of ResNet-50."""

    def __init__(self, i, o, stride, bottleneck):
        super().__init__()
        middle = (unit(i, o // 4), unit(o // 4, o // 4, 3, stride), nn.Conv2d(o // 4, o, 1))
        self.body = nn.Sequential(*(middle if bottleneck else (unit(i, o, 3, stride), nn.Conv2d(o, o, 3, padding=1))))
        self.shortcut = nn.Conv2d(i, o, 1, stride) if i != o or stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, bottleneck=False):
        super().__init__()
        self.stem, self.maxpool = unit(3, 16, 7, 2), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        widths = (16, 24, 32) if not bottleneck else (32, 48, 64)
        blocks, channels = [], 16
        for n, width in enumerate(widths):
            blocks.append(Residual(channels, width, 1 + (n > 0), bottleneck))
            channels = width
        self.layers, self.avgpool = nn.Sequential(*blocks), nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(self.layers(self.maxpool(self.stem(x)))), 1))


class Fire(nn.Module):
    def __init__(self, i, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(i, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16, 8, 12), Fire(24, 8, 12)),
            *(nn.MaxPool2d(3, 2, ceil_mode=True), Fire(24, 8, 16), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(32, 8, 16)),
        )
        self.classifier = nn.Sequential(nn.Conv2d(32, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)))

    def forward(self, x):
        return torch.flatten(self.classifier(self.features(x)), 1)


class Inception(nn.Module):
    """GoogLeNet's module: four branches, one of them a max pooling with stride 1."""

    def __init__(self, i, o):
        super().__init__()
        self.branches = nn.ModuleList([
            unit(i, o),
            nn.Sequential(unit(i, o), unit(o, o, 3)),
            nn.Sequential(unit(i, o), unit(o, o, 3)),
            nn.Sequential(nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True), unit(i, o)),
        ])  # fmt: skip

    def forward(self, x):
        return torch.cat([b(x) for b in self.branches], 1)


class GoogLeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(unit(3, 12, 7, 2), nn.MaxPool2d(3, stride=2, ceil_mode=True), unit(12, 12), unit(12, 16, 3)),
            *(nn.MaxPool2d(3, stride=2, ceil_mode=True), Inception(16, 6), Inception(24, 8)),
            *(nn.MaxPool2d(3, stride=2, ceil_mode=True), Inception(32, 8), nn.MaxPool2d(2, stride=2, ceil_mode=True)),
            *(Inception(32, 8), nn.AdaptiveAvgPool2d((1, 1))),
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.body(x), 1))


class InceptionA(nn.Module):
    """Inception v3's module that averages, by a function."""

    def __init__(self, i, o):
        super().__init__()
        self.one, self.five, self.pooled = unit(i, o), nn.Sequential(unit(i, o), unit(o, o, 5)), unit(i, o)

    def forward(self, x):
        averaged = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        return torch.cat([self.one(x), self.five(x), self.pooled(averaged)], 1)


class InceptionB(nn.Module):
    """Inception v3's module that shrinks, by a function."""

    def __init__(self, i, o):
        super().__init__()
        self.three = unit(i, o, 3, 2, 0)

    def forward(self, x):
        return torch.cat([self.three(x), F.max_pool2d(x, kernel_size=3, stride=2)], 1)


class Inception3(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(unit(3, 8, 3, 2, 0), unit(8, 8, 3, 1, 0), unit(8, 12, 3), nn.MaxPool2d(kernel_size=3, stride=2)),
            *(unit(12, 12), unit(12, 16, 3, 1, 0), nn.MaxPool2d(kernel_size=3, stride=2)),
            *(InceptionA(16, 8), InceptionB(24, 8), InceptionA(32, 8), nn.AdaptiveAvgPool2d((1, 1))),
        )
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.body(x), 1))


class Shuffle(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        half = o // 2
        self.stride = stride
        left = i if stride > 1 else i // 2
        self.one = nn.Sequential(unit(left, left, 3, 2, groups=left), unit(left, half)) if stride > 1 else nn.Identity()
        self.two = nn.Sequential(unit(left, half), unit(half, half, 3, stride, groups=half), unit(half, half))

    def forward(self, x):
        a, b = (x, x) if self.stride > 1 else x.chunk(2, 1)
        y = torch.cat([self.one(a), self.two(b)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.maxpool = unit(3, 12, 3, 2), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = nn.Sequential(Shuffle(12, 24, 2), Shuffle(24, 24, 1), Shuffle(24, 32, 2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.stages(self.maxpool(self.stem(x))).mean([2, 3]))


class Dense(nn.Module):
    def __init__(self, i, growth):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, growth, 3, padding=1))

    def forward(self, x):
        return torch.cat([x, self.body(x)], 1)


class DenseNet(nn.Module):
    """The last pooling is a function, as in torchvision."""

    def __init__(self):
        super().__init__()
        layers, channels = [unit(3, 16, 7, 2), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)], 16
        for n in range(3):
            layers += [Dense(channels, 8), Dense(channels + 8, 8)]
            channels += 16
            if n < 2:
                layers += [unit(channels, channels // 2), nn.AvgPool2d(kernel_size=2, stride=2)]
                channels //= 2
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(channels, 10)

    def forward(self, x):
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(F.relu(self.features(x)), (1, 1)), 1))


# name: (how to build it, pixels of an image, modules that pool, calls of functions that pool)
NETWORKS = {
    "AlexNet": (AlexNet, 127, 4, 0),
    "VGG-16": (VGG, 64, 6, 0),
    "ResNet-18": (ResNet, 64, 2, 0),
    "ResNet-50": (lambda: ResNet(bottleneck=True), 64, 2, 0),
    "SqueezeNet 1.1": (SqueezeNet, 64, 4, 0),
    "GoogLeNet": (GoogLeNet, 64, 9, 0),
    "Inception v3": (Inception3, 75, 3, 3),
    "ShuffleNet v2": (ShuffleNet, 64, 1, 0),
    "DenseNet-121": (DenseNet, 64, 3, 1),
}


def build(name: str) -> nn.Module:
    """A network with the same weights every time, in evaluation mode."""
    torch.manual_seed(11)
    return NETWORKS[name][0]().eval()
