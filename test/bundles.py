"""Makes small real bundles whose labels a test can predict."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rgbd_fusion_seg import hha

# Robots do without onnx; what needs small bundles is skipped there.
onnx = pytest.importorskip('onnx', reason='making bundles needs onnx')

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CLASS_NAMES = ('dark low', 'bright low', 'dark high', 'bright high')
"""Label = (mean of R, G and B above MEAN) + 2 * (HHA height channel above MEAN)."""

MEAN, STD, GAIN, STRIDE = 100.0, 50.0, 8.0, 8
MEAN_M, STD_M = 2.0, 0.5
"""Of depth in metres; networks that read it take what is farther than MEAN_M for high."""


def tiny_network(
    height: int = 48,
    width: int = 64,
    num_classes: int = 4,
    input_names: tuple = ('rgb', 'hha'),
    modalities: tuple = ('rgb', 'hha'),
) -> onnx.ModelProto:
    """Return a network that averages its inputs over 8x8 image pixels and compares with MEAN.

    Like the shipped one it has logits at 1/8, an HHA input of half the size and weights stored
    as fp16 behind a Cast. Classes beyond the four of CLASS_NAMES never win.

    Without one of the `modalities` the network takes what it does not see for dark or low.
    """
    weights = np.zeros((num_classes, 9, 1, 1), dtype=np.float16)
    for label in range(min(num_classes, 4)):
        weights[label, :3] = (GAIN if label & 1 else -GAIN) / 3
        weights[label, 4] = GAIN if label & 2 else -GAIN
        weights[label, 6:] = (GAIN if label & 2 else -GAIN) / 3
    possible = {k for k in range(4) if ('rgb' in modalities or not k & 1)}
    possible -= set() if {'hha', 'depth'} & {*modalities} else {2, 3}
    bias = np.where([k in possible for k in range(num_classes)], 0, -100).astype(np.float32)
    seen = np.repeat([name in modalities for name in ('rgb', 'hha', 'depth')], 3)
    weights = np.ascontiguousarray(weights[:, seen])
    rgb, hha = input_names
    parts = {
        'rgb': (rgb, 'colour', 8, _float_tensor(rgb, (1, 3, height, width))),
        'hha': (hha, 'encoded', 4, _float_tensor(hha, (1, 3, height // 2, width // 2))),
        'depth': ('depth', 'metres', 4, _float_tensor('depth', (1, 3, height // 2, width // 2))),
    }
    used = [parts[modality] for modality in modalities]
    nodes = [
        *(
            helper.make_node('AveragePool', [name], [mean], kernel_shape=[n, n], strides=[n, n])
            for name, mean, n, _ in used
        ),
        helper.make_node('Concat', [mean for _, mean, _, _ in used], ['both'], axis=1),
        helper.make_node('Cast', ['weights_half'], ['weights'], to=TensorProto.FLOAT),
        helper.make_node('Conv', ['both', 'weights', 'bias'], ['logits']),
    ]
    graph = helper.make_graph(
        nodes,
        'tiny',
        [tensor for *_, tensor in used],
        [_float_tensor('logits', (1, num_classes, height // STRIDE, width // STRIDE))],
        [
            numpy_helper.from_array(weights, 'weights_half'),
            numpy_helper.from_array(bias, 'bias'),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def with_open_sizes(network: onnx.ModelProto) -> onnx.ModelProto:
    """Leave batch, height and width of a network's inputs and output open."""
    for tensor in (*network.graph.input, *network.graph.output):
        for axis, size in enumerate(tensor.type.tensor_type.shape.dim):
            size.Clear()
            size.dim_param = f'{tensor.name}_{axis}'
    network.graph.ClearField('value_info')
    return network


def tiny_card(
    height: int = 48, width: int = 64, modalities: tuple = ('rgb', 'hha')
) -> dict[str, Any]:
    """Return the card of :func:`tiny_network`, without the hash of its weights."""
    statistics = {'mean': [MEAN] * 3, 'std': [STD] * 3}
    inputs = {
        'rgb': {'height': height, 'width': width, **copy.deepcopy(statistics)},
        'hha': {'height': height // 2, 'width': width // 2, **copy.deepcopy(statistics)},
        'depth': {
            'height': height // 2, 'width': width // 2, 'mean': [MEAN_M] * 3, 'std': [STD_M] * 3
        },
    }  # fmt: skip
    stride = STRIDE if 'rgb' in modalities else STRIDE // 2
    return {
        'format': 1,
        'name': 'tiny',
        'summary': 'Tells bright from dark and high from low.',
        'network': {'name': 'tiny'},
        'inputs': {name: inputs[name] for name in modalities},
        'output': {'stride': stride},
        'hha': hha.constants(),
        'depth': {'range_m': [0.5, 8.0]},
        'classes': [
            {'name': name, 'color': [60 * i, 255 - 60 * i, 30 + 40 * i]}
            for i, name in enumerate(CLASS_NAMES)
        ],
        'weights': {'file': 'model.onnx'},
        'training': {},
        'metrics': {},
    }


def write_bundle(
    folder: Path,
    card: dict[str, Any] | None = None,
    network: onnx.ModelProto | bytes | None = None,
) -> Path:
    """Write a bundle with the right hash into a new folder and return the folder.

    Args:
        folder: must not exist.
        card: default: :func:`tiny_card`.
        network: a model, or bytes that need not be one; default: :func:`tiny_network`.
    """
    card = copy.deepcopy(tiny_card() if card is None else card)
    network = tiny_network() if network is None else network
    data = network if isinstance(network, bytes) else network.SerializeToString()
    folder.mkdir(parents=True)
    (folder / 'model.onnx').write_bytes(data)
    card['weights'].setdefault('sha256', hashlib.sha256(data).hexdigest())
    (folder / 'model.yaml').write_text(yaml.safe_dump(card), encoding='utf-8')
    return folder


def _float_tensor(name: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
