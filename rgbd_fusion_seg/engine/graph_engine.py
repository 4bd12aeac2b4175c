"""What the engines that run the ONNX graph itself share: it is the card's, and is fed rightly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rgbd_fusion_seg.bundle import ModelBundle, TensorForm
from rgbd_fusion_seg.engine import Engine
from rgbd_fusion_seg.errors import BundleError, EngineError

ONNX_TYPES = {'float32': 'tensor(float)', 'uint8': 'tensor(uint8)', 'float16': 'tensor(float16)'}
"""NumPy's names of types, and those of :class:`GraphTensor`."""

Shape = Sequence[int | str | None]
"""What is open is no number."""


class GraphTensor(Protocol):
    """An input or output as a graph declares it; ONNX Runtime's own description is one."""

    name: str
    shape: Shape
    type: str
    """Such as ``tensor(float)``."""


class Declared(NamedTuple):
    """An input or output of a graph, for libraries whose own description is another."""

    name: str
    shape: Shape
    type: str


class GraphEngine(Engine):
    """Checks what goes in and words what goes wrong; see :class:`rgbd_fusion_seg.engine.Engine`.

    Args:
        name: backend and device, for people.
        bundle: the network and its card.
        run: takes the inputs by name and returns the outputs in the order of `outputs`, which
            are then the caller's to keep.
        outputs: as the graph declares them, checked by :func:`check_graph`.

    Raises:
        BundleError: outputs of other shapes than the card's, where only a run tells them.
    """

    def __init__(
        self,
        name: str,
        bundle: ModelBundle,
        run: Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]],
        outputs: Sequence[GraphTensor],
    ) -> None:
        self.name = name
        self._bundle = bundle
        self._run: Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]] | None = run
        self._outputs = [output.name for output in outputs]
        shapes: list[Shape] = [output.shape for output in outputs]
        if not all(isinstance(size, int) for shape in shapes for size in shape):
            # The graph leaves sizes open: only a run tells them.
            shapes = [array.shape for array in self.run(zero_inputs(bundle)).values()]
        _check_output_shapes(dict(zip(self._outputs, shapes, strict=True)), bundle)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return all outputs by name, for inputs by name (`ModelBundle.graph_inputs`).

        Inputs that the graph does not have are not looked at; results are the caller's to keep.

        Raises:
            EngineError: as :meth:`infer`.
        """
        if self._run is None:
            raise EngineError(f'the engine {self.name} is closed; open a new one')
        tensors = self._checked(feeds)
        try:
            return dict(zip(self._outputs, self._run(tensors), strict=True))
        except Exception as error:  # the runtimes' errors have no base class of their own
            reason = ' '.join(str(error).split())
            raise EngineError(f'inference with {self.name} failed: {reason:.300}') from error

    def close(self) -> None:
        """Free the network; closing again does nothing."""
        self._run = None

    def _checked(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        forms = self._bundle.graph_inputs
        if absent := [name for name in forms if name not in feeds]:
            raise EngineError(
                f'inference with {self.name} failed: the network needs the inputs '
                f'{", ".join(forms)}, and {", ".join(absent)} was not given'
            )
        for name, form in forms.items():
            # ONNX Runtime is forgiving about some of this and OpenVINO about more.
            tensor, fixed = feeds[name], 1 if self._bundle.dynamic.batch else 0
            fits = tensor.ndim == len(form.shape) and tensor.shape[fixed:] == form.shape[fixed:]
            if tensor.dtype != form.dtype or not fits:
                raise EngineError(
                    f'inference with {self.name} failed: {name} must be {form.dtype} '
                    f'{form.shape}, got {tensor.dtype.name} {tensor.shape}'
                )
        return {name: feeds[name] for name in forms}


def check_graph(
    inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], bundle: ModelBundle
) -> None:
    """Compare what a graph declares with the card: names, types and the sizes that are fixed.

    Raises:
        BundleError: they contradict it.
    """
    expected = bundle.graph_inputs
    names = [tensor.name for tensor in inputs]
    if sorted(names) != sorted(expected):
        raise BundleError(
            f'the network {bundle.weights_path} has the inputs {", ".join(names)}, expected '
            f'{" and ".join(expected)}; export it with these names'
        )
    for tensor in inputs:
        form = expected[tensor.name]
        _check_type(tensor, form, bundle)
        if not _can_be(tensor.shape, form.shape):
            raise _contradiction(tensor.name, tensor.shape, form.shape, bundle)
    _check_outputs(outputs, bundle)


def _check_outputs(outputs: Sequence[GraphTensor], bundle: ModelBundle) -> None:
    expected = bundle.graph_outputs
    if len(outputs) != len(expected):
        raise BundleError(
            f'the network {bundle.weights_path} has {len(outputs)} outputs, expected '
            f'{" and ".join(expected)} alone; export it anew'
        )
    for tensor in outputs:
        # Logits may have any name.
        form = expected.get(tensor.name) or next(iter(expected.values()))
        _check_type(tensor, form, bundle)
    # Where even the number of sides is open, only a run tells it.
    _check_output_shapes({tensor.name: tensor.shape for tensor in outputs if tensor.shape}, bundle)


def _check_output_shapes(shapes: Mapping[str, Shape], bundle: ModelBundle) -> None:
    expected = bundle.graph_outputs
    for name, shape in shapes.items():
        wanted = (expected.get(name) or next(iter(expected.values()))).shape
        if bundle.fused is None and len(shape) == 4 and not _can_be(shape[1:2], wanted[1:2]):
            raise BundleError(
                f'the network {bundle.weights_path} returns {shape[1]} classes but its card lists '
                f'{bundle.num_classes}; card and weights belong to different networks'
            )
        if not _can_be(shape, wanted):
            raise _contradiction('the output', shape, wanted, bundle)


def _can_be(shape: Shape, expected: Sequence[int]) -> bool:
    """Return whether a shape, which may have open sides, can be the expected one."""
    if len(shape) != len(expected):
        return False
    sides = zip(shape, expected, strict=True)
    return all(not isinstance(side, int) or side == wanted for side, wanted in sides)


def _check_type(tensor: GraphTensor, form: TensorForm, bundle: ModelBundle) -> None:
    if tensor.type != ONNX_TYPES[form.dtype]:
        raise BundleError(
            f'{tensor.name} of the network {bundle.weights_path} is {tensor.type}, expected '
            f'{ONNX_TYPES[form.dtype]}; export it in {form.dtype}'
        )


def _contradiction(
    name: str, actual: Shape, expected: Sequence[int], bundle: ModelBundle
) -> BundleError:
    return BundleError(
        f'{name} of the network {bundle.weights_path} has the shape {list(actual)} but its card '
        f'says {list(expected)}; card and weights belong to different networks'
    )


def zero_inputs(bundle: ModelBundle) -> dict[str, np.ndarray]:
    """Return what a bundle's graph takes, all zeros."""
    return {name: np.zeros(form.shape, form.dtype) for name, form in bundle.graph_inputs.items()}
