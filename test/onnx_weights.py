"""What a graph holds, for tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto


def count_weights(model: onnx.ModelProto) -> int:
    """Return the number of floating-point weights of a graph, batch norms folded."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
    tensors = model.graph.initializer
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type in kinds)
