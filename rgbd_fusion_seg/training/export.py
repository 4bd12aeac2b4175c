"""From a checkpoint to a bundle: ONNX with fp16 storage, checked on real frames, and its card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rgbd_fusion_seg import hha
from rgbd_fusion_seg.bundle import CARD_FORMAT, CARD_NAME, file_sha256, load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.errors import BundleError
from rgbd_fusion_seg.palette import NYU40_CLASSES, NYU40_COLORS
from rgbd_fusion_seg.postprocess import labels_and_confidence
from rgbd_fusion_seg.preprocess import hha_image, hha_tensor, rgb_tensor
from rgbd_fusion_seg.training.checkpoints import Checkpoint
from rgbd_fusion_seg.training.datasets.cache import LabelledFrame
from rgbd_fusion_seg.training.networks.erfnet import NonBottleneck1d

OPSET = 18
MINIMUM_AGREEMENT = 0.999
STORE_AS_HALF_FROM = 64
"""Tensors with fewer numbers stay float32: halving them saves nothing."""


class _Positional(nn.Module):
    """The network with named positional inputs, as ONNX wants them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rgb: Tensor, hha: Tensor) -> Tensor:
        return self.network({'rgb': rgb, 'hha': hha})


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution right before it, in place."""
    for module in network.modules():
        if isinstance(module, NonBottleneck1d):
            module.conv1x3_1 = fuse_conv_bn_eval(module.conv1x3_1, module.bn1)
            module.conv1x3_2 = fuse_conv_bn_eval(module.conv1x3_2, module.bn2)
            module.bn1 = module.bn2 = nn.Identity()
        elif isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                if isinstance(module[i], nn.Conv2d) and isinstance(module[i + 1], nn.BatchNorm2d):
                    module[i] = fuse_conv_bn_eval(module[i], module[i + 1])
                    module[i + 1] = nn.Identity()
    return network


def to_onnx(network: nn.Module, width: int, height: int, path: Path) -> None:
    """Write the network as ONNX with fixed input sizes and fp16-stored weights."""
    hha_height, hha_width = network.hha_size(height, width)
    inputs = (torch.zeros(1, 3, height, width), torch.zeros(1, 3, hha_height, hha_width))
    program = torch.onnx.export(
        _Positional(network).eval(),
        inputs,
        dynamo=True,
        opset_version=OPSET,
        input_names=['rgb', 'hha'],
        output_names=['logits'],
        verbose=False,
    )
    model = program.model_proto
    store_as_half(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def store_as_half(model: onnx.ModelProto) -> None:
    """Store float32 weights as fp16 behind a Cast that runtimes fold when they load.

    Raises:
        BundleError: a weight that fp16 cannot hold.
    """
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < STORE_AS_HALF_FROM:
            continue
        if not np.abs(values).max() < np.finfo(np.float16).max:
            raise BundleError(f'the weight {tensor.name} does not fit into fp16; train it anew')
        name = tensor.name
        half = numpy_helper.from_array(values.astype(np.float16), f'{name}_half')
        tensor.CopyFrom(half)
        casts.append(helper.make_node('Cast', [half.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    # Their recorded types speak of tensors that Cast makes now.
    del graph.value_info[:]


def count_weights(path: Path) -> int:
    """Return the number of floating-point weights in an ONNX file, batch norms folded."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
    tensors = onnx.load(path).graph.initializer
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type in kinds)


def export_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    card: dict[str, Any],
    frames: Iterable[LabelledFrame],
    num_check_frames: int = 8,
) -> Path:
    """Write a bundle; an existing one is replaced only by one that passed its checks.

    Args:
        checkpoint: weights and run description.
        folder: where the bundle is to be, e.g. models/rfbnet_erfnet_nyu40.
        card: entries of the card beyond those known here: name, summary, training, depth.
        frames: real frames on which torch and the exported graph are compared.

    Raises:
        BundleError: labels of torch and of the bundle agree on less than 99.9 % of pixels.
    """
    network = checkpoint.network(len(NYU40_CLASSES))
    info = checkpoint.info
    width, height = info['width'], info['height']
    reference = checkpoint.network(len(NYU40_CLASSES))
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        draft = Path(temporary) / folder.name
        draft.mkdir()
        to_onnx(fold_batch_norms(network), width, height, draft / 'model.onnx')
        hha_height, hha_width = network.hha_size(height, width)
        sizes = {'rgb': (height, width), 'hha': (hha_height, hha_width)}
        body = {
            'format': CARD_FORMAT,
            'name': folder.name,
            'summary': card['summary'],
            'network': {
                'name': info['network'],
                'options': info['options'],
                'parameters': count_weights(draft / 'model.onnx'),
            },
            'inputs': {
                name: {
                    'height': h,
                    'width': w,
                    'mean': list(info['statistics'][name][0]),
                    'std': list(info['statistics'][name][1]),
                }
                for name, (h, w) in sizes.items()
            },
            'output': {'stride': int(network.stride)},
            'hha': hha.constants(),
            'depth': card['depth'],
            'classes': [
                {'name': name, 'color': [int(c) for c in color]}
                for name, color in zip(NYU40_CLASSES, NYU40_COLORS, strict=True)
            ],
            'weights': {
                'file': 'model.onnx',
                'sha256': file_sha256(draft / 'model.onnx'),
                'stored_as': 'float16',
            },
            'training': card['training'],
            'metrics': {},
        }
        write_card(draft, body)
        body['metrics']['agreement'] = agreement(reference, draft, frames, num_check_frames)
        write_card(draft, body)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    return folder


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write model.yaml, in the order of the mapping."""
    text = yaml.safe_dump(card, sort_keys=False, default_flow_style=None, width=99)
    (folder / CARD_NAME).write_text(text, encoding='utf-8')


def agreement(
    network: nn.Module, folder: Path, frames: Iterable[LabelledFrame], count: int
) -> dict[str, Any]:
    """Compare the torch network with the bundle's graph on real frames.

    Raises:
        BundleError: less than 99.9 % of the pixels have the same label.
    """
    bundle = load_bundle(folder)
    engine = open_engine(bundle, 'onnxruntime')
    equal, total, worst = 0, 0, 0.0
    for item in islice(frames, count):
        frame = item.frame
        rgb = rgb_tensor(frame.rgb, bundle.rgb)
        image = hha_image(frame.depth, frame.intrinsics, bundle.hha.width, bundle.hha.height)
        depth = hha_tensor(image, bundle.hha)
        with torch.inference_mode():
            ours = network({'rgb': torch.from_numpy(rgb), 'hha': torch.from_numpy(depth)}).numpy()
        theirs = engine.infer(rgb, depth)
        worst = max(worst, float(np.abs(ours - theirs).max()))
        labels = [labels_and_confidence(x, *frame.depth.shape)[0] for x in (ours, theirs)]
        equal += int((labels[0] == labels[1]).sum())
        total += labels[0].size
    engine.close()
    share = equal / max(total, 1)
    if share < MINIMUM_AGREEMENT:
        raise BundleError(
            f'the exported graph agrees with the network on {share:.4%} of the pixels only, '
            f'{MINIMUM_AGREEMENT:.1%} are needed; the bundle was not written'
        )
    return {
        'frames': count,
        'labels_equal_to_torch': round(share, 6),
        'largest_logit_error': round(worst, 5),
        'measured_with': 'torch float32 against ONNX Runtime CPU with weights stored as fp16',
    }
