"""AdapNet++ and SSMA in numpy, with TensorFlow's rules and variables, for inference.

Written from the description of the public code: arrays are (N, H, W, C), kernels
(height, width, in, out), padding is 'SAME'. Nothing here is shared with the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

UNITS = (3, 4, 6, 3)
MULTI_SCALE = {(2, 4), (3, 3), (3, 4), (3, 5), (3, 6)}  # block, unit; counted from 1


def same_padding(size: int, kernel: int, stride: int, rate: int) -> tuple[int, int]:
    """Rows before and after: the output has ceil(size / stride) rows, the odd one is after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * rate + 1 - size, 0)
    return total // 2, total - total // 2


def taps(
    x: np.ndarray, kernel: tuple[int, int], stride: int, rate: int, fill: float
) -> list[tuple[int, int, np.ndarray]]:
    """For each element (i, j) of a kernel, what it sees at every output position."""
    height, width = x.shape[1:3]
    rows = same_padding(height, kernel[0], stride, rate)
    columns = same_padding(width, kernel[1], stride, rate)
    padded = np.pad(x, ((0, 0), rows, columns, (0, 0)), constant_values=fill)
    out_h, out_w = -(-height // stride), -(-width // stride)
    return [
        (i, j, padded[:, i * rate :: stride, j * rate :: stride][:, :out_h, :out_w])
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]


def conv2d(x: np.ndarray, kernel: np.ndarray, stride: int = 1, rate: int = 1) -> np.ndarray:
    """tf.nn.conv2d, and tf.nn.atrous_conv2d for a rate above 1."""
    return sum(seen @ kernel[i, j] for i, j, seen in taps(x, kernel.shape[:2], stride, rate, 0.0))


def max_pool(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """tf.nn.max_pool."""
    seen = [values for _, _, values in taps(x, (size, size), stride, 1, -np.inf)]
    return np.max(seen, axis=0)


def conv2d_transpose(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """tf.nn.conv2d_transpose to stride times the size: the gradient of a 'SAME' convolution."""
    n, height, width, _ = x.shape
    k_h, k_w, channels, _ = kernel.shape
    full = np.zeros((n, height * stride + k_h, width * stride + k_w, channels), x.dtype)
    for i in range(k_h):
        for j in range(k_w):
            rows = slice(i, i + height * stride, stride)
            columns = slice(j, j + width * stride, stride)
            full[:, rows, columns] += x @ kernel[i, j].T
    top = same_padding(height * stride, k_h, stride, 1)[0]
    left = same_padding(width * stride, k_w, stride, 1)[0]
    return full[:, top : top + height * stride, left : left + width * stride]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def mean(x: np.ndarray) -> np.ndarray:
    return x.mean((1, 2), keepdims=True)


class Layers:
    """The layers of one scope: arrays of variables by public name, read as they are needed.

    Args:
        variables: by public name.
        scope: what all names here start with.
    """

    def __init__(self, variables: Mapping[str, np.ndarray], scope: str = '') -> None:
        self.variables, self.scope = variables, scope
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.used.add(self.scope + name)
        return self.variables[self.scope + name]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        part = {
            key: self[f'{name}/BatchNorm/{key}']
            for key in ('gamma', 'beta', 'moving_mean', 'moving_variance')
        }
        scale = part['gamma'] / np.sqrt(part['moving_variance'] + 1e-5)
        return (x - part['moving_mean']) * scale + part['beta']

    def conv(self, x: np.ndarray, name: str, stride: int = 1, rate: int = 1) -> np.ndarray:
        return conv2d(x, self[f'{name}/weights/kernel'], stride, rate)

    def conv_norm(self, x: np.ndarray, name: str, stride: int = 1, rate: int = 1) -> np.ndarray:
        return self.norm(self.conv(x, name, stride, rate), name)

    def conv_bias(self, x: np.ndarray, name: str) -> np.ndarray:
        return self.conv(x, name) + self[f'{name}/biases']

    def up(self, x: np.ndarray, name: str, stride: int) -> np.ndarray:
        return self.norm(conv2d_transpose(x, self[f'{name}/weights/kernel'], stride), name)


def unit(net: Layers, block: int, number: int, trunk: np.ndarray, active: np.ndarray):
    """A residual unit: trunk and activated trunk -> the same behind it."""
    name = f'block{block}/unit_{number}/bottleneck_v1'
    stride = 2 if number == 1 and block in (2, 3) else 1
    reduced = relu(net.conv_norm(active, f'{name}/conv1'))
    kernel = net[f'{name}/conv2/weights/kernel']
    if (block, number) in MULTI_SCALE:
        half = kernel.shape[3] // 2
        parts = [
            conv2d(reduced, kernel[..., :half]),
            conv2d(reduced, kernel[..., half:], rate=2),
        ]
        middle = np.concatenate(parts, -1)
    else:
        middle = conv2d(reduced, kernel, stride, 2 if block == 4 else 1)
    residual = net.conv(relu(net.norm(middle, f'{name}/conv2')), f'{name}/conv3')
    if number > 1:
        shortcut = trunk
    else:
        source = reduced if block == 1 else active
        shortcut = net.conv(source, f'{name}/shortcut', stride)
    trunk = shortcut + residual
    return trunk, relu(net.norm(trunk, f'{name}/conv3'))


def stem(net: Layers, image: np.ndarray) -> np.ndarray:
    x = relu(net.conv_norm(net.norm(image, 'conv0'), 'conv1', stride=2))
    return max_pool(x, 3, 2)


def easpp(net: Layers, x: np.ndarray, rates: tuple[int, int, int] = (3, 6, 12)) -> np.ndarray:
    branches = [relu(net.conv_norm(x, 'conv256'))]
    for rate, numbers in zip(
        rates, ((70, 7, 247, 71), (80, 8, 248, 81), (90, 9, 249, 91)), strict=True
    ):
        y = relu(net.conv_norm(x, f'conv{numbers[0]}'))
        y = relu(net.conv_norm(y, f'conv{numbers[1]}', rate=rate))
        y = relu(net.conv_norm(y, f'conv{numbers[2]}', rate=rate))
        branches.append(relu(net.conv_norm(y, f'conv{numbers[3]}')))
    pooled = relu(net.conv_norm(mean(x), 'conv57'))
    branches.append(np.broadcast_to(pooled, branches[0].shape))
    return net.conv_norm(np.concatenate(branches, -1), 'conv10')


def expert(net: Layers, image: np.ndarray, look: Callable[[str, np.ndarray], None]):
    """Picture (N, H, W, 3), B, G, R from 0 to 255 -> eASPP, skips at 1/8 and 1/4."""
    trunk = active = stem(net, image)
    look('stem', active)
    outputs = []
    for block, units in enumerate(UNITS, 1):
        for number in range(1, units + 1):
            trunk, active = unit(net, block, number, trunk, active)
            look(f'block{block}.{number - 1}', active)
        outputs.append(active)
    skip4, skip8 = net.conv_norm(outputs[0], 'conv32'), net.conv_norm(outputs[1], 'conv174')
    deep = easpp(net, outputs[3])
    look('easpp', deep)
    return deep, skip8, skip4


def decoder(net: Layers, deep: np.ndarray, skip8: np.ndarray, skip4: np.ndarray, gated: bool):
    """Return logits at full size, and the features that the auxiliary heads read."""
    at8 = net.up(deep, 'conv41', 2)
    if gated:
        skip8 = skip8 * relu(net.conv_norm(mean(at8), 'conv550'))
    x = relu(net.conv_norm(np.concatenate([at8, skip8], -1), 'conv89'))
    at4 = net.up(relu(net.conv_norm(x, 'conv96')), 'conv16', 2)
    if gated:
        skip4 = skip4 * relu(net.conv_norm(mean(at4), 'conv551'))
    x = relu(net.conv_norm(np.concatenate([at4, skip4], -1), 'conv88'))
    x = relu(net.conv_norm(x, 'conv95'))
    x = relu(net.conv_norm(x, 'conv78'))
    return net.up(x, 'conv5', 4), at4, at8


def adapnetpp(
    variables: Mapping[str, np.ndarray], image: np.ndarray, look: Callable[[str, np.ndarray], None]
) -> tuple[list[np.ndarray], set[str]]:
    """Return [logits, auxiliary logits at 1/4, at 1/8] and the names of the variables used."""
    net = Layers(variables, 'resnet_v2_50/')
    logits, at4, at8 = decoder(net, *expert(net, image, look), gated=False)
    outputs = [logits, net.conv_norm(at4, 'conv911'), net.conv_norm(at8, 'conv912')]
    return outputs, net.used


def attention(net: Layers, streams: list[np.ndarray], numbers: tuple[int, int]) -> np.ndarray:
    """SSMA block without its projection."""
    x = np.concatenate(streams, -1)
    weights = net.conv_bias(relu(net.conv_bias(x, f'conv{numbers[0]}')), f'conv{numbers[1]}')
    return x / (1 + np.exp(-weights))


def ssma(
    variables: Mapping[str, np.ndarray],
    rgb: np.ndarray,
    depth: np.ndarray,
    look: Callable[[str, np.ndarray], None],
) -> tuple[np.ndarray, set[str]]:
    """Return logits at full size and the names of the variables used."""
    experts = [Layers(variables, f'{name}/resnet_v2_50/') for name in ('rgb', 'depth')]
    streams = [
        expert(net, image, lambda _name, _value: None)
        for net, image in zip(experts, (rgb, depth), strict=True)
    ]
    net = Layers(variables)
    deep8, skip8, skip4 = (list(pair) for pair in zip(*streams, strict=True))
    deep = net.norm(net.conv(attention(net, deep8, (511, 512)), 'conv515'), 'conv515')
    look('combine', deep)
    # Alike in shape; the numbers are those of the authors' models/SSMA.py.
    fused8 = net.conv_bias(attention(net, skip8, (513, 514)), 'conv552')
    fused4 = net.conv_bias(attention(net, skip4, (518, 519)), 'conv553')
    look('combine8', fused8)
    look('combine4', fused4)
    logits, _, _ = decoder(net, deep, fused8, fused4, gated=True)
    return logits, set().union(net.used, *(e.used for e in experts))
