"""Exported bundles against the torch networks they come from."""

from __future__ import annotations

import argparse
import copy
import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

import goldens  # noqa: E402
from tiny_checkpoints import STATISTICS, ToyFrames, tiny_checkpoint  # noqa: E402

from rgbd_fusion_seg import hha  # noqa: E402
from rgbd_fusion_seg.bundle import load_bundle  # noqa: E402
from rgbd_fusion_seg.card import write_card  # noqa: E402
from rgbd_fusion_seg.engine import open_engine  # noqa: E402
from rgbd_fusion_seg.errors import BundleError, InputError  # noqa: E402
from rgbd_fusion_seg.postprocess import labels_and_confidence  # noqa: E402
from rgbd_fusion_seg.segmenter import Segmenter  # noqa: E402
from rgbd_fusion_seg.training import export as exporting  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import (  # noqa: E402
    from_public,
    load_checkpoint,
    save_checkpoint,
)
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig  # noqa: E402
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40  # noqa: E402
from rgbd_fusion_seg.training.export import (  # noqa: E402
    GRAPH_NAME,
    describe,
    export,
    replacing,
    write_bundle,
)
from rgbd_fusion_seg.training.networks import NETWORKS, build_network  # noqa: E402
from rgbd_fusion_seg.training.onnx_graph import (  # noqa: E402
    OPSETS,
    GraphOptions,
    build_graph,
    store_as_half,
)

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
OPEN_ONES = {'rfbnet_erfnet', 'adapnetpp'}
"""Networks that are exported with open batch and size, which takes torch twice the time: one of
each backbone, one with each number of inputs."""
CASES = [
    *(pytest.param(name, {}, id=name) for name in NETWORKS),
    pytest.param('erfnet_encoder', {'modality': 'hha', 'shrink_depth': True}, id='erfnet-hha'),
    pytest.param('erfnet_encoder', {'modality': 'depth', 'shrink_depth': True}, id='erfnet-depth'),
]


def inputs(bundle, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {
        name: rng.standard_normal((count, 3, size.height, size.width), np.float32)
        for name, size in bundle.inputs.items()
    }


def torch_logits(checkpoint, tensors: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return checkpoint.build()({k: torch.from_numpy(v) for k, v in tensors.items()}).numpy()


def assert_same_logits(checkpoint, bundle, count: int, tolerance: float) -> None:
    """Compare with the unfolded network in float32; the tolerance is a share of the largest."""
    tensors = inputs(bundle, count)
    expected = torch_logits(checkpoint, tensors)
    logits = open_engine(bundle, num_threads=1).infer(**tensors)
    assert logits.shape == expected.shape == (count, *bundle.logits_shape[1:])
    assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'file'), [('cen', 'cen'), ('asymfusion', 'asym')])
def test_graphs_are_as_near_to_the_public_code_as_is_told(goldens_dir, name, file):
    """docs/training.md tells how near, and that the labels are the same."""
    golden = np.load(goldens_dir / f'{file}_refinenet50.npz')
    weights = goldens.refinenet_weights(golden, exchanging=name == 'cen')
    weights = from_public(name, {k: torch.from_numpy(v) for k, v in weights.items()})
    with torch.device('meta'):
        network = build_network(name, 40, backbone='resnet50', modalities=['rgb', 'depth'])
    network.load_state_dict(weights, assign=True)
    tensors = {m: golden[f'x_{m}'][:1] for m in network.modalities}
    expected = golden['out_ens'][:1]
    model = build_graph(network.eval(), *tensors['rgb'].shape[2:], GraphOptions(storage='fp32'))
    for storage, limit in (('fp32', 1e-5), ('fp16', 1e-3)):
        if storage == 'fp16':
            store_as_half(model)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (logits,) = session.run(None, tensors)
        assert np.abs(logits - expected).max() < limit * np.abs(expected).max()
        np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))


def norms(model) -> list:
    return [node for node in model.graph.node if node.op_type == 'BatchNormalization']


def foldable_norms(model) -> list[str]:
    """Names of batch norms that read nothing but a convolution, or a concatenation with one."""
    makers = {output: node for node in model.graph.node for output in node.output}
    reads = [name for node in model.graph.node for name in node.input]

    def foldable(name: str) -> bool:
        maker = makers.get(name)
        if maker is None or reads.count(name) > 1:
            return False
        if maker.op_type == 'Concat':
            return any(foldable(part) for part in maker.input)
        return maker.op_type in ('Conv', 'ConvTranspose', 'Gemm')

    return [norm.name for norm in norms(model) if foldable(norm.input[0])]


@pytest.mark.parametrize(('name', 'options'), CASES)
def test_the_bundle_of_every_network_is_the_network(name, options, tmp_path):
    """With the norms folded, at the batches and sizes it leaves open, and in the pipeline."""
    checkpoint = tiny_checkpoint(name, options)
    network = checkpoint.build()
    is_open = name in OPEN_ONES
    form = GraphOptions(storage='fp32', dynamic_batch=is_open, dynamic_size=is_open)
    found = write_bundle(checkpoint, tmp_path / 'b', 'toy', ToyFrames(), form, frames=6)
    assert found['labels_equal_to_torch'] >= 0.999
    bundle = load_bundle(tmp_path / 'b')
    width, height = bundle.input_size
    step = bundle.dynamic.multiple
    sizes = [(width, height), (width + step, height - step)]
    for size in sizes if is_open else sizes[:1]:
        for count in (1, 2, 3) if is_open else (1,):
            assert_same_logits(checkpoint, bundle.resized(*size), count, 1e-4)
    model = onnx.load(bundle.weights_path)
    assert foldable_norms(model) == []
    assert len(norms(model)) < sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert set(bundle.inputs) == set(network.modalities)
    frame = ToyFrames()[0].frame
    with Segmenter(bundle, num_threads=1) as own:
        labels = own.segment(frame).labels
    assert labels.shape == (120, 160)
    assert set(np.unique(labels)) <= {0, 1, 2}
    if is_open:
        with Segmenter(bundle, input_size=(2 * width, 2 * height), num_threads=1) as larger:
            assert larger.segment(frame).labels.shape == (120, 160)


def test_the_pipeline_feeds_metres_to_a_network_on_depth(tmp_path):
    checkpoint = tiny_checkpoint('erfnet_encoder', {'modality': 'depth'}, width=64, height=48)
    frame = ToyFrames()[1].frame
    # The pixel under the centre of each of the network's.
    rows, columns = (2 * np.arange(48) + 1) * 120 // 96, (2 * np.arange(64) + 1) * 160 // 128
    (mean, *_), (std, *_) = STATISTICS['depth']
    tensors = {'depth': np.stack([[(frame.depth[rows][:, columns] - mean) / std] * 3])}
    # So that no class wins everywhere.
    common = torch_logits(checkpoint, tensors).mean((0, 2, 3))
    checkpoint.weights['head.bias'] -= torch.from_numpy(common)
    expected, _ = labels_and_confidence(torch_logits(checkpoint, tensors), 120, 160)
    assert len(np.unique(expected)) > 1
    write_bundle(
        checkpoint, tmp_path / 'b', 'toy', ToyFrames(), GraphOptions(storage='fp32'), frames=2
    )
    card = yaml.safe_load((tmp_path / 'b' / 'model.yaml').read_text())
    assert card['inputs']['depth']['mean'] == STATISTICS['depth'][0]
    assert 'hha' not in card
    bundle = load_bundle(tmp_path / 'b')
    assert list(bundle.inputs) == ['depth']
    with Segmenter(bundle, num_threads=1) as segmenter:
        labels = segmenter.segment(frame).labels
    assert (labels == expected).mean() > 0.999


@pytest.fixture(scope='module')
def fusion(tmp_path_factory):
    """A strongly typed bundle of a fusion network, all sizes fixed, and its checkpoint."""
    checkpoint = tiny_checkpoint('rfbnet_erfnet', {})
    folder = tmp_path_factory.mktemp('half') / 'typed'
    write_bundle(checkpoint, folder, 'toy', ToyFrames(), GraphOptions(precision='fp16'), frames=2)
    return checkpoint, load_bundle(folder)


def test_a_network_in_half_precision_has_no_other_floats(fusion):
    checkpoint, bundle = fusion
    assert_same_logits(checkpoint, bundle, 1, 2e-2)
    model = onnx.load(bundle.weights_path)
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {
        FLOAT
    }
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    inner = {name for node in model.graph.node for name in node.output} - {'logits'}
    assert inner <= set(types)
    assert FLOAT not in {types[name] for name in inner}
    # The scales of a Resize are float32 by ONNX's definition, and no tensors of the network.
    scales = {node.input[2] for node in model.graph.node if node.op_type == 'Resize'}
    weights = {t.name: t.data_type for t in model.graph.initializer if t.name not in scales}
    assert FLOAT not in weights.values()
    assert HALF in weights.values()
    card = bundle.card['weights']
    assert (card['computes_in'], card['stored_as']) == ('float16', 'float16')


def test_weights_are_stored_in_half_the_bytes(exported, tmp_path):
    """The same network as ``exported`` has in fp32, but for the classes, at another size."""
    checkpoint = tiny_checkpoint('erfnet_encoder', {})
    write_bundle(
        checkpoint, tmp_path / 'b', 'toy', ToyFrames(), GraphOptions(), (48, 64), frames=2
    )
    half, single = load_bundle(tmp_path / 'b'), load_bundle(exported)
    assert half.input_size == (48, 64)
    assert_same_logits(checkpoint, half, 1, 1e-2)
    assert half.weights_path.stat().st_size < 0.55 * single.weights_path.stat().st_size
    model = onnx.load(half.weights_path)
    kinds = {t.data_type for t in model.graph.initializer if np.prod(t.dims) > 64}
    assert kinds == {HALF}
    tensors = onnx.load(single.weights_path).graph.initializer
    assert {t.data_type for t in tensors} == {FLOAT}
    open_axes = [d for v in model.graph.input for d in v.type.tensor_type.shape.dim]
    assert all(d.dim_value > 0 for d in open_axes)


def test_norms_that_all_hold_the_same_are_folded_too(tmp_path):
    """An untrained network's: the exporter then keeps one tensor for all of them."""
    torch.manual_seed(0)
    network = build_network('erfnet_encoder', num_classes=3).eval()
    model = build_graph(network, 64, 96, GraphOptions(storage='fp32'))
    assert foldable_norms(model) == []
    rgb = torch.randn(1, 3, 64, 96)
    session = pytest.importorskip('onnxruntime').InferenceSession(model.SerializeToString())
    (logits,) = session.run(None, {'rgb': rgb.numpy()})
    with torch.inference_mode():
        expected = network({'rgb': rgb}).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_graphs_of_the_newest_opset_run(precision, tmp_path):
    checkpoint = tiny_checkpoint('erfnet_encoder', {'modality': 'hha'})
    options = GraphOptions(precision=precision, opset=OPSETS[-1])
    write_bundle(checkpoint, tmp_path / 'b', 'toy', ToyFrames(), options, frames=1)
    model = onnx.load(tmp_path / 'b/model.onnx')
    assert [o.version for o in model.opset_import if not o.domain] == [OPSETS[-1]]
    assert_same_logits(checkpoint, load_bundle(tmp_path / 'b'), 1, 2e-2)


def test_weights_too_large_for_half_are_refused():
    values = np.full((8, 16), 1e6, np.float32)
    graph = onnx.helper.make_graph([], 'g', [], [], [onnx.numpy_helper.from_array(values, 'huge')])
    with pytest.raises(BundleError, match='huge'):
        store_as_half(onnx.helper.make_model(graph))


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'precision': 'int8'}, "precision must be one of fp32, fp16, got 'int8'"),
        ({'storage': 'bf16'}, "storage must be one of fp32, fp16, got 'bf16'"),
        ({'precision': 'fp16', 'storage': 'fp32'}, 'has fp16 storage'),
        ({'opset': 17}, 'opset must be 18 to'),
    ],
)
def test_unknown_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        GraphOptions(**options)


@pytest.fixture(scope='module')
def files(tmp_path_factory, nyu_pack) -> tuple[Path, DataConfig]:
    """A checkpoint file with the classes of NYU40, and the data it is checked on."""
    checkpoint = tiny_checkpoint('erfnet_encoder', {}, NYU40, width=128, height=96)
    path = tmp_path_factory.mktemp('runs') / 'last.safetensors'
    save_checkpoint(path, checkpoint.build(), checkpoint.info)
    data = DataConfig(DatasetConfig(folder=str(nyu_pack)), synthetic_test_frames=0)
    return path, data


@pytest.fixture(scope='module')
def exported(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('models') / 'exported'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', ['training', 'export', '--bundle', 'models/my bundle'])
        export(files[0], folder, files[1], storage='fp32', frames=8, fuse_postprocess=(160, 120))
    return folder


def test_the_card_tells_where_the_bundle_comes_from(files, exported):
    card = yaml.safe_load((exported / 'model.yaml').read_text())
    bundle = load_bundle(exported)
    assert bundle.name == 'exported'
    assert bundle.input_size == (128, 96)
    assert bundle.stride == 8
    assert bundle.class_names == NYU40.names
    np.testing.assert_array_equal(bundle.colors, NYU40.colors)
    np.testing.assert_allclose(bundle.rgb.mean, STATISTICS['rgb'][0])
    np.testing.assert_allclose(bundle.rgb.std, STATISTICS['rgb'][1])
    assert bundle.depth_range_m is None  # of a network that reads colour
    assert 'depth' not in card
    assert bundle.hha is None
    assert 'hha' not in card
    assert card['training'] == {
        'command': 'python -m rgbd_fusion_seg.training train --run toy.yaml',
        'data': [{'name': 'toy-train', 'frames': 6, 'terms': 'drawn by a test'}],
        'started_from': [],
        'steps': 12,
        'minutes': 3.5,
    }
    command = "python -m rgbd_fusion_seg.training export --bundle 'models/my bundle'"
    assert card['export'] == {'command': command}
    assert card['weights']['opset'] == 18
    assert card['weights']['computes_in'] == 'float32'
    assert card['dynamic'] == {'batch': False, 'size': False, 'multiple': 8}
    trained = load_checkpoint(files[0]).build().parameters()
    assert card['network']['parameters'] == sum(p.numel() for p in trained)


def test_the_graph_tells_nothing_of_the_machine_it_was_made_on(exported):
    """The exporter notes the stack of calls, with paths, at every node."""
    for file in exported.glob('*.onnx'):
        assert b'.py' not in file.read_bytes()
        assert str(Path(torch.__file__).parent).encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ('network', 'learnt', 'told'),
    [('rfbnet_erfnet', ['rgb', 'depth'], True), ('rfbnet_erfnet', [], False),
     ('erfnet_encoder', ['depth'], False)],
)  # fmt: skip
def test_the_card_tells_what_the_network_copes_without(tmp_path, network, learnt, told):
    checkpoint = tiny_checkpoint(network, {}, NYU40, width=128, height=96)
    checkpoint.info['copes_without'] = learnt
    path = tmp_path / 'last.safetensors'
    save_checkpoint(path, checkpoint.build(), checkpoint.info)
    built = load_checkpoint(path).build()
    (tmp_path / GRAPH_NAME).write_bytes(b'weights')
    card = describe(load_checkpoint(path), built, tmp_path, 'toy', (128, 96), GraphOptions())
    assert card.get('copes_without', []) == (learnt if told else [])
    assert ('copes_without' in card) == told


def test_the_card_tells_how_well_labels_agree_and_score(exported):
    metrics = load_bundle(exported).metrics
    agreement = metrics['agreement']
    assert agreement['frames'] == 2  # all there are
    assert agreement['which'] == 'nyudv2-test: 0, 1'
    assert 0.999 <= agreement['labels_equal_to_torch'] <= 1
    assert 0 <= agreement['largest_logit_error'] < 1e-2
    assert '128x96' in agreement['measured_with']
    assert metrics['nyudv2_test']['frames'] == 2
    assert 0 <= metrics['nyudv2_test']['mIoU'] <= metrics['nyudv2_test']['pixel_accuracy'] <= 1


def test_beside_the_bundle_is_its_form_for_frames(exported):
    base, fused = load_bundle(exported), load_bundle(exported.parent / 'exported_fused_160x120')
    assert fused.fused.base_sha256 == base.weights_sha256
    assert fused.metrics == base.metrics
    frame = ToyFrames()[0].frame
    assert frame.depth.shape == (120, 160)
    with Segmenter(base, num_threads=1) as split, Segmenter(fused, num_threads=1) as whole:
        assert (split.segment(frame).labels == whole.segment(frame).labels).mean() > 0.999


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def spoilt(model):
    """Return the network with its classes in another order."""
    model = copy.deepcopy(model)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.shape == (40, 128, 1, 1):
            turned = np.ascontiguousarray(values[::-1])
            tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
    return model


def test_a_graph_that_says_something_else_leaves_the_old_bundle(
    files, exported, tmp_path, monkeypatch
):
    target, good = tmp_path / 'models' / 'mine', onnx.load(exported / 'model.onnx')
    monkeypatch.setattr(exporting, 'build_graph', lambda *_: good)
    export(files[0], target, files[1], storage='fp32', frames=1, score=False)
    before = contents(target)
    assert set(load_bundle(target).metrics) == {'agreement'}
    monkeypatch.setattr(exporting, 'build_graph', lambda *_: spoilt(good))
    with pytest.raises(BundleError, match=r'agrees with the network on .*99\.9% are needed'):
        export(files[0], target, files[1], storage='fp32', frames=1)
    assert contents(target) == before
    with pytest.raises(BundleError):
        export(files[0], tmp_path / 'models' / 'new', files[1], storage='fp32', frames=1)
    assert [p.name for p in (tmp_path / 'models').iterdir()] == ['mine']


def test_a_card_that_cannot_be_read_is_told_of_the_checkpoint(
    files, exported, tmp_path, monkeypatch
):
    """What is written first is gone when the error is read."""
    model = onnx.load(exported / 'model.onnx')
    monkeypatch.setattr(exporting, 'build_graph', lambda *_: model)
    statistics = {'rgb': [[120.0] * 3, [70.0, 0.0, 70.0]]}
    checkpoint = tiny_checkpoint(
        'erfnet_encoder', {}, NYU40, width=128, height=96, statistics=statistics
    )
    path = tmp_path / 'last.safetensors'
    save_checkpoint(path, checkpoint.build(), checkpoint.info)
    words = rf"^{path} makes no bundle .* the card model\.yaml has .* 'inputs\.rgb': .* train it"
    with pytest.raises(BundleError, match=words) as caught:
        export(path, tmp_path / 'b', files[1])
    assert '.b-' not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ['last.safetensors']


def test_training_data_of_one_depth_have_a_range(tmp_path):
    checkpoint = tiny_checkpoint('erfnet_encoder', {'modality': 'hha'}, depth_range_m=[2.0, 2.0])
    options, folder = GraphOptions(storage='fp32'), tmp_path / 'b'
    write_bundle(checkpoint, folder, 'toy', ToyFrames(), options, frames=1)
    near, far = load_bundle(folder).depth_range_m
    assert near < 2 < far < near + 0.1
    checkpoint.info['depth_range_m'] = [0.0, 0.0]  # as where nothing has been measured
    card = exporting.describe(checkpoint, checkpoint.build(), folder, 'toy', (96, 64), options)
    write_card(folder / 'model.yaml', card)
    assert load_bundle(folder).depth_range_m[0] == 0


def test_logits_that_are_not_finite_are_refused(files, exported, tmp_path, monkeypatch):
    """Though both agree that no pixel has a label."""
    checkpoint, model = load_checkpoint(files[0]), onnx.load(exported / 'model.onnx')
    checkpoint.weights['head.bias'][:] = float('nan')
    (bias,) = (t for t in model.graph.initializer if list(t.dims) == [40])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(40, np.nan, np.float32), bias.name))
    monkeypatch.setattr(exporting, 'build_graph', lambda *_: model)
    with pytest.raises(BundleError, match=r'on 100\.0000% .* logit error is nan'):
        write_bundle(checkpoint, tmp_path / 'b', 'toy', ToyFrames(), GraphOptions(storage='fp32'))


def test_a_bundle_is_replaced_at_once_or_not_at_all(tmp_path):
    target = tmp_path / 'mine'
    for text in ('first', 'second'):
        with replacing(target) as draft:
            draft.mkdir()
            (draft / 'model.yaml').write_text(text)
            before = contents(target) if target.exists() else None
        assert contents(target) == {'model.yaml': text.encode()}
    assert before == {'model.yaml': b'first'}
    with pytest.raises(ZeroDivisionError), replacing(target) as draft:
        draft.mkdir(1 // 0)
    assert contents(target) == {'model.yaml': b'second'}
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_told_with_the_bundle_and_leaves_the_older_one(tmp_path):
    target = tmp_path / 'mine'
    target.mkdir()
    (target / 'model.yaml').write_text('first')
    words = (
        rf'{re.escape(str(target))} cannot be written: .*No space left.*; free some space there'
    )
    with pytest.raises(InputError, match=words), replacing(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write does, without a path
    assert contents(target) == {'model.yaml': b'first'}
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(PermissionError), replacing(target):
        raise PermissionError


def test_other_folders_are_never_replaced(tmp_path):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis/text').write_text('years of work')
    (tmp_path / 'file').write_text('')
    for name in ('thesis', 'file', 'file/mine'):
        with pytest.raises(InputError, match=name), replacing(tmp_path / name):
            pass
    assert (tmp_path / 'thesis/text').read_text() == 'years of work'


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'size': (100, 96)}, 'height of size to be multiples of 8, not 100x96; 96x96 would do'),
        ({'frames': 0}, '0 of the 2 frames of nyudv2-test'),
        ({'opset': 99}, 'opset must be 18 to'),
        ({'fuse_hha': True}, 'fuse_hha belongs to fuse_postprocess'),
        ({'fuse_postprocess': (160, 0)}, 'frames cannot be 160x0'),
        ({'fuse_postprocess': '160x0'}, 'frames cannot be 160x0'),
        ({'fuse_postprocess': '160'}, "fuse_postprocess '160' is no size; give .* as 640x480"),
        ({'size': '100x96'}, 'multiples of 8, not 100x96'),
        ({'size': '128x96x3'}, "size '128x96x3' is no size; give .* as 640x480"),
    ],
)
def test_wrong_options_are_one_sentence(files, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        export(files[0], tmp_path / 'b', files[1], **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('modality', 'fuse_hha', 'words'),
    [
        ('depth', False, 'reads depth in metres, which fused graphs do not make'),
        ('rgb', True, 'sees no HHA, so none can be computed'),
    ],
)
def test_what_cannot_be_fused_is_told_before_the_bundle_is_replaced(
    files, exported, tmp_path, modality, fuse_hha, words
):
    options = {'modalities': [modality]}
    checkpoint = tiny_checkpoint('multimodal', options, NYU40, width=128, height=96)
    path, folder = tmp_path / 'last.safetensors', tmp_path / 'bundle'
    save_checkpoint(path, checkpoint.build(), checkpoint.info)
    shutil.copytree(exported, folder)
    before = (folder / 'model.yaml').read_text()
    with pytest.raises(BundleError, match=f'the network of {re.escape(str(path))} {words}'):
        export(path, folder, files[1], fuse_postprocess=(160, 120), fuse_hha=fuse_hha)
    assert (folder / 'model.yaml').read_text() == before


@pytest.mark.parametrize(('opened', 'sizes'), [('batch', (24,)), ('size', (24, 16))])
def test_what_is_open_is_checked_at_other_values(tmp_path, monkeypatch, opened, sizes):
    seen = set()

    class Recorded:
        def __init__(self, *arguments):
            self.engine = open_engine(*arguments)
            self.name, self.close = self.engine.name, self.engine.close

        def infer(self, rgb):
            seen.add((len(rgb), rgb.shape[2]))
            return self.engine.infer(rgb=rgb)

    monkeypatch.setattr(exporting, 'open_engine', Recorded)
    options = GraphOptions(storage='fp32', **{f'dynamic_{opened}': True})
    checkpoint = tiny_checkpoint('erfnet_encoder', {})
    found = write_bundle(checkpoint, tmp_path / 'b', 'toy', ToyFrames(), options, frames=3)
    assert found['which'] == 'toy-test: 0, 3, 6'  # of seven, the first and the last among them
    batches = {1, 2} if opened == 'batch' else {1}
    assert seen == {(batch, height) for batch in batches for height in sizes}
    dynamic = load_bundle(tmp_path / 'b').dynamic
    assert (dynamic.batch, dynamic.size) == (opened == 'batch', opened == 'size')


def test_weights_of_others_get_the_depth_of_the_training_frames(files, tmp_path, monkeypatch):
    """Import-weights knows no frames; the graph for GPUs makes HHA too."""
    ranges = {'nyudv2-train': (1.0, 2.0), 'nyudv2-test': (3.0, 4.0)}
    monkeypatch.setattr(
        exporting,
        'cached_frames',
        lambda source, _: argparse.Namespace(depth_range_m=ranges[source.name]),
    )
    options = {'modality': 'hha'}
    checkpoint = tiny_checkpoint('erfnet_encoder', options, NYU40, width=128, height=96)
    del checkpoint.info['depth_range_m']
    path = tmp_path / 'last.safetensors'
    save_checkpoint(path, checkpoint.build(), checkpoint.info)
    export(
        path, tmp_path / 'b', files[1], storage='fp32', frames=1, score=False,
        fuse_postprocess=(160, 120), fuse_hha=True,
    )  # fmt: skip
    bundle, fused = load_bundle(tmp_path / 'b'), load_bundle(tmp_path / 'b_fused_hha_160x120')
    assert bundle.depth_range_m == (1.0, 2.0)
    assert bundle.card['hha'] == hha.constants()
    assert fused.fused.hha


def test_a_checkpoint_of_other_classes_is_refused(files, tmp_path):
    checkpoint = tiny_checkpoint('erfnet_encoder', {})
    save_checkpoint(tmp_path / 'toy.safetensors', checkpoint.build(), checkpoint.info)
    with pytest.raises(InputError, match=r'tells 3 classes apart and nyudv2-test has 40, .*give'):
        export(tmp_path / 'toy.safetensors', tmp_path / 'b', files[1])
    checkpoint = load_checkpoint(files[0])
    checkpoint.info['classes']['names'].reverse()
    save_checkpoint(tmp_path / 'turned.safetensors', checkpoint.build(), checkpoint.info)
    with pytest.raises(InputError, match=r'tells 40 classes .* has 40, and class 0 is'):
        export(tmp_path / 'turned.safetensors', tmp_path / 'b', files[1])
