"""Bundles whose graph does the work around the network too, so that a GPU sees only bytes.

A fused graph takes the frame's pixels and returns labels and confidence: resampling and
normalisation before the network, interpolation, argmax and confidence behind it, and by choice HHA
(``fused_hha``) are operators of the graph. A frame then crosses the bus once each way. The network
inside is the base bundle's, in the types that it has; all around it is float32.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType

from rgbd_fusion_seg import hha as hha_encoding
from rgbd_fusion_seg.atomic_files import replace_folder
from rgbd_fusion_seg.bundle import ModelBundle, TensorInput, file_sha256, load_bundle
from rgbd_fusion_seg.card import read_card, write_card
from rgbd_fusion_seg.engine_building import fused_hha
from rgbd_fusion_seg.engine_building.graph_building import (
    OpBuilder,
    Size,
    Value,
    as_float,
    constant,
    operators,
)
from rgbd_fusion_seg.engine_building.precision import FLOAT_SCOPE
from rgbd_fusion_seg.errors import BundleError, InputError
from rgbd_fusion_seg.frame import UNLABELLED
from rgbd_fusion_seg.locations import CARD_NAME, user_cache

NETWORK = 'network'
"""Names of the network's own values begin with this and a dot."""
OLDEST_OPSET = 18
"""From here on reductions take their axes as an input."""
LINEAR_STEPS = 2048
"""OpenCV enlarges bytes with weights of 1 / 2048."""
FINITE = 3e38
"""Logits beyond this are taken for infinite."""


def fused_name(bundle: ModelBundle, frame_size: tuple[int, int], hha: bool = False) -> str:
    """Return the name of a bundle's fused form; `frame_size` is width and height.

    It begins with that of the bundle's folder, by which bundles are found and of which there is
    one. Of a dynamic size, which the fused form fixes, it tells that too.
    """
    base = Path(os.path.abspath(bundle.path)).name
    seen = '_at_{}x{}'.format(*bundle.input_size) if bundle.dynamic.size else ''
    return '{}_fused{}_{}x{}{}'.format(base, '_hha' if hha else '', *frame_size, seen)


def check_frame_size(frame_size: tuple[int, int]) -> None:
    """Raise InputError where a width or height is not positive."""
    if min(frame_size) <= 0:
        raise InputError('frames cannot be {}x{}; give a positive size'.format(*frame_size))


def check_inputs(name: str, inputs: Collection[str], hha: bool) -> None:
    """Check that a fused graph can make what a network reads.

    Args:
        name: of the network, for the message.
        inputs: their names.
        hha: compute HHA in the graph, too.

    Raises:
        BundleError: it reads depth in metres, or has no HHA to compute.
    """
    if 'depth' in inputs:
        raise BundleError(
            f'the network of {name} reads depth in metres, which fused graphs do not make; '
            'use it without fusing'
        )
    if hha and 'hha' not in inputs:
        raise BundleError(
            f'the network of {name} sees no HHA, so none can be computed; fuse it without HHA'
        )


def fuse(
    bundle: ModelBundle, folder: Path, frame_size: tuple[int, int], hha: bool = False
) -> ModelBundle:
    """Write a bundle whose graph takes frames and returns labels and confidence.

    ================= ========================== ==================================================
    input, output     type and shape             content
    ================= ========================== ==================================================
    ``rgb``           uint8 (1, H, W, 3)         the frame's colour
    ``hha``           uint8 (1, h, w, 3)         without `hha`: ``preprocess.hha_image``
    ``depth``         float32 (1, H, W)          with `hha`: metres; 0 or non-finite = no reading
    ``intrinsics``    float32 (4,)               with `hha`: fx, fy, cx, cy of the frame
    ``gravity``       float32 (3,)               with `hha`: unit, or all 0 to estimate it
    ``camera_height`` float32 (1,)               with `hha`: metres above the floor, or 0 to guess
    ``labels``        uint8 (1, H, W)            255 where a logit is not finite
    ``confidence``    uint8 (1, H, W)            the winner's softmax probability times 255
    ================= ========================== ==================================================

    Inputs of a modality that the network does not have are left out. Colour is resampled as by
    ``preprocess.rgb_image``: when shrinking, only exact halves may be rounded otherwise; when
    enlarging, bytes are within one grey level. Confidence is the exact softmax, where
    ``postprocess`` is slightly low, of logits divided by the bundle's temperature.

    Measured on 60 frames of NYUDv2 and 20 of a Kinect with the shipped bundles on ONNX Runtime.
    Where colour is shrunk (640x480), less than one label in a million differs from the split
    form's, and with HHA in the graph 0.01 % do, 0.14 % in the worst frame. Where it is enlarged in
    width or height (160x120, and 240x320 frames of the 320x240 bundle) 0.11 % do, 0.37 % in the
    worst frame. With the default bundle on 97 such frames of 640x480 confidence is 0.2 grey levels
    higher in the mean, and 3 or more at 0.8 % of the pixels.

    What answers from one sensor alone in the bundle is copied, not fused.

    Args:
        bundle: the network; one of a dynamic size is fixed to the size it has.
        folder: of the new bundle; another or a damaged fused one there is replaced. Engines in it
            stay where its graph is the same.
        frame_size: width and height of the frames.
        hha: compute HHA in the graph, too.

    Returns:
        The bundle as :func:`rgbd_fusion_seg.bundle.load_bundle` reads it.

    Raises:
        BundleError: a bundle that is fused already, reads depth in metres, has no HHA to
            compute, records other constants of HHA than this version's, or has a graph of an
            opset below 18.
        InputError: a frame size that is not positive, or a folder that holds something else or
            cannot be written to.
    """
    _check(bundle, frame_size, hha)
    model = _fused_model(bundle, frame_size, hha)
    if folder.exists() and not _is_fused(folder):
        raise InputError(f'{folder} exists and is no fused bundle; remove it')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f'.{folder.name}-') as place:
            draft = Path(place) / folder.name
            draft.mkdir()
            onnx.save(model, draft / bundle.weights_path.name)
            card = _card(bundle, draft, frame_size, hha)
            write_card(draft / CARD_NAME, card)
            _copy_single_sensor(bundle, draft)
            load_bundle(draft)
            if folder.exists() and _is_same(folder, card):
                return load_bundle(folder)
            if folder.exists() and _weights_sha256(folder) == card['weights']['sha256']:
                _take_engines(folder, draft)
            replace_folder(draft, folder)
    except OSError as error:
        raise InputError(
            f'{folder} cannot be written: {error}; make room there, or the folder writable'
        ) from error
    return load_bundle(folder)


def fused_beside(
    bundle: ModelBundle, frame_size: tuple[int, int], hha: bool = False
) -> ModelBundle:
    """Write the fused form of a bundle to its :func:`fused_folder`.

    Args and errors as for :func:`fuse`.
    """
    return fuse(bundle, fused_folder(bundle, frame_size, hha), frame_size, hha)


def fused_folder(bundle: ModelBundle, frame_size: tuple[int, int], hha: bool = False) -> Path:
    """Return where a bundle's fused form belongs: beside it, or in the cache if that is read-only.

    Either way it is found by its name, see :func:`fused_name`.
    """
    parent = Path(os.path.abspath(bundle.path)).parent
    folder = parent if os.access(parent, os.W_OK) else user_cache() / 'bundles'
    return folder / fused_name(bundle, frame_size, hha)


def _check(bundle: ModelBundle, frame_size: tuple[int, int], hha: bool) -> None:
    check_frame_size(frame_size)
    if bundle.fused is not None:
        raise BundleError(
            f'{bundle.name} is fused already; fuse the bundle it was made from, '
            f'{bundle.fused.base_name}'
        )
    check_inputs(bundle.name, bundle.inputs, hha)
    if hha and bundle.card.get('hha') != hha_encoding.constants():
        raise BundleError(
            f'the network of {bundle.name} was trained on HHA with other constants than this '
            'version computes; use the version it was exported with, or train it again'
        )


def _is_fused(folder: Path) -> bool:
    """Tell whether a fused bundle was written there; it may be damaged now."""
    try:
        return 'fused' in read_card(folder / CARD_NAME).card
    except BundleError:
        return False


def _is_same(folder: Path, card: dict[str, Any]) -> bool:
    try:
        return load_bundle(folder).card == card
    except BundleError:
        return False


def _weights_sha256(folder: Path) -> Any:
    weights = read_card(folder / CARD_NAME).card.get('weights')
    return weights.get('sha256') if isinstance(weights, dict) else None


def _take_engines(folder: Path, draft: Path) -> None:
    """Give the engines of a bundle to the one that replaces it; both have them for a moment."""
    if (folder / 'engines').is_dir():
        shutil.copytree(folder / 'engines', draft / 'engines')


def _card(
    bundle: ModelBundle, folder: Path, frame_size: tuple[int, int], hha: bool
) -> dict[str, Any]:
    weights = {
        **bundle.card['weights'],
        'sha256': file_sha256(folder / bundle.weights_path.name),
    }
    return {
        **{key: value for key, value in bundle.card.items() if key != 'dynamic'},
        'name': fused_name(bundle, frame_size, hha),
        'inputs': _input_entries(bundle),
        'weights': weights,
        'fused': {
            'width': frame_size[0],
            'height': frame_size[1],
            'hha': hha,
            'base': {'name': bundle.name, 'sha256': bundle.weights_sha256},
        },
    }


def _input_entries(bundle: ModelBundle) -> dict[str, Any]:
    """Return the inputs of a card at the sizes that the bundle has now."""
    return {
        name: {**bundle.card['inputs'][name], 'height': size.height, 'width': size.width}
        for name, size in bundle.inputs.items()
    }


def _copy_single_sensor(bundle: ModelBundle, folder: Path) -> None:
    """Copy what answers from one sensor alone: as it is, so that it runs on any engine."""
    for modality, part in bundle.single_sensor.items():
        target = folder / bundle.card['single_sensor'][modality]['folder']
        target.mkdir()
        shutil.copy(part.weights_path, target)
        write_card(target / CARD_NAME, {**part.card, 'inputs': _input_entries(part)})


def _fused_model(bundle: ModelBundle, frame_size: tuple[int, int], hha: bool) -> onnx.ModelProto:
    model, network_inputs, logits = _network(bundle)
    graph, frame = model.graph, (frame_size[1], frame_size[0])
    with operators(graph, FLOAT_SCOPE) as op:
        for name, tensor in _tensors(op, bundle, frame, hha).items():
            network_inputs[name].replace_all_uses_with(tensor)
            tensor.name = f'{NETWORK}.{name}'
        if bundle.temperature != 1:
            logits = op.Div(logits, bundle.temperature)
        outputs = _labels_and_confidence(op, logits, bundle.logits_shape, frame)
    for name, value in zip(('labels', 'confidence'), outputs, strict=True):
        value.name = name
        graph.outputs.append(value)
    graph.sort()
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]  # sizes that the network left open are known now
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _network(bundle: ModelBundle) -> tuple[onnx_ir.Model, dict[str, Value], Value]:
    """Return a bundle's network, and its inputs and output, which the graph has no more."""
    try:
        model = onnx_ir.load(bundle.weights_path)
    except Exception as error:  # protobuf's errors have no base class of their own
        raise BundleError(
            f'{bundle.weights_path} is no ONNX network: {error}; export the bundle again'
        ) from error
    graph = model.graph
    inputs, outputs = {value.name: value for value in graph.inputs}, list(graph.outputs)
    if set(inputs) != set(bundle.inputs) or len(outputs) != 1:
        raise BundleError(
            f'the network {bundle.weights_path} takes {", ".join(inputs)} and returns '
            f'{len(outputs)} outputs, expected {" and ".join(bundle.inputs)} and the logits '
            'alone; export the bundle again'
        )
    if graph.opset_imports.get('', 0) < OLDEST_OPSET:
        raise BundleError(
            f'{bundle.weights_path} is of ONNX opset {graph.opset_imports.get("", 0)}, fusing '
            f'needs {OLDEST_OPSET} or newer; export the bundle again'
        )
    graph.inputs.clear()
    graph.outputs.clear()
    values = [output for node in graph for output in node.outputs]
    for value in (*inputs.values(), *graph.initializers.values(), *values):
        value.name = f'{NETWORK}.{value.name}'  # so that none is called as what is added
    outputs[0].name = f'{NETWORK}.logits'
    for value in inputs.values():
        value.name = f'{value.name}.replaced'
    return model, inputs, outputs[0]


def _tensors(op: OpBuilder, bundle: ModelBundle, frame: Size, hha: bool) -> dict[str, Value]:
    """Append the inputs of the graph, and return those of the network."""
    inputs = op.builder.input
    tensors = {}
    if (size := bundle.rgb) is not None:
        pixels = inputs('rgb', DataType.UINT8, [1, *frame, 3])
        tensors['rgb'] = _normalised(op, _resampled(op, pixels, frame, size), size)
    if (size := bundle.hha) is None:
        return tensors
    if hha:
        depth = inputs('depth', DataType.FLOAT, [1, *frame])
        intrinsics = inputs('intrinsics', DataType.FLOAT, [4])
        gravity = inputs('gravity', DataType.FLOAT, [3])
        camera_height = inputs('camera_height', DataType.FLOAT, [1])
        image = fused_hha.hha_image(
            op, depth, intrinsics, gravity, camera_height, frame, (size.height, size.width)
        )
    else:
        pixels = inputs('hha', DataType.UINT8, [1, size.height, size.width, 3])
        image = op.Transpose(as_float(op, pixels), perm=[0, 3, 1, 2])
    tensors['hha'] = _normalised(op, image, size)
    return tensors


def _resampled(op: OpBuilder, pixels: Value, frame: Size, size: TensorInput) -> Value:
    """``preprocess.rgb_image``: whole numbers, float32 (1, 3, h, w)."""
    image = as_float(op, pixels)
    if frame == (size.height, size.width):
        return op.Transpose(image, perm=[0, 3, 1, 2])
    shrinks = size.height <= frame[0] and size.width <= frame[1]
    weights = _area_weights if shrinks else _linear_weights
    (rows, per_row), (columns, per_column) = (
        weights(frame[0], size.height),
        weights(frame[1], size.width),
    )
    # Rows first, all columns and channels at once. The weights are whole numbers, so that even
    # TF32 holds them exactly.
    image = op.MatMul(constant(op, rows), op.Reshape(image, [frame[0], 3 * frame[1]]))
    image = op.Transpose(op.Reshape(image, [1, size.height, frame[1], 3]), perm=[0, 3, 1, 2])
    image = op.MatMul(image, constant(op, np.ascontiguousarray(columns.T)))
    image = image / float(per_row * per_column)
    # OpenCV averages 2x2 bytes in whole numbers and rounds halves up, all else to even numbers.
    halves = shrinks and per_row == per_column == 2
    return op.Floor(image + 0.5) if halves else op.Round(image)


def _area_weights(size: int, new_size: int) -> tuple[np.ndarray, int]:
    """Return how much of each pixel lies under each new one, (new_size, size), and their sum."""
    common = math.gcd(size, new_size)
    length, new_length = new_size // common, size // common
    begin, new_begin = np.arange(size) * length, np.arange(new_size)[:, None] * new_length
    shared = np.minimum(begin + length, new_begin + new_length) - np.maximum(begin, new_begin)
    return np.maximum(shared, 0).astype(np.float32), new_length


def _linear_weights(size: int, new_size: int) -> tuple[np.ndarray, int]:
    """Return the weights of bilinear interpolation, (new_size, size), and their sum."""
    source = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    first, new = source.astype(np.intp), np.arange(new_size)
    second = np.rint((source - first) * LINEAR_STEPS)
    weights = np.zeros((new_size, size), dtype=np.float32)
    weights[new, np.minimum(first + 1, size - 1)] = second
    weights[new, first] += LINEAR_STEPS - second
    return weights, LINEAR_STEPS


def _normalised(op: OpBuilder, image: Value, size: TensorInput) -> Value:
    mean, std = (constant(op, values[None, :, None, None]) for values in (size.mean, size.std))
    return (image - mean) / std


def _labels_and_confidence(
    op: OpBuilder, logits: Value, shape: tuple[int, ...], frame: Size
) -> tuple[Value, Value]:
    """``postprocess.labels_and_confidence``, with the softmax over all classes."""
    finite = as_float(op, op.Less(op.Abs(logits), FINITE))
    finite = op.ReduceMin(finite, [1], keepdims=1)
    logits = op.Where(op.Greater(finite, 0.0), logits, 0.0)
    logits = _interpolated(op, logits, shape[1], frame)
    peak = op.ReduceMax(logits, [1], keepdims=1)
    total = op.ReduceSum(op.Exp(logits - peak), [1], keepdims=0)
    # Where a single logit of those mixed is not finite, less than one is left.
    whole = op.Greater(_interpolated(op, finite, 1, frame), 1 - 1e-6)
    whole = op.Reshape(whole, [1, *frame])
    labels = op.Where(whole, as_float(op, op.ArgMax(logits, axis=1, keepdims=0)), UNLABELLED)
    confidence = op.Where(whole, op.Floor(op.Div(255.0, total) + 0.5), 0.0)
    return tuple(op.Cast(value, to=DataType.UINT8) for value in (labels, confidence))


def _interpolated(op: OpBuilder, logits: Value, channels: int, frame: Size) -> Value:
    sizes = constant(op, np.array([1, channels, *frame]))
    return op.Resize(logits, None, None, sizes, mode='linear')
