"""Small networks on 1×16×16 images whose channels hang together in different ways; each function makes one."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """Global pooling and a linear layer, as `features` end in it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def block(in_channels: int, out_channels: int, **settings: object) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, **settings),  # pyright: ignore[reportArgumentType]
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = block(1, 16), block(1, 24), block(40, 16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.both(torch.cat([self.left(x), self.right(x)], 1)))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 16, 3, padding=1)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.conv2(torch.relu(self.conv1(torch.relu(self.norm(x))))))


class Chunks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = block(1, 32), block(16, 16), block(16, 16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, 1)
        return self.head(self.first(first) + self.second(second))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 32)
        self.squeeze, self.excite = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * gate)


class HardCodedView(nn.Module):
    """Reads 16·4·4 features whatever is left of the 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.linear = nn.Linear(16 * 4 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.conv(x)), 4)
        return self.linear(x.view(x.shape[0], 16 * 4 * 4))


class Twice(nn.Module):
    """Runs one layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.wide = block(1, 16), nn.Conv2d(16, 16, 3, padding=1), block(16, 32)
        self.same = self.again
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.same(torch.relu(self.again(self.stem(x))))))


class LayerNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(256, 32), nn.LayerNorm(32)
        self.hidden, self.linear = nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(functional.gelu(self.hidden(self.norm(self.embed(x.flatten(1))))))


def concat() -> nn.Module:
    return Concat()


def pre_activation() -> nn.Module:
    return PreActivation()


def chunks() -> nn.Module:
    return Chunks()


def squeeze_excite() -> nn.Module:
    return SqueezeExcite()


def grouped() -> nn.Module:
    return nn.Sequential(block(1, 32), block(32, 48, groups=4), block(48, 32), Head(32))


def depthwise() -> nn.Module:
    return nn.Sequential(block(1, 32), block(32, 32, groups=32), nn.Conv2d(32, 16, 1), nn.Hardswish(), Head(16))


def flattened() -> nn.Module:
    return nn.Sequential(
        block(1, 16), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(256, 32), nn.Sigmoid(), nn.Linear(32, 4)
    )


def transposed() -> nn.Module:
    return nn.Sequential(block(1, 16), nn.ConvTranspose2d(16, 24, 2, stride=2), nn.PReLU(24), block(24, 16), Head(16))


def unscaled_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16, affine=False), nn.ReLU(), block(16, 16), Head(16))


def frozen() -> nn.Module:
    return nn.Sequential(block(1, 32), block(32, 32), Head(32)).requires_grad_(requires_grad=False)


def hard_coded_view() -> nn.Module:
    return HardCodedView()


def twice() -> nn.Module:
    return Twice()


def layer_normed() -> nn.Module:
    return LayerNormed()


def without_layers() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 4))


def narrow() -> nn.Module:
    return nn.Sequential(block(1, 8), block(8, 8), Head(8))
