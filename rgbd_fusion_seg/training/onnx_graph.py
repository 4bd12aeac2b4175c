"""From a network to its ONNX graph: constants folded, sizes open or fixed, fp32 or fp16."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from rgbd_fusion_seg.engine_building.precision import compute_in, lowered
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.networks.base import MODALITIES, SegmentationNetwork
from rgbd_fusion_seg.training.onnx_folding import fold

OPSETS = range(18, 27)
"""What the exporter writes and ONNX Runtime runs; 18 is what everything reads."""
PRECISIONS = ('fp32', 'fp16')
STORE_AS_HALF_FROM = 64
"""Tensors with fewer numbers stay float32: halving them saves nothing."""


@dataclass(frozen=True)
class GraphOptions:
    """How a network becomes a graph.

    Args:
        precision: 'fp32', or 'fp16' for a strongly typed network: all of it computes in fp16,
            between float32 inputs and outputs. TensorRT takes precision from the graph's types.
        storage: of an fp32 network's weights; 'fp16' halves the file, and a Cast that runtimes
            fold when they load makes them float32 again.
        dynamic_batch: leave the number of images open.
        dynamic_size: leave height and width open, as multiples of what the network needs.
        opset: version of ONNX's operators.

    Raises:
        InputError: an option with an unknown value.
    """

    precision: str = 'fp32'
    storage: str = 'fp16'
    dynamic_batch: bool = False
    dynamic_size: bool = False
    opset: int = OPSETS[0]

    def __post_init__(self) -> None:
        for name in ('precision', 'storage'):
            if getattr(self, name) not in PRECISIONS:
                raise InputError(
                    f'{name} must be one of {", ".join(PRECISIONS)}, got {getattr(self, name)!r}'
                )
        if self.precision == 'fp16' and self.storage != 'fp16':
            raise InputError('a network with precision fp16 has fp16 storage; leave storage out')
        if self.opset not in OPSETS:
            raise InputError(f'opset must be {OPSETS[0]} to {OPSETS[-1]}, got {self.opset}')


def build_graph(
    network: SegmentationNetwork, height: int, width: int, options: GraphOptions
) -> onnx.ModelProto:
    """Return the network as ONNX: float32 inputs named by modality, output 'logits'.

    Args:
        network: in evaluation mode.
        height, width: of the colour input.
        options: see the class.

    Raises:
        BundleError: a weight that fp16 cannot hold.
        ValueError: a size that the network cannot take.
    """
    batch = 1
    if options.dynamic_batch:
        batch = 2  # the tracer takes 1 for a constant, as it does with sides
    if options.dynamic_size:
        height, width = (max(side, 2 * network.size_multiple) for side in (height, width))
    sizes = network.input_sizes(height, width)
    inputs = tuple(torch.zeros(batch, 3, *size) for size in sizes.values())
    with _quiet():
        program = torch.onnx.export(
            _Positional(network).eval(),
            inputs,
            dynamo=True,
            opset_version=options.opset,
            input_names=list(sizes),
            output_names=['logits'],
            dynamic_shapes=_dynamic_shapes(network, options),
            verbose=False,
        )
    fold(program.model)
    if options.precision == 'fp16':
        compute_in(program.model, 'fp16')
    model = program.model_proto
    if options.precision == 'fp32' and options.storage == 'fp16':
        store_as_half(model)
    forget_origin(model)
    onnx.checker.check_model(model)
    return model


class _Positional(nn.Module):
    """What is exported of the network, with positional inputs, as ONNX wants them."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network.for_export()

    def forward(self, *tensors: Tensor) -> Tensor:
        names = [name for name in MODALITIES if name in self.network.modalities]
        return self.network(dict(zip(names, tensors, strict=True)))


def _dynamic_shapes(network: SegmentationNetwork, options: GraphOptions) -> Any:
    """Return what torch.export wants to know; every side is a multiple of the same variable."""
    if not options.dynamic_batch and not options.dynamic_size:
        return None
    batch, rows, columns = (torch.export.Dim(name, min=1) for name in ('n', 'rows', 'columns'))
    shapes = []
    for steps in network.input_sizes(network.size_multiple, network.size_multiple).values():
        shape: dict[int, Any] = {0: batch} if options.dynamic_batch else {}
        if options.dynamic_size:
            shape |= {2: steps[0] * rows, 3: steps[1] * columns}
        shapes.append(shape)
    return (tuple(shapes),)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes about its own code and about libraries we do not use."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def forget_origin(model: onnx.ModelProto) -> None:
    """Take out what the exporter notes of its work, in place.

    At every node stands the stack of calls that it was traced through, with the paths of the
    machine: nine tenths of a shipped graph's bytes besides its weights, and other bytes for the
    same graph after a line was added to the network's file.
    """
    graph = model.graph
    tensors = (graph.input, graph.output, graph.value_info, graph.initializer)
    for part in (model, graph, *graph.node, *(x for kind in tensors for x in kind)):
        part.ClearField('metadata_props')


def store_as_half(model: onnx.ModelProto) -> None:
    """Store float32 weights as fp16 behind a Cast that runtimes fold when they load, in place.

    Raises:
        BundleError: a weight that fp16 cannot hold.
    """
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values, name = numpy_helper.to_array(tensor), tensor.name
        if tensor.data_type != TensorProto.FLOAT or values.size < STORE_AS_HALF_FROM:
            continue
        tensor.CopyFrom(numpy_helper.from_array(lowered(values, name, 'fp16'), f'{name}_half'))
        casts.append(helper.make_node('Cast', [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    # Their recorded types speak of tensors that Cast makes now.
    del graph.value_info[:]
