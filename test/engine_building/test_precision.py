"""Strongly typed networks, against ONNX Runtime, ONNX's own type inference and bit patterns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from bundles import tiny_network, with_open_sizes, write_bundle
from onnx import TensorProto, helper, numpy_helper

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine_building import fused_graph
from rgbd_fusion_seg.engine_building.precision import typed_network
from rgbd_fusion_seg.errors import BundleError
from rgbd_fusion_seg.locations import CARD_NAME

onnx = pytest.importorskip('onnx')

MODELS = Path(__file__).resolve().parents[2] / 'models'
SHIPPED = sorted(card.parent for card in MODELS.glob(f'*/{CARD_NAME}'))
TYPES = {'fp16': TensorProto.FLOAT16, 'bf16': TensorProto.BFLOAT16}
SMALLEST_STEP = {'fp16': 2.0**-11, 'bf16': 2.0**-8}
"""Largest relative error of rounding to nearest."""


def run(model: onnx.ModelProto | bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # Its optimiser takes casts to and fro for nothing.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options).run(None, feeds)


def emulated(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Return a network in float32 that rounds each value, as ONNX Runtime does not on a CPU."""
    low_type = TYPES[kind]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type == low_type:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == 'Cast' and node.attribute[0].i == low_type:
            node.attribute[0].i = TensorProto.FLOAT
        elif node.op_type in ('Cast', 'Shape'):
            continue
        for i, name in enumerate(node.output):
            exact, low = f'{name}_exact', f'{name}_low'
            node.output[i] = exact
            nodes.append(helper.make_node('Cast', [exact], [low], to=low_type))
            nodes.append(helper.make_node('Cast', [low], [name], to=TensorProto.FLOAT))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the types of all values that nodes make, inferred by onnx from scratch."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    known = (*inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in known}


def random_feeds(bundle, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(form.shape, dtype=np.float32)
        for name, form in bundle.graph_inputs.items()
    }


def network_of(nodes, weights, shape=(1, 3, 8, 8), outputs=('y',)) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        'net',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)


def typed(model: onnx.ModelProto, tmp_path: Path, kind: str, shapes=None) -> onnx.ModelProto:
    path = tmp_path / 'network.onnx'
    onnx.save(model, path)
    return onnx.load_from_string(typed_network(path, kind, shapes))


@pytest.mark.parametrize('folder', SHIPPED, ids=lambda f: f.name)
def test_shipped_bundles_label_alike_in_fp16(folder):
    bundle = load_bundle(folder)
    feeds = random_feeds(bundle)
    exact = run(bundle.weights_path.read_bytes(), feeds)[0]
    half = run(typed_network(bundle.weights_path, 'fp16'), feeds)[0]
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.01 * np.abs(exact).max()
    assert (half.argmax(1) == exact.argmax(1)).mean() > 0.99


@pytest.mark.parametrize('kind', ['fp16', 'bf16'])
def test_all_of_a_shipped_network_computes_in_it(kind):
    path = load_bundle(SHIPPED[0]).weights_path
    model = onnx.load_from_string(typed_network(path, kind))
    before = onnx.load(path)
    assert model.graph.input == before.graph.input
    assert [v.name for v in model.graph.output] == [v.name for v in before.graph.output]
    types = types_of(model)
    assert types.pop(model.graph.output[0].name) == TensorProto.FLOAT
    assert {types[name] for node in model.graph.node for name in node.output if name in types} <= {
        TYPES[kind],
        TensorProto.INT64,
    }
    assert TYPES[kind] in types.values()
    scales = {node.input[2] for node in model.graph.node if node.op_type == 'Resize'}
    weights = [t for t in model.graph.initializer if t.name not in scales]
    assert {t.data_type for t in weights} <= {TYPES[kind], TensorProto.INT64}
    count = sum(node.op_type != 'Cast' for node in before.graph.node)
    assert sum(node.op_type != 'Cast' for node in model.graph.node) == count
    assert all(node.name for node in model.graph.node)


def test_bf16_weights_are_rounded_to_nearest_even(tmp_path):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((16, 3, 1, 1)).astype(np.float32)
    values[0, 0] = np.float32(1 + 2**-8)  # halfway: to 1, which is even
    values[1, 0] = np.float32(1 + 3 * 2**-8)  # halfway: up
    model = network_of([helper.make_node('Conv', ['x', 'w'], ['y'])], {'w': values})
    (weight,) = typed(model, tmp_path, 'bf16').graph.initializer
    bits = values.view(np.uint32)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(numpy_helper.to_array(weight).view(np.uint16), expected)


@pytest.mark.parametrize('kind', ['fp16', 'bf16'])
def test_errors_are_those_of_rounding(kind, tmp_path):
    """The tiny network: weights stored in fp16, two inputs, pooling, concatenation."""
    bundle = load_bundle(write_bundle(tmp_path / 'tiny'))
    feeds = random_feeds(bundle)
    model = onnx.load_from_string(typed_network(bundle.weights_path, kind))
    (exact,) = run(bundle.weights_path.read_bytes(), feeds)
    (low,) = run(emulated(model, kind), feeds)
    worst = np.abs(low - exact).max() / np.abs(exact).max()
    assert SMALLEST_STEP[kind] / 20 < worst < 4 * SMALLEST_STEP[kind]


def test_scales_of_a_resize_stay_float(tmp_path):
    """Given, and computed; one that fp16 cannot hold exactly shows in the size of the output."""
    scales = np.array([1, 1, 2, 1.75], np.float32)
    nodes = [
        helper.make_node('Resize', ['x', '', 'scales'], ['a'], mode='nearest'),
        helper.make_node('Mul', ['scales', 'unit'], ['computed']),
        helper.make_node('Resize', ['x', '', 'computed'], ['b'], mode='nearest'),
        helper.make_node('Mul', ['a', 'scale_too'], ['c']),
        helper.make_node('Add', ['b', 'c'], ['y']),
    ]
    weights = {'scales': scales, 'unit': np.ones(4, np.float32), 'scale_too': np.float32([2])}
    model = network_of(nodes, weights)
    low = typed(model, tmp_path, 'fp16')
    types = types_of(low) | {t.name: t.data_type for t in low.graph.initializer}
    resizes = [node for node in low.graph.node if node.op_type == 'Resize']
    assert [types[node.input[2]] for node in resizes] == [TensorProto.FLOAT] * 2
    assert [types[node.output[0]] for node in resizes] == [TensorProto.FLOAT16] * 2
    feeds = {'x': np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)}
    np.testing.assert_allclose(run(low, feeds)[0], run(model, feeds)[0], rtol=3e-3, atol=3e-3)


def test_constants_in_the_graph_are_lowered(tmp_path):
    nodes = [
        helper.make_node('Constant', [], ['half'], value_float=0.5),
        helper.make_node('Constant', [], ['both'], value_floats=[1.5, 2.5, 3.5]),
        helper.make_node('Shape', ['x'], ['shape']),
        helper.make_node('ConstantOfShape', ['shape'], ['zeros']),
        helper.make_node('Cast', ['shape'], ['sides'], to=TensorProto.FLOAT),
        helper.make_node('ReduceSum', ['sides'], ['side'], keepdims=0),
        helper.make_node('Mul', ['x', 'half'], ['a']),
        helper.make_node('Add', ['a', 'zeros'], ['b']),
        helper.make_node('Mul', ['b', 'side'], ['c']),
        helper.make_node('Transpose', ['c'], ['d'], perm=[0, 2, 3, 1]),
        helper.make_node('Add', ['d', 'both'], ['y']),
    ]
    model = network_of(nodes, {})
    low = typed(model, tmp_path, 'fp16')
    assert TensorProto.FLOAT not in {
        kind for name, kind in types_of(low).items() if name not in ('x', 'y')
    }
    feeds = {'x': np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)}
    np.testing.assert_allclose(run(low, feeds)[0], run(model, feeds)[0], rtol=3e-3, atol=1e-2)


def test_a_weight_and_a_value_may_serve_both_types(tmp_path):
    """What lies around the network in a fused graph stays float32, with casts between."""
    weights = {'w': np.float32([3.0003]), 'offset': np.float32([70000])}
    nodes = [
        helper.make_node('Add', ['x', 'offset'], ['far'], name='fused/add'),
        helper.make_node('Sub', ['far', 'offset'], ['near'], name='fused/sub'),
        helper.make_node('Mul', ['near', 'w'], ['a'], name='network'),
        helper.make_node('Mul', ['a', 'w'], ['b'], name='fused/after'),
        helper.make_node('Add', ['a', 'b'], ['y'], name='network/last'),
        helper.make_node('Identity', ['b'], ['z'], name='fused/last'),
    ]
    model = network_of(nodes, weights, outputs=('y', 'z'))
    low = typed(model, tmp_path, 'fp16')
    types = types_of(low)
    expected = {'far': 'f', 'near': 'f', 'a': 'h', 'b': 'f', 'y': 'f', 'z': 'f'}
    assert {k: {1: 'f', 10: 'h'}[types[k]] for k in expected} == expected
    feeds = {'x': np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)}
    for ours, exact in zip(run(low, feeds), run(model, feeds), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=3e-3, atol=1e-2)


def test_fused_graphs_keep_their_geometry(tmp_path):
    base = load_bundle(write_bundle(tmp_path / 'tiny'))
    fused = fused_graph.fuse(base, tmp_path / 'fused', (96, 72))
    model = onnx.load_from_string(typed_network(fused.weights_path, 'fp16'))
    types = types_of(model)
    kinds = {
        types[node.output[0]]
        for node in model.graph.node
        if node.name.startswith('fused/') and node.output[0] in types
    }
    assert TensorProto.FLOAT in kinds
    assert TensorProto.FLOAT16 not in kinds
    (conv,) = (node for node in model.graph.node if node.op_type == 'Conv')
    assert types[conv.output[0]] == TensorProto.FLOAT16
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.integers(0, 256, form.shape).astype(form.dtype)
        for name, form in fused.graph_inputs.items()
    }
    exact, half = run(fused.weights_path.read_bytes(), feeds), run(model, feeds)
    assert (exact[0] == half[0]).mean() > 0.99
    assert np.abs(exact[1].astype(int) - half[1]).max() <= 2
    assert len(np.unique(half[0])) > 1


def test_weights_that_fp16_cannot_hold(tmp_path):
    weights = {'w': np.full((1, 3, 1, 1), 7e4, np.float32)}
    model = network_of([helper.make_node('Conv', ['x', 'w'], ['y'])], weights)
    with pytest.raises(BundleError, match=r'w does not fit into fp16.*70000.*another'):
        typed(model, tmp_path, 'fp16')
    (weight,) = typed(model, tmp_path, 'bf16').graph.initializer
    assert float(numpy_helper.to_array(weight)[0, 0, 0, 0]) == pytest.approx(7e4, rel=2**-8)
    weights['w'][:] = 65504  # the largest number it holds
    model = network_of([helper.make_node('Conv', ['x', 'w'], ['y'])], weights)
    typed(model, tmp_path, 'fp16')


def test_a_network_in_fp16_stays_as_it_is(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path / 'tiny'))
    half = tmp_path / 'half.onnx'
    half.write_bytes(typed_network(bundle.weights_path, 'fp16'))
    feeds = random_feeds(bundle)
    again = typed_network(half, 'fp16')
    np.testing.assert_array_equal(run(again, feeds)[0], run(half.read_bytes(), feeds)[0])
    for kind in ('fp32', 'bf16'):
        with pytest.raises(BundleError, match=r'computes in fp16.*choose the precision fp16'):
            typed_network(half, kind)


def test_weights_stored_in_fp16_do_not_make_a_network_fp16(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path / 'tiny'))
    feeds = random_feeds(bundle)
    single = typed_network(bundle.weights_path, 'fp32')
    expected = run(bundle.weights_path.read_bytes(), feeds)[0]
    np.testing.assert_array_equal(run(single, feeds)[0], expected)


@pytest.mark.parametrize('kind', ['fp32', 'fp16'])
def test_open_sides_are_fixed(kind, tmp_path):
    model = with_open_sizes(tiny_network())
    shapes = {'rgb': (1, 3, 48, 64), 'hha': (1, 3, 24, 32)}
    fixed = typed(model, tmp_path, kind, shapes)
    sides = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*fixed.graph.input, *onnx.shape_inference.infer_shapes(fixed).graph.output)
    }
    assert sides == {'rgb': [1, 3, 48, 64], 'hha': [1, 3, 24, 32], 'logits': [1, 4, 6, 8]}
    ranged = typed(model, tmp_path, kind, dict.fromkeys(shapes, (1, 3, None, None)))
    for value in ranged.graph.input:
        dims = value.type.tensor_type.shape.dim
        assert [d.dim_value for d in dims] == [1, 3, 0, 0]
        assert dims[2].dim_param == f'{value.name}_2'


def test_no_network(tmp_path):
    path = tmp_path / 'network.onnx'
    path.write_bytes(b'nonsense')
    with pytest.raises(BundleError, match=r'network\.onnx cannot be read as an ONNX network'):
        typed_network(path, 'fp16')
