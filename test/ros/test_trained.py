"""Every network, small, from labelled frames to masks of the node: the whole way a user goes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
torch = pytest.importorskip('torch', reason='training needs torch (pip install .[train])')

from ros_harness import labelling_node  # noqa: E402
from tiny_checkpoints import small_options  # noqa: E402

from rgbd_fusion_seg.bundle import load_bundle  # noqa: E402
from rgbd_fusion_seg.segmenter import Segmenter  # noqa: E402
from rgbd_fusion_seg.training import trainer  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import load_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import (  # noqa: E402
    DataConfig,
    DatasetConfig,
    NetworkConfig,
    OptimiserConfig,
    TrainConfig,
)
from rgbd_fusion_seg.training.evaluation import evaluate  # noqa: E402
from rgbd_fusion_seg.training.export import export  # noqa: E402
from rgbd_fusion_seg.training.networks import NETWORKS  # noqa: E402


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('cache')


def configuration(network: str, pack: Path, cache: Path, output: Path) -> TrainConfig:
    data = DataConfig(
        dataset=DatasetConfig(folder=str(pack)), synthetic_frames=0, synthetic_test_frames=0,
        cache=str(cache), width=96, height=64, workers=0,
    )  # fmt: skip
    return TrainConfig(
        output=str(output), batch_size=2, epochs=1, precision='32-true', accelerator='cpu',
        data=data, network=NetworkConfig(network, dict(small_options(network))),
        optimiser=OptimiserConfig(lr=3e-3, warmup=0, schedule='constant', ema=0.5),
    )  # fmt: skip


@pytest.mark.parametrize('network', NETWORKS)
def test_a_network_goes_all_the_way(network, nyu_pack, cache, tmp_path, ros_context):
    config = configuration(network, nyu_pack, cache, tmp_path / 'run')
    trainer.train(config)
    config.epochs = 2
    trainer.train(config)  # the run goes on where it was
    checkpoint = tmp_path / 'run' / 'last.safetensors'
    assert load_checkpoint(checkpoint).info['step'] == 6
    if network == 'cen':
        trained = load_checkpoint(checkpoint).build()
        monitored = trained.monitored()
        assert all(0.2 < monitored[f'exchanged_{m}'] < 0.9 for m in trained.modalities)

    evaluate(checkpoint, config.data, tmp_path / 'scored', boundary=False, pictures=0)
    scored = json.loads((tmp_path / 'scored' / 'scores.json').read_text())
    export(checkpoint, tmp_path / 'bundle', config.data, frames=2)
    card = load_bundle(tmp_path / 'bundle').card
    assert card['metrics']['agreement']['labels_equal_to_torch'] >= 0.999
    # What ships is scored as the checkpoint is, but for rounding and the pixels of a tie.
    ours = card['metrics']['nyudv2_test']['pixel_accuracy']
    theirs = next(iter(scored['sets'].values()))['pixel_accuracy']
    assert ours == pytest.approx(theirs, abs=0.005)

    parameters = {'engine.bundle': tmp_path / 'bundle'}
    with (
        labelling_node(ros_context, network, parameters) as (_, frame, mask),
        Segmenter(tmp_path / 'bundle') as segmenter,
    ):
        np.testing.assert_array_equal(mask, segmenter.segment(frame).labels)
        assert mask.max() < 40


@pytest.mark.parametrize('network', NETWORKS)
def test_a_network_learns_one_batch_by_heart(network, nyu_pack, cache, tmp_path):
    config = configuration(network, nyu_pack, cache, tmp_path / 'run')
    if network.endswith('adapnetpp'):  # the public code's norm on the logits keeps losses high
        config.network.options['logits_norm'] = False
    run = trainer.Trainer(config)
    batch = next(iter(run.views().batches(0, 1)))
    losses = [float(run.step(batch)['loss']) for _ in range(40)]
    assert min(losses[-5:]) < 0.5 * losses[0]
