"""Training of translators against discriminators, in full view."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.errors import DivergenceError
from rgbd_fusion_seg.training.checkpoints import (
    check_writable,
    make_folder,
    save_checkpoint,
    write_output,
)
from rgbd_fusion_seg.training.continuation import (
    SETTINGS_NAME,
    STATE_NAME,
    WEIGHTS_NAME,
    PrecisionState,
    load_state,
    saved_run,
)
from rgbd_fusion_seg.training.monitor import Monitor
from rgbd_fusion_seg.training.processes import make_fabric
from rgbd_fusion_seg.training.stopping import Clock, StopSignal
from rgbd_fusion_seg.training.translation.checkpoint import described, make_translator
from rgbd_fusion_seg.training.translation.config import TranslationConfig
from rgbd_fusion_seg.training.translation.discriminator import PatchDiscriminator, realness_loss
from rgbd_fusion_seg.training.translation.evaluation import picture_row, score_translator
from rgbd_fusion_seg.training.translation.generator import Translation, Translator
from rgbd_fusion_seg.training.translation.prepared import PreparedImages, prepared_images
from rgbd_fusion_seg.training.translation.sources import open_images
from rgbd_fusion_seg.training.translation.views import TranslationViews

LOG_EVERY = 10
PICTURES = 3
START = 'init_from'
FREE_TO_CHANGE = frozenset({
    'output', 'epochs', 'max_minutes', 'evaluate_every', 'save_minutes', 'precision',
    'accelerator', 'images.cache', 'images.workers', 'images.dataset.folder',
})  # fmt: skip
"""Settings that a run may be continued with other values of."""


def train_translation(run: TranslationConfig) -> None:
    """Train a translator between image domains; a run that was stopped goes on where it was.

    Writes into the run's folder: last.safetensors (the generator), resume.ckpt, scores.json,
    log.jsonl and TensorBoard events. Under `torchrun` the batch is spread over its processes.

    Raises:
        InputError: images, settings or a checkpoint that cannot be used.
        DivergenceError: the loss is not finite any more.
        TrainingError: the disk is full.
    """
    trainer = TranslationTrainer(run)
    if trainer.fit():
        trainer.fabric.print(f'written to {trainer.folder}')
    if torch.distributed.is_initialized():
        trainer.fabric.barrier()
        torch.distributed.destroy_process_group()


class Discriminators(nn.Module):
    """One for each target, for all of its streams.

    Args:
        translator: whose images are judged.
        width: see `PatchDiscriminator`.
    """

    def __init__(self, translator: Translator, width: int) -> None:
        super().__init__()
        self.streams = translator.streams
        self.judges = nn.ModuleDict({t: PatchDiscriminator(width) for t in translator.targets})

    def forward(self, given: dict[str, Tensor], images: list[Tensor]) -> list[Tensor]:
        """Judge an image of each stream, given all domains: logits (N, 1, h, w) of each."""
        pairs = zip(self.streams, images, strict=True)
        return [self.judges[s.target](given[s.input], image) for s, image in pairs]


class TranslationTrainer:
    """A run: generator, discriminators, and where it stands."""

    def __init__(self, config: TranslationConfig) -> None:
        self.config, self.folder = config, Path(config.output)
        check_writable(self.folder)
        self.fabric = make_fabric(config)
        before = saved_run(self.folder, config, self.fabric, FREE_TO_CHANGE, START)
        torch.manual_seed(config.seed)
        fresh = config if before is None else dataclasses.replace(config, init_from='')
        translator = make_translator(fresh)
        self.images = self._prepare()
        make_folder(self.folder)
        self.steps_per_epoch = max(1, len(self.images['train']) // config.batch_size)
        self.num_steps = config.epochs * self.steps_per_epoch
        discriminators = Discriminators(translator, config.discriminator_width)
        adam = {'lr': config.lr, 'betas': (config.beta1, config.beta2)}
        self.generator, self.optimiser = self.fabric.setup(
            translator, torch.optim.Adam(translator.parameters(), **adam)
        )
        self.discriminators, self.judging = self.fabric.setup(
            discriminators, torch.optim.Adam(discriminators.parameters(), **adam)
        )
        self.state: dict[str, Any] = {
            'network': self.generator,
            'optimiser': self.optimiser,
            'discriminators': self.discriminators,
            'judging': self.judging,
            'precision': PrecisionState(self.fabric.strategy.precision),
            'step': 0,
            'seconds': 0.0,
        }
        self._resume()

    @property
    def translator(self) -> Translator:
        """The generator itself."""
        return self.generator.module

    def _prepare(self) -> dict[str, PreparedImages]:
        """Open the images of both splits: larger ones to cut training views out of."""
        settings = self.config.images
        names = sorted({*self.config.inputs, *self.config.targets})
        sides = {'train': settings.load_side, 'test': settings.side}
        # The first process builds what is missing, the others find it ready.
        with self.fabric.rank_zero_first():
            return {
                split: prepared_images(
                    open_images(settings.dataset, split), names, side, Path(settings.cache)
                )
                for split, side in sides.items()
            }

    def _resume(self) -> None:
        path = self.folder / STATE_NAME
        if path.is_file():
            load_state(self.fabric, path, self.state, START)
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            text = json.dumps(dataclasses.asdict(self.config), indent=1)
            saved = self.folder / SETTINGS_NAME
            write_output(saved, lambda part: part.write_text(text, encoding='utf-8'))

    @property
    def progress(self) -> float:
        """Share of the run that is done, in steps or in minutes, whichever is further."""
        done = self.state['step'] / self.num_steps
        if self.config.max_minutes:
            done = max(done, self.state['seconds'] / (60 * self.config.max_minutes))
        return min(done, 1.0)

    def fit(self) -> bool:
        """Take the steps that are left, save, and score the result.

        Returns:
            False when a signal ended the run early; the state was saved then.
        """
        speaks = self.fabric.is_global_zero
        with Monitor(self.folder, self.state['step'], self.num_steps, speaks) as monitor:
            finished = self._take_steps(monitor)
            self.save()
            if finished:
                self.evaluate('scores.json', monitor)
            else:
                monitor.say(f'stopped and saved at step {self.state["step"]}; start the same '
                            'command again to go on')  # fmt: skip
        return finished

    def _take_steps(self, monitor: Monitor) -> bool:
        fabric, first = self.fabric, self.state['step']
        clock = Clock(self.state['seconds'])
        views = TranslationViews(
            self.images['train'], self.config, fabric.global_rank, fabric.world_size
        )
        with StopSignal(fabric.is_global_zero) as stop:
            for batch in views.batches(first, self.num_steps - first):
                if self.progress >= 1:
                    break
                losses = self.step({name: x.to(fabric.device) for name, x in batch.items()})
                monitor.step()
                if self.state['step'] % LOG_EVERY == 0:
                    self._look(losses, clock, monitor)
                    self._save_when_due(clock, monitor)
                    if self._agree(stop.received):
                        return False
        return True

    def step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Train the discriminators, then the generator, on one batch.

        Args:
            batch: float (n, 3, H, W), -1 to 1, of every domain, on the device.

        Returns:
            losses by name, without dimensions.
        """
        config = self.config
        # Dropout then depends on the step alone, so a resumed run continues identically.
        seed = config.seed * 1_000_003 + self.state['step']
        torch.manual_seed(seed * self.fabric.world_size + self.fabric.global_rank)
        self._set_rates()
        self.generator.train()
        made = self.generator(batch)
        losses = {}
        if config.adversarial:
            losses['discriminators'] = self._train_discriminators(batch, made)
        losses |= self.generator_losses(batch, made)
        self.fabric.backward(sum(losses[k] for k in losses if k != 'discriminators'))
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.state['step'] += 1
        return {name: value.detach() for name, value in losses.items()}

    def _train_discriminators(self, batch: dict[str, Tensor], made: Translation) -> Tensor:
        """Take a step of the discriminators; each counts real and made images by halves.

        The ensemble is shown to none, as in the public code.
        """
        real = [batch[stream.target] for stream in self.translator.streams]
        twice = {name: torch.cat([x, x]) for name, x in batch.items()}
        pairs = zip(real, made.streams, strict=True)
        judged = self.discriminators(twice, [torch.cat([a, b.detach()]) for a, b in pairs])
        loss = torch.stack([
            (realness_loss(a, real=True) + realness_loss(b, real=False)) / 2
            for a, b in (logits.chunk(2) for logits in judged)
        ]).sum()  # fmt: skip
        self.fabric.backward(loss)
        self.judging.step()
        self.judging.zero_grad()
        return loss

    def generator_losses(self, batch: dict[str, Tensor], made: Translation) -> dict[str, Tensor]:
        """Return what the generator is to make small, by name.

        Every stream is to be taken for real; streams and ensembles are to be near their target
        (L1), the ensembles of several by their weights alone; and fusions add their penalty.
        """
        config, losses = self.config, {}
        pairs = zip(self.translator.streams, made.streams, strict=True)
        distances = [F.l1_loss(x, batch[stream.target]) for stream, x in pairs]
        for target in self.translator.ensembles:
            distances.append(F.l1_loss(made.ensembles[target], batch[target]))
        losses['distance'] = config.reconstruction * torch.stack(distances).sum()
        if config.adversarial:
            judges = self.discriminators.module.requires_grad_(False)
            with self.fabric.autocast():
                judged = judges(batch, made.streams)
            judges.requires_grad_(True)
            taken = [realness_loss(logits, real=True) for logits in judged]
            losses['adversarial'] = config.adversarial * torch.stack(taken).sum()
        losses['penalty'] = made.penalty
        return losses

    def _set_rates(self) -> None:
        """Lower the rate along a line in the last part of the run, if that is wanted."""
        start = self.config.decay_from
        left = 1.0 if self.progress <= start else (1 - self.progress) / (1 - start)
        for optimiser in (self.optimiser, self.judging):
            for group in optimiser.param_groups:
                group['lr'] = self.config.lr * left

    def _look(self, losses: dict[str, Tensor], clock: Clock, monitor: Monitor) -> None:
        """Read losses and clock, the same ones on every process."""
        values = torch.stack([*losses.values(), losses['distance'].new_tensor(clock.seconds)])
        *found, seconds = self.fabric.all_reduce(values.double(), reduce_op='mean').tolist()
        step = self.state['step']
        if not all(map(math.isfinite, found)):
            raise DivergenceError(
                f'a loss is not finite near step {step}; start the same command again with a '
                'lower lr in a new output folder'
            )
        self.state['seconds'] = seconds
        monitor.numbers(
            step, self.progress, **dict(zip(losses, found, strict=True)),
            **self.translator.monitored(),
        )  # fmt: skip

    def _agree(self, here: bool) -> bool:
        if self.fabric.world_size == 1:
            return here
        flag = torch.tensor(float(here), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op='sum') > 0)

    def _save_when_due(self, clock: Clock, monitor: Monitor) -> None:
        seconds, every = self.state['seconds'], self.config.evaluate_every * self.steps_per_epoch
        if every and self.state['step'] // every > (self.state['step'] - LOG_EVERY) // every:
            self.evaluate(f'scores-{self.state["step"] // self.steps_per_epoch:04d}.json', monitor)
        if clock.minutes_since_save(seconds) >= (self.config.save_minutes or math.inf):
            self.save()
            clock.saved(seconds)

    def save(self) -> None:
        """Write the state to resume from, and the generator's weights.

        Raises:
            TrainingError: a full disk; older files stay.
        """
        settings = json.loads(json.dumps(dataclasses.asdict(self.config)))
        state = {**self.state, 'run': {'settings': settings}}
        path = self.folder / STATE_NAME
        if self.fabric.is_global_zero:
            write_output(path, lambda part: self.fabric.save(part, state))
            save_checkpoint(self.folder / WEIGHTS_NAME, self.translator, self.info())
        else:  # saving is a collective act in which only the first process writes
            self.fabric.save(path, state)

    def info(self) -> dict[str, Any]:
        """Return what a checkpoint tells of the run."""
        train = self.images['train']
        return {
            'translator': described(self.config),
            'step': self.state['step'],
            'minutes': round(self.state['seconds'] / 60, 1),
            'command': shlex.join(['python', '-m', 'rgbd_fusion_seg.training', *sys.argv[1:]]),
            'data': [{'name': train.name, 'images': len(train), 'terms': train.terms}],
        }

    def evaluate(self, file_name: str, monitor: Monitor) -> None:
        """Score the generator on the test split."""
        self.fabric.barrier()
        if not self.fabric.is_global_zero:
            return
        self.translator.eval()
        test, device = self.images['test'], self.fabric.device
        found = score_translator(self.translator, test, device)
        step = self.state['step']
        for target, rows in found.items():
            for name, scores in rows.items():
                monitor.say(f'{target} from {name} at step {step}: MAE {scores["MAE"]:.4f}')
                curves = {f'{target}/{name}/{key}': x for key, x in scores.items()}
                monitor.curves(step, curves)
        for i in range(min(PICTURES, len(test))):
            for target, images in picture_row(self.translator, test, i, device).items():
                monitor.picture(step, f'{target}/{i}', torch.cat(images, 1).numpy())
        text = json.dumps({'step': step, 'scores': found}, indent=1)
        path = self.folder / file_name
        write_output(path, lambda part: part.write_text(text, encoding='utf-8'))
