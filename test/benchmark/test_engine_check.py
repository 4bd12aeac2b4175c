"""What an engine's card says of its agreement, for engines whose difference is known."""

from __future__ import annotations

import dataclasses
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from bundles import tiny_network, write_bundle
from onnx import numpy_helper

from rgbd_fusion_seg.benchmark import engine_check
from rgbd_fusion_seg.benchmark.compare import synthetic_frames
from rgbd_fusion_seg.benchmark.engine_check import check_engine, differences
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine.engine_files import EngineCard, read_card, read_plan, write_engine
from rgbd_fusion_seg.engine_building import fused_graph
from rgbd_fusion_seg.errors import EngineError, InputError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.segmenter import Segmenter


@pytest.fixture(scope='module')
def frames() -> list[RgbdFrame]:
    return synthetic_frames(2).frames


def biased(folder: Path, bias: list[float]) -> Path:
    """Write the tiny bundle with other biases of its four classes."""
    network = tiny_network()
    (tensor,) = (t for t in network.graph.initializer if t.name == 'bias')
    tensor.CopyFrom(numpy_helper.from_array(np.float32(bias), 'bias'))
    return write_bundle(folder, network=network)


def compared(ours: Path, theirs: Path, frames) -> dict:
    with (
        closing(Segmenter(ours, 'onnxruntime')) as engine,
        closing(Segmenter(theirs, 'onnxruntime')) as reference,
    ):
        return differences(engine, reference, frames)


def test_a_shift_of_all_logits(tiny_bundle, tmp_path, frames):
    found = compared(biased(tmp_path / 'b', [0.25] * 4), tiny_bundle, frames)
    assert found['equal_labels'] == 1
    assert found['largest_logit_error'] == pytest.approx(0.25, abs=1e-5)
    assert found['largest_logit'] > 1
    assert found['reference'].startswith('onnxruntime')


def test_other_labels(tiny_bundle, tmp_path, frames):
    """A network that knows no third class differs where the other one finds it."""
    with Segmenter(tiny_bundle, 'onnxruntime') as segmenter:
        shares = [(segmenter.segment(frame).labels == 2).mean() for frame in frames]
    assert np.mean(shares) > 0.01
    found = compared(biased(tmp_path / 'b', [0, 0, -1000, 0]), tiny_bundle, frames)
    assert found['equal_labels'] == pytest.approx(1 - np.mean(shares), abs=1e-5)
    assert found['largest_logit_error'] == pytest.approx(1000, rel=1e-3)


def test_a_fused_bundle_is_compared_on_frames_of_its_size(tiny_bundle, tmp_path):
    fused = fused_graph.fuse(load_bundle(tiny_bundle), tmp_path / 'fused', (96, 72))
    (frame,) = synthetic_frames(1, fused).frames
    assert frame.depth.shape == (72, 96)
    assert compared(fused.path, fused.path, [frame])['equal_labels'] == 1


def test_fused_bundles_have_labels_alone(tiny_bundle, tmp_path, frames):
    height, width = frames[0].depth.shape
    fused = fused_graph.fuse(load_bundle(tiny_bundle), tmp_path / 'fused', (width, height))
    found = compared(fused.path, fused.path, frames)
    assert found['equal_labels'] == 1
    assert found['largest_logit_error'] is None


def test_a_recording_that_is_not_there(tiny_bundle, tmp_path):
    with pytest.raises(InputError, match='there is no folder'):
        check_engine(load_bundle(tiny_bundle), tmp_path / 'engine.json', tmp_path / 'absent')


def test_the_card_tells_it(tiny_bundle, tmp_path, frames, monkeypatch, caplog):
    """The engine is another network in ONNX Runtime: without a GPU there is no TensorRT engine."""
    bundle = load_bundle(tiny_bundle)
    empty = EngineCard('tiny', '', 'tensorrt', '11.4.0', 'fp16', ('8.6',), 'GPU', ())
    path = write_engine(tmp_path, 'engine', b'plan', empty)
    other = biased(tmp_path / 'b', [0, 0, -1000, 0])

    def open_segmenter(bundle, backend, engine_file=None):
        if backend == 'tensorrt':
            assert engine_file == str(path)
            return Segmenter(other, 'onnxruntime')
        return Segmenter(bundle, backend)

    monkeypatch.setattr(engine_check, 'Segmenter', open_segmenter)
    card = check_engine(bundle, path, num_frames=2, repeats=10)
    assert card == read_card(path)
    assert dataclasses.replace(card, agreement=None, latency_ms=None) == dataclasses.replace(
        empty, engine_file=card.engine_file, engine_sha256=card.engine_sha256
    )
    assert card.agreement['which'] == 'synthetic rooms'
    assert card.agreement['equal_labels'] < 0.99
    assert 0 < card.latency_ms['p50'] <= card.latency_ms['p90'] <= card.latency_ms['p99']
    share = f'{100 * card.agreement["equal_labels"]:.2f} %'
    assert f'labels only {share} of the pixels of synthetic rooms' in caplog.text


@pytest.mark.parametrize('built', ['while it is measured', 'while the lock is awaited'])
def test_an_engine_that_is_built_meanwhile_keeps_its_own_card(
    tiny_bundle, tmp_path, monkeypatch, built
):
    """Another process builds it anew; what was measured is of the one before."""
    bundle = load_bundle(tiny_bundle)
    empty = EngineCard('tiny', '', 'tensorrt', '11.4.0', 'fp16', ('8.6',), 'GPU', ())
    path = write_engine(tmp_path, 'engine', b'plan', empty)

    def rebuild():
        write_engine(tmp_path, 'engine', b'another plan', empty)

    def open_segmenter(bundle, backend, engine_file=None):
        if backend == 'tensorrt' and built == 'while it is measured':
            rebuild()
        return Segmenter(bundle, 'onnxruntime')

    @contextmanager
    def build_lock(folder, wait):
        if built == 'while the lock is awaited':
            rebuild()
        yield

    monkeypatch.setattr(engine_check, 'Segmenter', open_segmenter)
    monkeypatch.setattr(engine_check, 'build_lock', build_lock)
    with pytest.raises(EngineError, match='was replaced while its engine was measured'):
        check_engine(bundle, path, num_frames=1, repeats=10)
    card = read_card(path)
    assert card.agreement is None
    assert read_plan(path, card) == b'another plan'


def test_without_a_gpu_the_card_stays(tiny_bundle, tmp_path):
    from rgbd_fusion_seg.engine.cuda import find_device

    try:
        find_device()
    except EngineError as error:
        reason = str(error)
    else:
        pytest.skip('there is a GPU here')
    empty = EngineCard('tiny', '', 'tensorrt', '11.4.0', 'fp16', ('8.6',), 'GPU', ())
    path = write_engine(tmp_path, 'engine', b'plan', empty)
    with pytest.raises(EngineError) as failed:
        check_engine(load_bundle(tiny_bundle), path, num_frames=1)
    assert reason in str(failed.value)
    assert read_card(path).agreement is None
