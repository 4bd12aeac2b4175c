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
    """Train, evaluate and save; continues a run whose folder holds a checkpoint.

    Returns:
        path of the last checkpoint (weights and buffers of the moving average).
    """
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    fabric.seed_everything(config.seed, verbose=False)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    frames = prepare(config.data)
    steps = config.epochs * len(frames['train']) // config.batch_size
    per_epoch = max(1, len(frames['train']) // config.batch_size)
    weights = class_weights(frames['train'].labels, NUM_CLASSES, config.loss.class_weight)
    if weights is not None:
        weights = weights.to(fabric.device)

    network = build_network(config.network.name, NUM_CLASSES, **config.network.options)
    if config.init_from:
        network.load_state_dict(load_checkpoint(Path(config.init_from)).weights)
    network = network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(parameter_groups(network, config.optimiser))
    network, optimiser = fabric.setup(network, optimiser)
    averaged = AveragedModel(
        network.module, avg_fn=ema_average(config.optimiser.ema), use_buffers=False
    )
    normalise = Normaliser(channel_statistics(frames['train'])).to(fabric.device)

    state: dict[str, Any] = {
        'network': network, 'optimiser': optimiser, 'averaged': averaged,
        'step': 0, 'seconds': 0.0,
    }  # fmt: skip
    resume = folder / 'resume.ckpt'
    if resume.is_file():
        fabric.load(resume, state)
        fabric.print(f'continuing {folder} at step {state["step"]} of {steps}')

    def save(progress: float) -> None:
        fabric.save(resume, state)
        info = {
            'network': config.network.name, 'options': config.network.options,
            'statistics': normalise.statistics, 'progress': round(progress, 4),
            'width': config.data.width, 'height': config.data.height,
            'step': state['step'], 'minutes': round(state['seconds'] / 60, 1),
        }  # fmt: skip
        save_checkpoint(folder / 'last.safetensors', averaged_network(averaged, network), info)

    loader = batches(
        TrainingBatches(frames['train'], frames.get('synthetic'), config, state['step'], steps),
        config.data.workers,
    )
    loader = fabric.setup_dataloaders(loader)
    log = (folder / 'log.jsonl').open('a')
    bar = tqdm(total=steps, initial=state['step'], desc='train', unit='step', smoothing=0.05)
    started, before = time.monotonic(), state['seconds']
    recent, progress = float('nan'), 0.0
    for batch in loader:
        progress = state['step'] / steps
        if config.max_minutes:
            progress = max(progress, state['seconds'] / (60 * config.max_minutes))
        if progress >= 1:
            break
        network.train()
        lr = learning_rate(progress, config.optimiser)
        for group in optimiser.param_groups:
            group['lr'] = lr
        loss = training_loss(network, normalise, batch, weights, config)
        fabric.backward(loss)
        fabric.clip_gradients(network, optimiser, max_norm=config.optimiser.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        averaged.update_parameters(network.module)

        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f'the loss is {value} at step {state["step"]}; lower lr')
        recent = value if math.isnan(recent) else 0.98 * recent + 0.02 * value
        state['step'] += 1
        state['seconds'] = before + time.monotonic() - started
        bar.update()
        if state['step'] % 10 == 0:
            bar.set_postfix(loss=f'{recent:.3f}', lr=f'{lr:.1e}', done=f'{100 * progress:.0f}%')
            log.write(json.dumps({'step': state['step'], 'loss': recent, 'lr': lr}) + '\n')
        epoch, within = divmod(state['step'], per_epoch)
        if within == 0 and config.save_every and epoch % config.save_every == 0:
            save(progress)
            log.flush()
        if within == 0 and config.evaluate_every and epoch % config.evaluate_every == 0:
            report(averaged_network(averaged, network), normalise, frames, folder, epoch)
    bar.close()
    log.close()
    save(1.0)
    report(averaged_network(averaged, network), normalise, frames, folder, None)
    return folder / 'last.safetensors'


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


def report(
    network: nn.Module,
    normalise: Normaliser,
    frames: dict[str, CachedFrames],
    folder: Path,
    epoch: int | None,
) -> None:
    """Score on every test set; prints a line each and writes scores*.json."""
    results = {}
    for name in ('test', 'synthetic_test'):
        if name in frames:
            results[name] = evaluate_network(network, normalise, frames[name])
            line = ', '.join(
                f'{k} {100 * results[name][k]:.2f}' for k in ('mIoU', 'pixel_accuracy')
            )
            tqdm.write(f'{name} at epoch {epoch if epoch is not None else "end"}: {line}')
    suffix = '' if epoch is None else f'-{epoch:04d}'
    (folder / f'scores{suffix}.json').write_text(json.dumps(results, indent=1))
