"""The training loop, in full view."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from rgbd_fusion_seg.palette import NYU40_CLASSES
from rgbd_fusion_seg.training.checkpoints import load_checkpoint, save_checkpoint
from rgbd_fusion_seg.training.config import DataConfig, OptimiserConfig, TrainConfig
from rgbd_fusion_seg.training.datasets.cache import CachedFrames, cached_frames
from rgbd_fusion_seg.training.datasets.nyudv2 import NyuDepthV2
from rgbd_fusion_seg.training.datasets.synthetic_rooms import HELD_OUT_SEED, SyntheticRooms
from rgbd_fusion_seg.training.evaluation import evaluate_network
from rgbd_fusion_seg.training.losses import class_weights, cross_entropy
from rgbd_fusion_seg.training.networks import build_network
from rgbd_fusion_seg.training.views import (
    Normaliser,
    TrainingBatches,
    batches,
    channel_statistics,
)

NUM_CLASSES = len(NYU40_CLASSES)
LOG_EVERY = 10


def prepare(config: DataConfig) -> dict[str, CachedFrames]:
    """Make or open the caches: 'train', 'test', and the synthetic ones where wanted."""
    folder = Path(config.cache)
    frames = {
        split: cached_frames(NyuDepthV2(Path(config.nyudv2), split), folder)
        for split in ('train', 'test')
    }
    if config.synthetic_frames:
        frames['synthetic'] = cached_frames(SyntheticRooms(config.synthetic_frames), folder)
    if config.synthetic_test_frames:
        rooms = SyntheticRooms(config.synthetic_test_frames, HELD_OUT_SEED)
        frames['synthetic_test'] = cached_frames(rooms, folder)
    return frames


def learning_rate(progress: float, config: OptimiserConfig) -> float:
    """Linear warm-up, then (1 - progress) ** power, for progress in 0..1."""
    if progress < config.warmup:
        return config.lr * max(progress / config.warmup, 1e-3)
    rest = (progress - config.warmup) / (1 - config.warmup)
    return config.lr * max(0.0, 1 - rest) ** config.power


def parameter_groups(network: nn.Module, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Weight decay on weights of convolutions only, not on norms and biases."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {'params': decayed, 'weight_decay': config.weight_decay},
        {'params': others, 'weight_decay': 0.0},
    ]


def ema_average(decay: float) -> Any:
    """Averaging rule that trusts the average more as it grows older."""

    def average(averaged: Tensor, current: Tensor, count: Tensor) -> Tensor:
        d = min(decay, (1 + int(count)) / (10 + int(count)))
        return averaged * d + current * (1 - d)

    return average


def train(config: TrainConfig) -> Path:
    """Train, score and save; continues the run whose folder holds a checkpoint.

    Returns:
        path of the last checkpoint (the averaged weights).

    Raises:
        InputError: data or checkpoint that cannot be used.
        FloatingPointError: the loss is not finite any more.
    """
    trainer = Trainer(config)
    trainer.fit()
    trainer.save()
    trainer.report('the end', 'scores.json')
    return trainer.checkpoint


class Trainer:
    """A run: the network, what trains it, and where it stands."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / 'last.safetensors'
        self.fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
        self.frames = prepare(config.data)
        self.steps_per_epoch = max(1, len(self.frames['train']) // config.batch_size)
        self.num_steps = config.epochs * self.steps_per_epoch

        torch.manual_seed(config.seed)
        network = build_network(config.network.name, NUM_CLASSES, **config.network.options)
        if config.init_from:
            network.load_state_dict(load_checkpoint(Path(config.init_from)).weights)
        # Channels last is the layout in which CPUs and tensor cores convolve fastest.
        network = network.to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(parameter_groups(network, config.optimiser))
        self.network, self.optimiser = self.fabric.setup(network, optimiser)
        self.averaged = AveragedModel(
            self.network.module, avg_fn=ema_average(config.optimiser.ema), use_buffers=False
        )
        device = self.fabric.device
        self.normalise = Normaliser(channel_statistics(self.frames['train'])).to(device)
        c = config.loss.class_weight
        weights = class_weights(self.frames['train'].labels, NUM_CLASSES, c)
        self.class_weights = None if weights is None else weights.to(device)

        self.state: dict[str, Any] = {
            'network': self.network,
            'optimiser': self.optimiser,
            'averaged': self.averaged,
            'step': 0,
            'seconds': 0.0,
        }
        if self._resume.is_file():
            self.fabric.load(self._resume, self.state)

    @property
    def _resume(self) -> Path:
        return self.folder / 'resume.ckpt'

    @property
    def progress(self) -> float:
        """Share of the run that is done, in steps or in minutes, whichever is further."""
        done = self.state['step'] / self.num_steps
        if self.config.max_minutes:
            done = max(done, self.state['seconds'] / (60 * self.config.max_minutes))
        return min(done, 1.0)

    def fit(self) -> None:
        """Take the steps that are left."""
        first, config = self.state['step'], self.config
        data = TrainingBatches(
            self.frames['train'], self.frames.get('synthetic'), config, first, self.num_steps
        )
        loader = self.fabric.setup_dataloaders(batches(data, config.data.workers))
        started, before, recent = time.monotonic(), self.state['seconds'], None
        with (
            (self.folder / 'log.jsonl').open('a') as log,
            tqdm(total=self.num_steps, initial=first, desc='train', unit='step') as bar,
        ):
            for batch in loader:
                if self.progress >= 1:
                    break
                lr = learning_rate(self.progress, config.optimiser)
                loss = self.step(batch, lr)
                recent = loss if recent is None else 0.98 * recent + 0.02 * loss
                self.state['seconds'] = before + time.monotonic() - started
                bar.update()
                if self.state['step'] % LOG_EVERY == 0:
                    bar.set_postfix(loss=f'{recent:.3f}', done=f'{self.progress:.0%}')
                    entry = {'step': self.state['step'], 'loss': round(recent, 5), 'lr': lr}
                    log.write(json.dumps(entry) + '\n')
                self._after_step()

    def step(self, batch: dict[str, Tensor], lr: float) -> float:
        """Take one optimisation step; returns its loss."""
        # Dropout then depends on the step alone, so a resumed run continues identically.
        torch.manual_seed(self.config.seed * 1_000_003 + self.state['step'])
        for group in self.optimiser.param_groups:
            group['lr'] = lr
        self.network.train()
        loss = training_loss(self.network, self.normalise, batch, self.class_weights, self.config)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(
            self.network, self.optimiser, max_norm=self.config.optimiser.clip_norm
        )
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.averaged.update_parameters(self.network.module)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f'the loss is {value} at step {self.state["step"]}; continue with a lower lr'
            )
        self.state['step'] += 1
        return value

    def _after_step(self) -> None:
        epoch, within = divmod(self.state['step'], self.steps_per_epoch)
        if within:
            return
        if self.config.save_every and epoch % self.config.save_every == 0:
            self.save()
        if self.config.evaluate_every and epoch % self.config.evaluate_every == 0:
            self.report(f'epoch {epoch}', f'scores-{epoch:04d}.json')

    def save(self) -> None:
        """Write the state to resume from, and the averaged weights."""
        self.fabric.save(self._resume, self.state)
        config = self.config
        info = {
            'network': config.network.name,
            'options': config.network.options,
            'statistics': self.normalise.statistics,
            'width': config.data.width,
            'height': config.data.height,
            'step': self.state['step'],
            'minutes': round(self.state['seconds'] / 60, 1),
        }
        save_checkpoint(self.checkpoint, averaged_network(self.averaged, self.network), info)

    def report(self, when: str, file_name: str) -> None:
        """Score the averaged weights on every test set: a line each, and a JSON file."""
        network, data = averaged_network(self.averaged, self.network), self.config.data
        results = {}
        for name in ('test', 'synthetic_test'):
            if name not in self.frames:
                continue
            results[name] = evaluate_network(
                network, self.normalise, self.frames[name], (data.width, data.height)
            )
            miou, accuracy = results[name]['mIoU'], results[name]['pixel_accuracy']
            tqdm.write(f'{name} at {when}: mIoU {miou:.4f}, pixel accuracy {accuracy:.4f}')
        (self.folder / file_name).write_text(json.dumps(results, indent=1))


def training_loss(
    network: nn.Module,
    normalise: Normaliser,
    batch: dict[str, Tensor],
    weights: Tensor | None,
    config: TrainConfig,
) -> Tensor:
    """Loss of the fused prediction, plus those of the encoders' own where there are any."""
    inputs = normalise(batch)
    labels = batch['labels'].long()
    height, width = labels.shape[1:]
    s = config.loss.stride
    if not config.loss.auxiliary:
        return cross_entropy(network(inputs), labels, weights, (height // s, width // s))
    fused, *others = network(inputs, auxiliary=True)
    loss = cross_entropy(fused, labels, weights, (height // s, width // s))
    for logits in others:
        # Their own resolution is enough for a hint to the encoders, and costs little.
        loss = loss + config.loss.auxiliary * cross_entropy(
            logits, labels, weights, tuple(logits.shape[2:])
        )
    return loss


def averaged_network(averaged: AveragedModel, network: Any) -> nn.Module:
    """Return a copy with the averaged weights and the running statistics of training."""
    result = copy.deepcopy(averaged.module)
    current = dict(network.module.named_buffers())
    for name, buffer in result.named_buffers():
        buffer.copy_(current[name])
    return result.eval()
