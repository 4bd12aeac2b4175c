"""Two processes under torchrun against one: the same views, steps and scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training.checkpoints import load_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig  # noqa: E402
from rgbd_fusion_seg.training.datasets.prepare import prepare_frames  # noqa: E402
from rgbd_fusion_seg.training.evaluation import evaluate_network  # noqa: E402
from rgbd_fusion_seg.training.inputs import Normaliser  # noqa: E402

SCRIPT = """
import sys
from jsonargparse import CLI
from rgbd_fusion_seg.training import trainer

def frozen(self, config, make=trainer.Trainer.__init__):
    make(self, config)
    # Batch statistics are each process's own on a CPU; with frozen ones the runs must be equal.
    self.network.eval()
    self.network.train = lambda mode=True: self.network

if sys.argv.pop(1) == 'frozen':
    trainer.Trainer.__init__ = frozen
CLI(trainer.train, as_positional=False)
"""


def train(tmp_path: Path, nyu_pack: Path, norms: str, processes: int) -> Path:
    script = tmp_path / 'train.py'
    script.write_text(SCRIPT)
    output = tmp_path / f'run{processes}'
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
    command = [
        sys.executable, *(torchrun if processes > 1 else []), str(script), norms,
        '--run.output', str(output), '--run.batch_size', '4', '--run.epochs', '3',
        '--run.precision', '32-true', '--run.accelerator', 'cpu',
        '--run.data.dataset.folder', str(nyu_pack), '--run.data.cache', str(tmp_path / 'cache'),
        '--run.data.width', '64', '--run.data.height', '48', '--run.data.workers', '0',
        '--run.data.synthetic_frames', '0', '--run.data.synthetic_test_frames', '0',
        '--run.network.options', '{"dropout": [0, 0]}',
    ]  # fmt: skip
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-20000:]
    return output


def test_two_processes_train_as_one_does(tmp_path, nyu_pack):
    one, two = (train(tmp_path, nyu_pack, 'frozen', n) for n in (1, 2))
    ours, theirs = (load_checkpoint(run / 'last.safetensors') for run in (two, one))
    assert ours.info['step'] == theirs.info['step'] == 3
    for name, value in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], value, rtol=1e-3, atol=1e-5, msg=name)
    scores = [json.loads((run / 'scores.json').read_text())['test'] for run in (one, two)]
    assert scores[0]['pixel_accuracy'] == pytest.approx(scores[1]['pixel_accuracy'], abs=2e-3)


def test_what_is_published_are_the_scores_of_what_is_saved(tmp_path, nyu_pack):
    """Norms are live here, and the running statistics of each process its own."""
    output = train(tmp_path, nyu_pack, 'live', 2)
    data = DataConfig(
        DatasetConfig(folder=str(nyu_pack)), cache=str(tmp_path / 'cache'), width=64, height=48,
        synthetic_frames=0, synthetic_test_frames=0,
    )  # fmt: skip
    checkpoint = load_checkpoint(output / 'last.safetensors')
    network = checkpoint.build()
    height, width = network.hha_size(48, 64)
    frames = prepare_frames(data, [(width, height), (2 * width, 2 * height)])['test']
    normalise = Normaliser(checkpoint.info['statistics'])
    ours = evaluate_network(network, normalise, frames, (64, 48))
    scores = json.loads((output / 'scores.json').read_text())['test']
    assert ours['pixel_accuracy'] == scores['pixel_accuracy']
    assert ours['mIoU'] == scores['mIoU']
