"""Appending operators to an ONNX graph by onnxscript, with Python's arithmetic on values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import onnx_ir
from onnx_ir import Value
from onnxscript import GraphBuilder, OpBuilder

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

__all__ = ['OpBuilder', 'Size', 'Value', 'as_float', 'constant', 'operators']


@contextmanager
def operators(graph: onnx_ir.Graph, scope: str) -> Iterator[OpBuilder]:
    """Yield what appends operators to a graph: ``op.Relu(x)``; meanwhile ``x + y`` does so too.

    Args:
        graph: to append to.
        scope: names of new nodes begin with it and a slash.
    """
    builder = GraphBuilder(graph)
    builder.push_module(scope)
    before = onnx_ir.set_value_magic_handler(builder.op)
    try:
        yield builder.op
    finally:
        onnx_ir.set_value_magic_handler(before)


def constant(op: OpBuilder, values: np.ndarray) -> Value:
    """Add an array to the graph; floating point becomes float32."""
    if values.dtype.kind == 'f':
        values = values.astype(np.float32)
    name = f'array_{len(op.builder.graph.initializers)}'
    return op.initializer(onnx_ir.tensor(np.ascontiguousarray(values)), name)


def as_float(op: OpBuilder, value: Value) -> Value:
    """Cast to float32."""
    return op.Cast(value, to=onnx_ir.DataType.FLOAT)
