"""Strongly typed networks: float32 ONNX graphs that compute in fp16 or bf16.

TensorRT 11 and TensorRT-RTX know no switch for precision: a network computes in the types that
its graph says, so a build in another precision begins with another graph. Inputs and outputs
stay float32.

Weights are rounded to nearest, ties to even. What stands around the network in a fused graph
stays float32, with casts between: geometry, for instance, does not survive fp16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
from onnx_ir.passes.common import ShapeInferencePass

from rgbd_fusion_seg.errors import BundleError

FLOAT_SCOPE = 'fused'
"""Nodes whose names begin with this and a slash, those around the network, stay float32."""
FLOAT = onnx_ir.DataType.FLOAT
LOW = {'fp16': onnx_ir.DataType.FLOAT16, 'bf16': onnx_ir.DataType.BFLOAT16}
NUMPY = {'fp16': np.dtype(np.float16), 'bf16': np.dtype(ml_dtypes.bfloat16)}


def typed_network(
    path: Path, precision: str, shapes: Mapping[str, tuple[int | None, ...]] | None = None
) -> bytes:
    """Return a bundle's network, serialized, that computes in a precision.

    Args:
        path: the ONNX file; of a network in float32, or in `precision` already.
        precision: one of :data:`rgbd_fusion_seg.engine.PRECISIONS`.
        shapes: of inputs whose open sides are to be fixed, by name; None leaves a side as it is.

    Raises:
        BundleError: no ONNX file, a network in another precision, or a weight that `precision`
            cannot hold.
    """
    try:
        proto = onnx.load(path)
        if not proto.graph.node:  # as of an empty file
            raise ValueError('it has no operators')
        fix_shapes(proto, shapes or {})
        model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    except Exception as error:  # protobuf's and onnx's errors have no base class in common
        raise BundleError(
            f'{path} cannot be read as an ONNX network ({" ".join(str(error).split()):.300}); '
            'export the bundle again'
        ) from error
    for i, node in enumerate(model.graph):  # exporters leave names out; errors need them
        node.name = node.name or f'{node.op_type}_{i}'
    own = own_precision(model)
    if own not in ('fp32', precision):
        raise BundleError(
            f'the network {path} computes in {own} by its own types, which cannot be undone; '
            f'choose the precision {own}, or export the bundle in fp32'
        )
    if own == 'fp32':
        # In fp32 too: TensorRT takes what is cast for an input that is computed, and that of
        # JetPack 6.2 reads a convolution's kernel size from weights that are initialisers.
        _unfold_stored_weights(model.graph)
    if own != precision:
        compute_in(model, precision)
    return onnx_ir.to_proto(model).SerializeToString()


def own_precision(model: onnx_ir.Model) -> str:
    """Return what a graph computes in; weights that are only stored in fp16 do not count."""
    found = {
        output.dtype for node in model.graph if node.op_type != 'Cast' for output in node.outputs
    }
    return next((name for name, dtype in LOW.items() if dtype in found), 'fp32')


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Fix sides of inputs, in place; None leaves one as it is.

    Raises:
        ValueError: an input has another number of sides, or a side that is fixed otherwise.
    """
    if not shapes:
        return
    for value in model.graph.input:
        sides = value.type.tensor_type.shape.dim
        for side, size in zip(sides, shapes.get(value.name, (None,) * len(sides)), strict=True):
            if side.HasField('dim_value') and size not in (None, side.dim_value):
                raise ValueError(
                    f'its input {value.name} is fixed to {side.dim_value}, not {size}'
                )
            if size is not None:
                side.dim_value = size
    # What is recorded of the shapes behind them is no longer true.
    del model.graph.value_info[:]
    for value in model.graph.output:
        for side in value.type.tensor_type.shape.dim:
            side.Clear()


def compute_in(model: onnx_ir.Model, precision: str) -> None:
    """Put a lower precision in place of float32 everywhere but at inputs and outputs, in place.

    Args:
        model: a network in float32, its weights too.
        precision: 'fp16' or 'bf16'.

    Raises:
        BundleError: a weight that the precision cannot hold.
    """
    if any(output.dtype is None for node in model.graph for output in node.outputs):
        ShapeInferencePass()(model)
    _Lowering(model.graph, precision).run()


def lowered(values: np.ndarray, name: str, precision: str) -> np.ndarray:
    """Return weights in a precision.

    Raises:
        BundleError: a weight that it cannot hold.
    """
    with np.errstate(over='ignore'):
        result = values.astype(NUMPY[precision])
    if not np.isfinite(result).all():
        raise BundleError(
            f'the weight {name} does not fit into {precision} (its largest magnitude is '
            f'{np.abs(values).max():g}); choose another precision or train it anew'
        )
    return result


def _unfold_stored_weights(graph: onnx_ir.Graph) -> None:
    """Put float32 weights in place of fp16 ones with a Cast behind them."""
    for node in list(graph):
        stored = node.inputs[0] if node.op_type == 'Cast' else None
        if stored is None or not stored.is_initializer():
            continue
        output = node.outputs[0]
        if node.attributes.get_int('to') != FLOAT or output.is_graph_output():
            continue
        values = stored.const_value.numpy().astype(np.float32)
        weight = _add_weight(graph, f'{output.name}_float', values)
        output.replace_all_uses_with(weight)
        graph.remove(node, safe=True)
    _remove_unused(graph)


class _Lowering:
    """Changes the types of a graph's nodes, weights and the values between them."""

    def __init__(self, graph: onnx_ir.Graph, precision: str) -> None:
        self.graph, self.precision, self.dtype = graph, precision, LOW[precision]
        self.kept = _kept_nodes(graph)
        self.low = {
            output
            for node in graph
            if node not in self.kept
            for output in node.outputs
            if output.dtype == FLOAT
        }
        self.made: dict[onnx_ir.Value, onnx_ir.Value] = {}
        """Weights and values in their other type."""

    def run(self) -> None:
        for node in list(self.graph):
            for i, value in enumerate(node.inputs):
                wants_float = node in self.kept or _wants_float(node, i)
                if value is None or (value in self.low) != wants_float:
                    continue
                if value in self.low or value.dtype == FLOAT:
                    node.replace_input_with(i, self._other(value))
            if node not in self.kept:
                self._lower_attributes(node)
        for i, value in enumerate(self.graph.outputs):
            if value in self.low:
                cast = self._other(value)
                cast.name, value.name = value.name, f'{value.name}_{self.precision}'
                self.graph.outputs[i] = cast
        for value in self.low:
            value.dtype = self.dtype
        _remove_unused(self.graph)

    def _other(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """Return a float32 value in the lower precision, or a lowered one in float32."""
        if value not in self.made:
            name = f'{value.name}_{"fp32" if value in self.low else self.precision}'
            if value.is_initializer():
                values = lowered(value.const_value.numpy(), value.name, self.precision)
                self.made[value] = _add_weight(self.graph, name, values)
            else:
                self.made[value] = self._cast(value, name)
        return self.made[value]

    def _cast(self, value: onnx_ir.Value, name: str) -> onnx_ir.Value:
        target = FLOAT if value in self.low else self.dtype
        cast = onnx_ir.node('Cast', [value], {'to': target}, name=name)
        output = cast.outputs[0]
        output.name, output.dtype, output.shape = name, target, value.shape
        if value.producer() is None:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(value.producer(), cast)
        return output

    def _lower_attributes(self, node: onnx_ir.Node) -> None:
        if self.low.isdisjoint(node.outputs):
            return
        if node.op_type == 'Cast':
            node.attributes['to'] = onnx_ir.AttrInt64('to', self.dtype)
        elif node.op_type == 'ConstantOfShape':
            given = node.attributes.get('value')
            values = np.zeros(1, np.float32) if given is None else given.value.numpy()
            node.attributes['value'] = self._tensor('value', values, node)
        elif node.op_type == 'Constant':
            name, attribute = next(iter(node.attributes.items()))
            values = attribute.value
            if attribute.type == onnx_ir.AttributeType.TENSOR:
                values = values.numpy()
            del node.attributes[name]
            node.attributes['value'] = self._tensor('value', np.float32(values), node)

    def _tensor(self, key: str, values: np.ndarray, node: onnx_ir.Node) -> onnx_ir.Attr:
        values = lowered(np.asarray(values), node.outputs[0].name, self.precision)
        return onnx_ir.AttrTensor(key, onnx_ir.tensor(values))


def _wants_float(node: onnx_ir.Node, position: int) -> bool:
    return node.op_type == 'Resize' and position == 2  # its scales; ONNX knows no other type


def _kept_nodes(graph: onnx_ir.Graph) -> set[onnx_ir.Node]:
    """Return the nodes that stay float32: around the network, and before scales."""
    kept = {node for node in graph if (node.name or '').startswith(f'{FLOAT_SCOPE}/')}
    wanted = [
        value for node in graph for i, value in enumerate(node.inputs) if _wants_float(node, i)
    ]
    while wanted:
        value = wanted.pop()
        producer = None if value is None or value.dtype != FLOAT else value.producer()
        if producer is not None and producer not in kept:
            kept.add(producer)
            wanted += producer.inputs
    return kept


def _add_weight(graph: onnx_ir.Graph, name: str, values: np.ndarray) -> onnx_ir.Value:
    weight = onnx_ir.val(name, const_value=onnx_ir.tensor(values, name=name))
    graph.register_initializer(weight)
    return weight


def _remove_unused(graph: onnx_ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
