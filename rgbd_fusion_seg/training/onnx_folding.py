"""What is constant in a network's graph becomes part of its weights, and what slows runtimes goes.

All forms here compute the same as the exporter's, up to rounding. The second half is for ONNX
Runtime on CPUs, which keeps tensors in blocks of 16 channels from one convolution to the next:
each operator that knows no blocks costs a conversion there and one back. On RFBNet it saves 8 %
of a frame's time (``docs/engines.md``), and OpenVINO loses nothing by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import pattern, rewrite

JOINED = ('Conv', 'ConvTranspose', 'Gemm')
"""Operators that take a batch norm behind them into their weights."""
BLOCK = 16
"""Channels that ONNX Runtime's convolutions keep together on processors with AVX-512."""


def fold(model: onnx_ir.Model) -> None:
    """Bring a graph into the form to run, in place."""
    fold_batch_norms(model)
    for node in list(model.graph):
        if node.op_type in ('AveragePool', 'MaxPool'):
            _round_down(node)
        elif node.op_type == 'Mul':
            _widen_gate(model.graph, node)
        elif node.op_type == 'Gather':
            _reorder_filters(model.graph, node)
    rewrite(model, pattern_rewrite_rules=[_SumForConcat().rule()])
    optimize_ir(model)


def fold_batch_norms(model: onnx_ir.Model) -> None:
    """Take each batch norm behind a convolution into its weights, in place.

    The exporter's optimiser has done so where one follows directly. Here weights that are split,
    and those that several convolutions with norms of their own share, become constants of each,
    and norms behind a concatenation that has a convolution go before it. What is left normalises
    an input, a sum or a pooling.
    """
    for node in list(model.graph):
        if node.op_type == 'Split' and node.inputs[0].const_value is not None:
            _split_constant(model.graph, node)
        elif node.op_type == 'BatchNormalization':
            _own_weights(model.graph, node)
    rewrite(model, pattern_rewrite_rules=[_NormBeforeConcat().rule()])
    optimize_ir(model)


def _split_constant(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    source = node.inputs[0]
    whole = source.const_value.numpy()
    axis = node.attributes.get_int('axis', 0)
    ends = np.cumsum([output.shape[axis] for output in node.outputs])[:-1]
    for output, piece in zip(node.outputs, np.split(whole, ends, axis), strict=True):
        tensor = onnx_ir.tensor(np.ascontiguousarray(piece), name=f'{output.name}_constant')
        constant = onnx_ir.val(tensor.name, const_value=tensor)
        graph.register_initializer(constant)
        output.replace_all_uses_with(constant)
    graph.remove(node, safe=True)
    if not source.uses():
        graph.initializers.pop(source.name)


def _own_weights(graph: onnx_ir.Graph, norm: onnx_ir.Node) -> None:
    """Give the convolution before a norm weights that no other node uses."""
    node = norm.inputs[0].producer()
    if node is None or node.op_type not in JOINED:
        return
    for place, value in list(enumerate(node.inputs))[1:]:
        if value is None or value.const_value is None or len(value.uses()) == 1:
            continue
        _replace_constant(graph, node, place, value.const_value.numpy(), f'{norm.name}_{place}')


def _replace_constant(
    graph: onnx_ir.Graph, node: onnx_ir.Node, place: int, values: np.ndarray, name: str
) -> None:
    """Give one input of a node a constant of its own."""
    tensor = onnx_ir.tensor(values, name=name)
    own = onnx_ir.val(name, const_value=tensor)
    graph.register_initializer(own)
    node.replace_input_with(place, own)


class _NormBeforeConcat(pattern.RewriteRuleClassBase):
    """BatchNormalization(Concat(a, b)) -> Concat(BatchNormalization(a), BatchNormalization(b))."""

    def pattern(self, op: Any) -> Any:
        joined = op.Concat(_allow_other_inputs=True, _outputs=['joined'])
        return op.BatchNormalization(joined, _allow_other_inputs=True, _outputs=['normed'])

    def check(self, context: Any, joined: onnx_ir.Value, normed: onnx_ir.Value) -> bool:
        parts = joined.producer().inputs
        return (
            joined.producer().attributes['axis'].as_int() == 1
            and all(part.shape is not None and isinstance(part.shape[1], int) for part in parts)
            and any(_takes_norms(part) for part in parts)
            and all(value.const_value is not None for value in normed.producer().inputs[1:])
        )

    def rewrite(self, op: Any, joined: onnx_ir.Value, normed: onnx_ir.Value) -> Any:
        norm, parts = normed.producer(), joined.producer().inputs
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        pieces = [np.split(value.const_value.numpy(), ends) for value in norm.inputs[1:]]
        outputs = []
        for i, (part, *values) in enumerate(zip(parts, *pieces, strict=True)):
            # Named by the norm: equal values of several norms are one tensor in the graph.
            tensors = [
                op.initializer(onnx_ir.tensor(value), name=f'{normed.name}_{kind}_{i}')
                for kind, value in enumerate(values)
            ]
            outputs.append(op.BatchNormalization(part, *tensors, **norm.attributes))
        return op.Concat(*outputs, axis=1)


def _takes_norms(value: onnx_ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in JOINED and len(value.uses()) == 1


def _round_down(pool: onnx_ir.Node) -> None:
    """Take ``ceil_mode`` from a pooling of known size that has nothing to round up.

    ONNX Runtime's blocked pooling does not know it.
    """
    shape = pool.inputs[0].shape
    padding = pool.attributes.get_string('auto_pad', 'NOTSET')
    if not pool.attributes.get_int('ceil_mode', 0) or shape is None or padding != 'NOTSET':
        return
    kernel = pool.attributes['kernel_shape'].as_ints()
    sides, ones = list(shape)[2:], [1] * len(kernel)
    strides = pool.attributes.get_ints('strides', ones)
    if not all(isinstance(side, int) for side in sides):
        return
    pads = pool.attributes.get_ints('pads', [0] * 2 * len(kernel))
    spread = pool.attributes.get_ints('dilations', ones)
    steps = [
        side + before + after - (size - 1) * apart - 1
        for side, before, after, size, apart in zip(
            sides, pads[: len(kernel)], pads[len(kernel) :], kernel, spread, strict=True
        )
    ]
    if all(step % stride == 0 for step, stride in zip(steps, strides, strict=True)):
        pool.attributes['ceil_mode'] = onnx_ir.AttrInt64('ceil_mode', 0)


def _widen_gate(graph: onnx_ir.Graph, product: onnx_ir.Node) -> None:
    """Let a gate of one channel have as many, all equal, as the features it multiplies.

    The convolution behind it computes a block of channels anyway, and products of equal shapes
    stay in blocks.
    """
    for gate, features in (product.inputs, product.inputs[::-1]):
        sigmoid = gate.producer()
        if sigmoid is None or sigmoid.op_type != 'Sigmoid' or len(gate.uses()) != 1:
            continue
        conv, shapes = sigmoid.inputs[0].producer(), (gate.shape, features.shape)
        if conv is None or conv.op_type != 'Conv' or len(conv.outputs[0].uses()) != 1:
            continue
        if any(shape is None or len(shape) != 4 for shape in shapes) or gate.shape[1] != 1:
            continue
        channels = features.shape[1]
        weights = [value for value in conv.inputs[1:] if value is not None]
        if not isinstance(channels, int) or any(value.const_value is None for value in weights):
            continue
        for place, value in list(enumerate(conv.inputs))[1:]:
            if value is None:
                continue
            repeated = np.repeat(value.const_value.numpy(), channels, 0)
            _replace_constant(graph, conv, place, repeated, f'{gate.name}_{place}')
        for value in (conv.outputs[0], gate):
            value.shape = onnx_ir.Shape([value.shape[0], channels, *list(value.shape)[2:]])
        return


def _reorder_filters(graph: onnx_ir.Graph, gather: onnx_ir.Node) -> None:
    """Let convolutions behind another order of all channels read these as they come."""
    (source, indices), (gathered,) = gather.inputs, gather.outputs
    if indices.const_value is None or gather.attributes.get_int('axis', 0) != 1:
        return
    order = indices.const_value.numpy()
    if source.shape is None or order.ndim != 1 or source.shape[1] != len(order):
        return
    convs = [use.node for use in gathered.uses()]
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        return
    if gathered.is_graph_output() or not all(_reads_all(conv, gathered) for conv in convs):
        return
    for i, conv in enumerate(convs):
        filters = conv.inputs[1].const_value.numpy()[:, np.argsort(order)]
        _replace_constant(graph, conv, 1, filters, f'{gathered.name}_filters_{i}')
        conv.replace_input_with(0, source)
    graph.remove(gather, safe=True)


def _reads_all(node: onnx_ir.Node, features: onnx_ir.Value) -> bool:
    """Tell whether a node is a convolution across all channels, with constant filters."""
    return (
        node.op_type == 'Conv'
        and node.inputs[0] is features
        and node.inputs[1].const_value is not None
        and node.attributes.get_int('group', 1) == 1
    )


class _SumForConcat(pattern.RewriteRuleClassBase):
    """Concat(Conv(x), BatchNormalization(y)) -> Conv'(x) + Conv''(y), for a y of few channels.

    Conv' has zeros for the channels of y, and Conv'' is a 1x1 convolution which writes these
    alone. ERFNet's first block joins 13 channels with the pooled 3 of the image so; the sum, the
    ReLU behind it and both convolutions are one step for ONNX Runtime.
    """

    def pattern(self, op: Any, x: Any, y: Any, weight: Any, bias: Any) -> Any:
        convolved = op.Conv(x, weight, bias, _outputs=['convolved'])
        normed = op.BatchNormalization(y, _allow_other_inputs=True, _outputs=['normed'])
        return op.Concat(convolved, normed, _outputs=['joined'])

    def check(
        self,
        context: Any,
        weight: onnx_ir.Value,
        bias: onnx_ir.Value,
        convolved: onnx_ir.Value,
        normed: onnx_ir.Value,
        joined: onnx_ir.Value,
        **_: Any,
    ) -> bool:
        conv, norm = convolved.producer(), normed.producer()
        shape = normed.shape
        return (
            joined.producer().attributes['axis'].as_int() == 1
            and shape is not None
            and len(shape) == 4
            and isinstance(shape[1], int)
            and shape[1] < BLOCK
            and conv.attributes.get_int('group', 1) == 1
            and all(v.const_value is not None for v in (weight, bias, *norm.inputs[1:]))
            and len(convolved.uses()) == 1
            and len(normed.uses()) == 1
        )

    def rewrite(
        self,
        op: Any,
        x: onnx_ir.Value,
        y: onnx_ir.Value,
        weight: onnx_ir.Value,
        bias: onnx_ir.Value,
        convolved: onnx_ir.Value,
        normed: onnx_ir.Value,
        joined: onnx_ir.Value,
    ) -> Any:
        scale, shift, mean, variance = (
            value.const_value.numpy() for value in normed.producer().inputs[1:]
        )
        factor = scale / np.sqrt(variance + normed.producer().attributes['epsilon'].as_float())
        kernels, added = weight.const_value.numpy(), len(factor)
        kernels = np.concatenate([kernels, np.zeros((added, *kernels.shape[1:]), kernels.dtype)])
        shifts = np.concatenate([bias.const_value.numpy(), shift - mean * factor])
        placed = np.zeros((len(kernels), added, 1, 1), kernels.dtype)
        placed[-added:, :, 0, 0] = np.diag(factor)
        names = (f'{joined.name}_{kind}' for kind in ('weight', 'bias', 'added'))
        tensors = [
            op.initializer(onnx_ir.tensor(values), name=name)
            for name, values in zip(names, (kernels, shifts, placed), strict=True)
        ]
        convolution = op.Conv(x, *tensors[:2], **convolved.producer().attributes)
        return op.Add(convolution, op.Conv(y, tensors[2], kernel_shape=[1, 1]))
