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
from jsonargparse import CLI
from rgbd_fusion_seg.training import loop, trainer

loop.LOG_EVERY = 1
CLI(trainer.train, as_positional=False)
"""
DROP_NOTHING = ('--run.network.options', '{"dropout": [0, 0]}')
SHARED_NORMS = (
    '--run.network.name', 'multimodal', '--run.network.options',
    '{"backbone": "resnet14", "head_options": {"width": 8, "dropout": 0}, "share_norms": true}',
)  # fmt: skip


def train(tmp_path: Path, nyu_pack: Path, processes: int, *arguments: str) -> Path:
    script = tmp_path / 'train.py'
    script.write_text(SCRIPT)
    output = tmp_path / f'run{processes}'
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
    command = [
        sys.executable, *(torchrun if processes > 1 else []), str(script),
        '--run.output', str(output), '--run.batch_size', '4', '--run.epochs', '3',
        '--run.precision', '32-true', '--run.accelerator', 'cpu',
        '--run.data.dataset.folder', str(nyu_pack), '--run.data.cache', str(tmp_path / 'cache'),
        '--run.data.width', '64', '--run.data.height', '48', '--run.data.workers', '0',
        '--run.data.synthetic_frames', '0', '--run.data.synthetic_test_frames', '0',
        # Adam makes whole steps of what rounding leaves of gradients that are nought.
        '--run.optimiser.name', 'sgd', '--run.optimiser.lr', '0.01',
        *(arguments or DROP_NOTHING),
    ]  # fmt: skip
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-20000:]
    return output


@pytest.mark.parametrize('arguments', [DROP_NOTHING, SHARED_NORMS])
def test_two_processes_train_as_one_does(tmp_path, nyu_pack, arguments):
    """Norms see the whole batch, so nothing tells the runs apart but the order of sums.

    Where that moves a value across a ReLU's bend or to another maximum, gradients differ by some
    thousandths, as those of one process in another layout of memory do.
    """
    one, two = (train(tmp_path, nyu_pack, n, *arguments) for n in (1, 2))
    losses = [
        [json.loads(line)['loss'] for line in (run / 'log.jsonl').read_text().splitlines()]
        for run in (one, two)
    ]
    assert len(losses[0]) == 3
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    ours, theirs = (load_checkpoint(run / 'last.safetensors') for run in (two, one))
    assert ours.info['step'] == theirs.info['step'] == 3
    for name, value in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], value, rtol=1e-2, atol=2e-3, msg=name)
    scores = [json.loads((run / 'scores.json').read_text())['test'] for run in (one, two)]
    for name in ('pixel_accuracy', 'mIoU'):
        assert scores[0][name] == pytest.approx(scores[1][name], abs=5e-3), name


def test_what_is_published_are_the_scores_of_what_is_saved(tmp_path, nyu_pack):
    output = train(tmp_path, nyu_pack, 2)
    data = DataConfig(
        DatasetConfig(folder=str(nyu_pack)), cache=str(tmp_path / 'cache'), width=64, height=48,
        synthetic_frames=0, synthetic_test_frames=0,
    )  # fmt: skip
    checkpoint = load_checkpoint(output / 'last.safetensors')
    network = checkpoint.build()
    frames = prepare_frames(data, network)['test']
    normalise = Normaliser(checkpoint.info['statistics'])
    ours = evaluate_network(network, normalise, frames, (64, 48))
    scores = json.loads((output / 'scores.json').read_text())['test']
    assert ours['pixel_accuracy'] == scores['pixel_accuracy']
    assert ours['mIoU'] == scores['mIoU']


LEAVING = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from rgbd_fusion_seg.training.processes import leave_group

rank, folder = int(sys.argv[1]), sys.argv[2]
for k in range(40):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/group{k}', rank=rank, world_size=2
    )
    network = DistributedDataParallel(torch.nn.Conv2d(3, 8, 3))
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    torch.distributed.barrier()
    leave_group(torch.nn.Sequential(network))
    del network
"""


def test_processes_leave_their_group_and_end(tmp_path):
    """Else one of a few such ends waits for ever, for a thread that waits for it."""
    script = tmp_path / 'leave.py'
    script.write_text(LEAVING)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
    processes = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
