"""The training loop, in full view."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rgbd_fusion_seg.bundle import sensor_of
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import SENSORS
from rgbd_fusion_seg.training.checkpoints import (
    class_entries,
    command_line,
    make_folder,
    save_checkpoint,
    write_text,
)
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.continuation import (
    PrecisionState,
    check_same_data,
    described_run,
    saved_run,
)
from rgbd_fusion_seg.training.cpu_norms import synchronise_norms_on_cpus
from rgbd_fusion_seg.training.datasets import open_dataset
from rgbd_fusion_seg.training.datasets.prepare import depth_fault, prepare_frames
from rgbd_fusion_seg.training.evaluation import evaluate_network, predicted_labels
from rgbd_fusion_seg.training.initialisation import (
    NO_FILES,
    first_statistics,
    make_network,
    origins,
    starts,
)
from rgbd_fusion_seg.training.inputs import Normaliser, channel_statistics, given_statistics
from rgbd_fusion_seg.training.loop import TrainingLoop
from rgbd_fusion_seg.training.losses import class_weights, cross_entropy
from rgbd_fusion_seg.training.monitor import Monitor
from rgbd_fusion_seg.training.networks.branches import synchronise_norms
from rgbd_fusion_seg.training.optimiser import (
    WeightAverage,
    build_optimiser,
    set_learning_rates,
)
from rgbd_fusion_seg.training.processes import make_fabric
from rgbd_fusion_seg.training.run_checks import check_frozen, check_network
from rgbd_fusion_seg.training.run_lock import only_trainer
from rgbd_fusion_seg.training.views import TrainingViews

TEST_SETS = ('test', 'synthetic_test', 'stereo_test')


def train(run: TrainConfig) -> None:
    """Train a network; a run that was stopped goes on where it was.

    Writes into the run's folder: last.safetensors (averaged weights, what is exported),
    best.safetensors (of the evaluations on the way), resume.ckpt, scores.json, log.jsonl and
    TensorBoard events. Under `torchrun` the batch is spread over its processes.

    Raises:
        InputError: data, settings or a checkpoint that cannot be used, or another process that
            trains into the folder.
        DivergenceError: the loss is not finite any more.
        TrainingError: the disk is full.
    """
    with only_trainer(Path(run.output)):
        Trainer(run).run()


class Trainer(TrainingLoop):
    """A run: the network, what trains it, and where it stands."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = Path(config.output)
        check_frozen(config)
        self.fabric = make_fabric(config)
        before = saved_run(self.folder, config, self.fabric)
        source = open_dataset(config.data.dataset, 'train')
        self.classes = source.classes
        network, statistics = self._start(before)
        # The first process builds what is missing, the others find it ready.
        with self.fabric.rank_zero_first():
            self.frames = prepare_frames(config.data, network)
        sees_depth = {'hha', 'depth'} & {*network.modalities}
        if sees_depth and (fault := depth_fault(self.frames['train'])):
            raise InputError(fault)
        statistics = channel_statistics(self.frames['train']) | statistics
        statistics |= given_statistics(config.data.statistics)
        statistics = {name: statistics[name] for name in network.modalities}
        sets = list(self.frames.values())
        self.described = described_run(config, self.classes.names, sets, self.origins, statistics)
        if before is not None:
            check_same_data(self.folder, before, self.described)
        make_folder(self.folder)
        # Synthetic views come on top, so an epoch with them is longer.
        real = 1 - (config.data.synthetic_share if 'synthetic' in self.frames else 0)
        self.steps_per_epoch = max(1, int(len(self.frames['train']) / (config.batch_size * real)))
        self.num_steps = config.epochs * self.steps_per_epoch
        self._set_up(network)
        device = self.fabric.device
        self.normalise = Normaliser(statistics).to(device)
        weights = class_weights(self.frames['train'].class_pixels, config.loss.class_weight)
        self.class_weights = None if weights is None else weights.to(device)
        self.resume()

    def _start(self, before: dict[str, Any] | None) -> tuple[nn.Module, dict[str, Any]]:
        """Return the network and, where they are settled, the statistics of its inputs.

        Args:
            before: what the state of a run that is continued tells, which has its own weights.
        """
        config, classes = self.config, self.classes.names
        torch.manual_seed(config.seed)
        if before is not None:
            bare = dataclasses.replace(config.network, **NO_FILES)
            network = make_network(bare, classes, [])
            check_network(network, config)
            self.origins = before['origins']
            return network, before['statistics']
        begun = starts(config.network)
        network = make_network(config.network, classes, begun)
        check_network(network, config)
        self.origins = origins(config.network, begun, classes)
        for origin in self.origins:
            if 'classes_taken' in origin:
                self.fabric.print(
                    f'{origin["file"]} knows {origin["classes_taken"]} of the '
                    f'{len(self.classes)} classes by name; the layers of the others begin anew'
                )
        return network, first_statistics(config.network, begun, network)

    def _set_up(self, network: nn.Module) -> None:
        """Bring a network and what trains it to the device, as the first state of a run."""
        config, on_gpus = self.config, self.fabric.device.type == 'cuda'
        if self.fabric.world_size > 1:
            network = (synchronise_norms if on_gpus else synchronise_norms_on_cpus)(network)
        # Channels last is the layout in which CPUs and tensor cores convolve fastest.
        network = network.to(memory_format=torch.channels_last)
        # On a GPU one task updates all parameters; a loss scaler cannot do with it, though.
        fused = on_gpus and config.precision != '16-mixed'
        optimiser = build_optimiser(network, config.optimiser, fused)
        self.network, self.optimiser = self.fabric.setup(network, optimiser)
        # A new module says that it trains without having been told, which is what freezes the
        # norms and experts that are to stay in evaluation mode.
        self.network.train()
        self.average = WeightAverage(self.network.module, config.optimiser.ema)
        self.state: dict[str, Any] = {
            'network': self.network,
            'optimiser': self.optimiser,
            'average': self.average,
            'precision': PrecisionState(self.fabric.strategy.precision),
            'step': 0,
            'seconds': 0.0,
            'best': 0.0,
        }

    def batches(self, first_step: int, num_steps: int) -> Iterator[dict[str, Tensor]]:
        """Yield this process's views."""
        yield from self.views().batches(first_step, num_steps)

    def numbers(self) -> dict[str, float]:
        """Return the learning rate and what the network tells of itself."""
        return {'lr': self.optimiser.param_groups[0]['lr'], **self.network.module.monitored()}

    def finish(self, monitor: Monitor) -> None:
        """Score the result; a longer run must know what it has to beat."""
        best = self.state['best']
        super().finish(monitor)
        if self.state['best'] > best:
            self.save()

    def views(self) -> TrainingViews:
        """Return this process's share of the training views."""
        fabric, data = self.fabric, self.config.data
        sizes = self.network.module.input_sizes(data.height, data.width)
        return TrainingViews(
            self.frames, self.config, sizes, fabric.device, fabric.global_rank, fabric.world_size
        )  # fmt: skip

    def step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one optimisation step; returns its 'loss', a scalar on the device."""
        self.seed_step()
        set_learning_rates(self.optimiser, self.progress, self.config.optimiser)
        loss = self.loss(batch)
        self.fabric.backward(loss)
        if self.state['step'] == 0:
            self._check_gradients()
        if self.config.optimiser.clip_norm:
            self.fabric.clip_gradients(
                self.network, self.optimiser, max_norm=self.config.optimiser.clip_norm,
                error_if_nonfinite=False,
            )  # fmt: skip
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.update(self.state['step'])
        self.state['step'] += 1
        return {'loss': loss.detach()}

    def _check_gradients(self) -> None:
        """Refuse a loss that reaches no weight of a convolution, only scales or an ensemble."""
        weights = [p for p in self.network.module.parameters() if p.ndim > 1]
        if all(p.grad is None for p in weights):
            raise InputError(
                f'nothing trains the convolutions of {self.config.network.name}: its ensemble is '
                'detached from the branches and loss.auxiliary is 0; give loss.auxiliary 1, or '
                'the network option detach_branches: false'
            )

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch, a scalar: the predictions' and the network's own terms."""
        inputs, labels = self.normalise(batch), batch['labels']
        config, network = self.config.loss, self.network
        height, width = labels.shape[1:]
        size = (height // config.stride, width // config.stride)
        weights = [w * config.auxiliary for w in network.module.auxiliary_weights]
        try:
            outputs = network(inputs, auxiliary=True)
        except ValueError as error:  # of norms of what was averaged over a whole view
            if 'more than 1 value per channel' not in str(error):
                raise
            raise InputError(
                f'{self.config.network.name} has norms over the views of a batch and cannot be '
                'trained with one view a process; give batch_size 2 or more for each'
            ) from error
        main, others = outputs[0], outputs[1 : 1 + len(weights)]
        further = outputs[1 + len(weights) :]
        factors, parts = [1.0], [cross_entropy(main, labels, self.class_weights, size)]
        for weight, logits in zip(weights, others, strict=True):
            if weight:
                # Their own resolution is enough for a hint, and costs little.
                own = [min(a, b) for a, b in zip(size, logits.shape[2:], strict=True)]
                compared = size if network.module.auxiliary_at_full_size else own
                factors.append(weight)
                parts.append(cross_entropy(logits, labels, self.class_weights, compared))
        counts = torch.stack([c for _, c in parts])
        if self.fabric.world_size > 1:
            # The processes' gradients are averaged, so each divides by the mean count.
            counts = self.fabric.all_reduce(counts, reduce_op='mean')
        counts = counts.clamp(min=1e-12).unbind()
        # Factors stay numbers: to make a tensor of them on a GPU would wait for it.
        terms = zip(factors, parts, counts, strict=True)
        return torch.stack([*(f * (total / n) for f, (total, _), n in terms), *further]).sum()

    def saved_network(self) -> nn.Module:
        """Return a copy of the network with the averaged weights, in evaluation mode."""
        return self.average.network(self.network.module)

    def info(self) -> dict[str, Any]:
        """Return what a checkpoint tells of the run."""
        config = self.config
        used = [frames for name, frames in self.frames.items() if name not in TEST_SETS]
        return {
            'network': config.network.name,
            'options': config.network.options,
            'classes': class_entries(self.classes),
            'statistics': self.normalise.statistics,
            'width': config.data.width,
            'height': config.data.height,
            'step': self.state['step'],
            'minutes': round(self.state['seconds'] / 60, 1),
            'command': command_line(),
            'started_from': self.origins,
            'data': [{'name': f.name, 'frames': len(f), 'terms': f.terms} for f in used],
            'depth_range_m': list(self.frames['train'].depth_range_m),
            'copes_without': self._copes_without(),
        }

    def _copes_without(self) -> list[str]:
        """Return the sensors that the network sees and has learnt to do without."""
        lost = {'rgb': self.config.augment.drop_rgb, 'depth': self.config.augment.drop_hha}
        seen = {sensor_of(name) for name in self.normalise.statistics}
        return [sensor for sensor in SENSORS if len(seen) > 1 and lost[sensor] > 0]

    def evaluate(self, file_name: str, monitor: Monitor) -> None:
        """Score the averaged weights on every test set, and keep them if they are the best."""
        network, data = self.saved_network(), self.config.data
        step, results = self.state['step'], {}
        for name in TEST_SETS:
            if name not in self.frames:
                continue
            frames, size = self.frames[name], (data.width, data.height)
            results[name] = evaluate_network(network, self.normalise, frames, size, self.fabric)
            monitor.scores(step, name, results[name])
            pictures = predicted_labels(network, self.normalise, frames, size, range(3))
            monitor.overlays(step, name, pictures, self.classes.colors)
        score = results['test']['mIoU']
        if score > self.state['best']:
            self.state['best'] = score
            if self.fabric.is_global_zero:
                save_checkpoint(self.folder / 'best.safetensors', network, self.info())
        if self.fabric.is_global_zero:  # last: where these are, the rest is complete
            text = json.dumps({'step': step, **results}, indent=1)
            write_text(self.folder / file_name, text)
