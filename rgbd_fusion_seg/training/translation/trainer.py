"""Training of translators against discriminators, in full view."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import command_line, make_folder, write_text
from rgbd_fusion_seg.training.continuation import (
    PrecisionState,
    check_same_data,
    saved_run,
)
from rgbd_fusion_seg.training.loop import TrainingLoop
from rgbd_fusion_seg.training.monitor import Monitor
from rgbd_fusion_seg.training.processes import make_fabric
from rgbd_fusion_seg.training.run_lock import only_trainer
from rgbd_fusion_seg.training.translation.checkpoint import (
    consistency_translators,
    described,
    make_translator,
)
from rgbd_fusion_seg.training.translation.config import TranslationConfig
from rgbd_fusion_seg.training.translation.discriminator import PatchDiscriminator, realness_loss
from rgbd_fusion_seg.training.translation.evaluation import picture_row, score_translator
from rgbd_fusion_seg.training.translation.generator import (
    MIDDLE_LAYER,
    Translation,
    Translator,
    fused_layers,
)
from rgbd_fusion_seg.training.translation.prepared import (
    PreparedImages,
    network_image,
    prepared_images,
)
from rgbd_fusion_seg.training.translation.sources import open_images
from rgbd_fusion_seg.training.translation.streams import Stream, leading_to
from rgbd_fusion_seg.training.translation.views import TranslationViews

PICTURES = 3
FREE_TO_CHANGE = frozenset({
    'output', 'epochs', 'max_minutes', 'evaluate_every', 'save_every', 'save_minutes',
    'precision', 'accelerator', 'images.cache', 'images.workers', 'images.dataset.folder',
})  # fmt: skip
"""Settings that a run may be continued with other values of."""


def train_translation(run: TranslationConfig) -> None:
    """Train a translator between image domains; a run that was stopped goes on where it was.

    Writes into the run's folder: last.safetensors (the generator), resume.ckpt, scores.json,
    log.jsonl and TensorBoard events. Under `torchrun` the batch is spread over its processes.

    Raises:
        InputError: images, settings or a checkpoint that cannot be used, or another process that
            trains into the folder.
        DivergenceError: the loss is not finite any more.
        TrainingError: the disk is full.
    """
    with only_trainer(Path(run.output)):
        TranslationTrainer(run).run()


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

    def forward(
        self, given: dict[str, Tensor], images: list[Tensor], target: str = ''
    ) -> list[Tensor]:
        """Judge an image of each stream (to a target), given all domains: logits (N, 1, h, w)."""
        streams = [self.streams[i] for i in leading_to(self.streams, target)]
        pairs = zip(streams, images, strict=True)
        return [self.judges[s.target](given[s.input], image) for s, image in pairs]


class TranslationTrainer(TrainingLoop):
    """A run: generator, discriminators, and where it stands."""

    START = 'init_from'
    RATE = 'lr'

    def __init__(self, config: TranslationConfig) -> None:
        self.config, self.folder = config, Path(config.output)
        self.fabric = make_fabric(config)
        check_alignment(config, self.fabric.world_size)
        self.consistency = [self.fabric.to_device(t) for t in consistency_translators(config)]
        before = saved_run(self.folder, config, self.fabric, FREE_TO_CHANGE, self.START)
        torch.manual_seed(config.seed)
        fresh = config if before is None else dataclasses.replace(config, init_from='')
        translator = make_translator(fresh)
        self.images = self._prepare()
        self.described = described_run(config, self.images)
        if before is not None:
            check_same_data(self.folder, before, self.described)
        make_folder(self.folder)
        self.steps_per_epoch = max(1, len(self.images['train']) // config.batch_size)
        self.num_steps = config.epochs * self.steps_per_epoch
        self._set_up(translator)
        self.resume()

    def _set_up(self, translator: Translator) -> None:
        """Bring generator and discriminators to the device, as the first state of a run."""
        config = self.config
        discriminators = Discriminators(translator, config.discriminator_width)
        adam = {'lr': config.lr, 'betas': (config.beta1, config.beta2)}
        self.generator, self.optimiser = self.fabric.setup(
            translator, torch.optim.Adam(translator.parameters(), **adam)
        )
        self.discriminators, self.judging = self.fabric.setup(
            discriminators, torch.optim.Adam(discriminators.parameters(), **adam)
        )
        self.state = {
            'network': self.generator,
            'optimiser': self.optimiser,
            'discriminators': self.discriminators,
            'judging': self.judging,
            'precision': PrecisionState(self.fabric.strategy.precision),
            'step': 0,
            'seconds': 0.0,
        }

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

    def batches(self, first_step: int, num_steps: int) -> Iterator[dict[str, Tensor]]:
        """Yield this process's views on the device, float (n, 3, side, side), -1 to 1."""
        fabric = self.fabric
        views = TranslationViews(
            self.images['train'], self.config, fabric.global_rank, fabric.world_size
        )
        on_gpu = fabric.device.type == 'cuda'
        for batch in views.batches(first_step, num_steps, pinned=on_gpu):
            yield {
                name: network_image(images.to(fabric.device, non_blocking=True))
                for name, images in batch.items()
            }

    def numbers(self) -> dict[str, float]:
        """Return the learning rate and what the generator tells of itself."""
        return {'lr': self.optimiser.param_groups[0]['lr'], **self.translator.monitored()}

    def step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Train the discriminators, then the generator, on one batch.

        Args:
            batch: float (n, 3, H, W), -1 to 1, of every domain, on the device.

        Returns:
            losses by name, without dimensions.
        """
        config = self.config
        self.seed_step()
        self._set_rates()
        self.generator.train()
        target = self.drawn_target()
        made = self.generator(batch, target)
        losses = {}
        if config.adversarial:
            losses['discriminators'] = self._train_discriminators(batch, made, target)
        losses |= self.generator_losses(batch, made, target)
        self.fabric.backward(sum(losses[k] for k in losses if k != 'discriminators'))
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.state['step'] += 1
        return {name: value.detach() for name, value in losses.items()}

    def drawn_target(self) -> str:
        """Return the target that this step trains; '' for all.

        It depends on the seed and the step alone, so all processes draw the same, and so does a
        run that is continued.
        """
        if self.config.flows == 'all':
            return ''
        targets = self.translator.targets
        rng = np.random.default_rng((self.config.seed, 2, self.state['step']))
        return targets[rng.integers(len(targets))]

    def _streams(self, target: str) -> list[Stream]:
        streams = self.translator.streams
        return [streams[i] for i in leading_to(streams, target)]

    def _train_discriminators(
        self, batch: dict[str, Tensor], made: Translation, target: str = ''
    ) -> Tensor:
        """Take a step of the discriminators; each counts real and made images by halves.

        The ensemble is shown to none, as in the public code.
        """
        real = [batch[stream.target] for stream in self._streams(target)]
        twice = {name: torch.cat([x, x]) for name, x in batch.items()}
        pairs = zip(real, made.streams, strict=True)
        judged = self.discriminators(twice, [torch.cat([a, b.detach()]) for a, b in pairs], target)
        loss = torch.stack([
            (realness_loss(a, real=True) + realness_loss(b, real=False)) / 2
            for a, b in (logits.chunk(2) for logits in judged)
        ]).sum()  # fmt: skip
        self.fabric.backward(loss)
        self.judging.step()
        self.judging.zero_grad()
        return loss

    def generator_losses(
        self, batch: dict[str, Tensor], made: Translation, target: str = ''
    ) -> dict[str, Tensor]:
        """Return what the generator is to make small, by name, of what it made (for a target).

        Every stream is to be taken for real; streams and ensembles are to be near their target
        (L1), see `stream_factor` and `detach_ensemble`; so is what other translators make of them,
        see `consistency_from`; and fusions add their penalty. Open: whether the texts' loss has
        discriminators judge the ensemble.
        """
        config, losses, ensembles = self.config, {}, self.translator.ensembles
        distances = []
        for stream, x in zip(self._streams(target), made.streams, strict=True):
            factor = config.stream_factor if stream.target in ensembles else 1.0
            distances.append(factor * F.l1_loss(x, batch[stream.target]))
        for name in ensembles:
            if target in ('', name):
                distances.append(F.l1_loss(made.ensembles[name], batch[name]))
        losses['distance'] = config.reconstruction * torch.stack(distances).sum()
        if config.adversarial:
            judges = self.discriminators.module.requires_grad_(False)
            with self.fabric.autocast():
                judged = judges(batch, made.streams, target)
            judges.requires_grad_(True)
            taken = [realness_loss(logits, real=True) for logits in judged]
            losses['adversarial'] = config.adversarial * torch.stack(taken).sum()
        if self.consistency:
            losses['consistency'] = config.consistency * self._inconsistency(batch, made)
        losses['penalty'] = made.penalty
        return losses

    def _inconsistency(self, batch: dict[str, Tensor], made: Translation) -> Tensor:
        """Return how far what is made of predictions is from the other target."""
        distances = []
        for translator in self.consistency:
            (way,) = translator.streams
            for stream, image in zip(self.translator.streams, made.streams, strict=True):
                if stream.target == way.input:
                    with self.fabric.autocast():
                        (other,) = translator({way.input: image}).streams
                    distances.append(F.l1_loss(other.float(), batch[way.target]))
        return torch.stack(distances).sum()

    def _set_rates(self) -> None:
        """Lower the rate along a line in the last part of the run, if that is wanted."""
        start = self.config.decay_from
        left = 1.0 if self.progress <= start else (1 - self.progress) / (1 - start)
        for optimiser in (self.optimiser, self.judging):
            for group in optimiser.param_groups:
                group['lr'] = self.config.lr * left

    def saved_network(self) -> Translator:
        """Return the generator itself."""
        return self.translator

    def info(self) -> dict[str, Any]:
        """Return what a checkpoint tells of the run."""
        train = self.images['train']
        return {
            'translator': described(self.config),
            'step': self.state['step'],
            'minutes': round(self.state['seconds'] / 60, 1),
            'command': command_line(),
            'data': [{'name': train.name, 'images': len(train), 'terms': train.terms}],
        }

    def evaluate(self, file_name: str, monitor: Monitor) -> None:
        """Score the generator on the test split, of which each process takes its part."""
        self.translator.eval()
        test, device, step = self.images['test'], self.fabric.device, self.state['step']
        found = score_translator(self.translator, test, device, fabric=self.fabric)
        if not self.fabric.is_global_zero:
            return
        for target, rows in found.items():
            for name, scores in rows.items():
                monitor.say(f'{target} from {name} at step {step}: MAE {scores["MAE"]:.4f}')
                curves = {f'{target}/{name}/{key}': x for key, x in scores.items()}
                monitor.curves(step, curves)
        for i in range(min(PICTURES, len(test))):
            for target, images in picture_row(self.translator, test, i, device).items():
                monitor.picture(step, f'{target}/{i}', torch.cat(images, 1).numpy())
        text = json.dumps({'step': step, 'scores': found}, indent=1)
        write_text(self.folder / file_name, text)


def check_alignment(config: TranslationConfig, world_size: int = 1) -> None:
    """Refuse to align samples of one feature, which have no distribution.

    Raises:
        InputError: a process's views end in so few pixels of the last layer, and it is aligned.
    """
    generator = config.generator
    pixels = (config.images.side // 2**generator.depth) ** 2 * (config.batch_size // world_size)
    last = generator.depth - 1
    if generator.fusion == 'align' and last in fused_layers(generator) and pixels < 2:
        other = 'early' if last == MIDDLE_LAYER else 'middle'
        raise InputError(
            'fusion align compares two features of each input or more, and a process has one of '
            f'the last layer; make batch_size 2 or more for each process, or fused_layers {other}'
        )


def described_run(
    config: TranslationConfig, images: Mapping[str, PreparedImages]
) -> dict[str, Any]:
    """Return what a state tells of its run, as `continuation.check_same_data` compares it."""
    sets = list(images.values())
    return {
        'settings': json.loads(json.dumps(dataclasses.asdict(config))),
        'classes': [],
        'data': [[found.name, len(found)] for found in sets],
        'content': {found.name: found.content() for found in sets},
    }
