"""The loop of every training run: steps, looks at the losses, saving and stopping."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from rgbd_fusion_seg.errors import DivergenceError
from rgbd_fusion_seg.training.checkpoints import (
    LAST_NAME,
    save_checkpoint,
    write_output,
    write_text,
)
from rgbd_fusion_seg.training.config import RunConfig
from rgbd_fusion_seg.training.continuation import (
    SETTINGS_NAME,
    STATE_NAME,
    load_state,
)
from rgbd_fusion_seg.training.monitor import Monitor
from rgbd_fusion_seg.training.processes import leave_group
from rgbd_fusion_seg.training.stopping import Clock, StopSignal

LOG_EVERY = 10
"""Steps between looks at the losses and the clock, which make a GPU wait."""


class TrainingLoop(ABC):
    """A run: what it trains, and where it stands.

    Attributes:
        config: settings.
        folder: for its files.
        fabric: device and processes.
        state: what is saved, among it 'step' and 'seconds'.
        described: what a state tells of its run, see `continuation.described_run`.
        steps_per_epoch, num_steps: of the run.
    """

    config: RunConfig
    folder: Path
    fabric: Fabric
    state: dict[str, Any]
    described: dict[str, Any]
    steps_per_epoch: int
    num_steps: int
    deadline: float = math.inf
    """Of `time.monotonic`: then the run is saved and ends, as by a signal."""
    START: ClassVar[str] = 'network.init_from'
    """The setting that starts a run from weights."""
    RATE: ClassVar[str] = 'optimiser.lr'
    """The setting to lower when a loss is not finite."""

    @abstractmethod
    def batches(self, first_step: int, num_steps: int) -> Iterator[Any]:
        """Yield this process's part of the batches of ``num_steps`` steps."""

    @abstractmethod
    def step(self, batch: Any) -> dict[str, Tensor]:
        """Take one step; returns losses by name, without dimensions, on the device."""

    @abstractmethod
    def numbers(self) -> dict[str, float]:
        """Return what is logged beside the losses."""

    @abstractmethod
    def saved_network(self) -> nn.Module:
        """Return the network that is scored and saved, the same one on every process."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Return what a checkpoint tells of the run."""

    @abstractmethod
    def evaluate(self, file_name: str, monitor: Monitor) -> None:
        """Score the run's weights into a file of its folder."""

    @property
    def progress(self) -> float:
        """Share of the run that is done, in steps or in minutes, whichever is further."""
        done = self.state['step'] / self.num_steps
        if self.config.max_minutes:
            done = max(done, self.state['seconds'] / (60 * self.config.max_minutes))
        return min(done, 1.0)

    def resume(self) -> None:
        """Load the saved state, if there is one, and write the settings."""
        path = self.folder / STATE_NAME
        if path.is_file():
            load_state(self.fabric, path, self.state, self.START)
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            text = json.dumps(dataclasses.asdict(self.config), indent=1)
            write_text(self.folder / SETTINGS_NAME, text)

    def seed_step(self) -> None:
        """Let what a step draws, as dropout does, depend on the step and the process alone.

        A resumed run continues identically, therefore.
        """
        seed = self.config.seed * 1_000_003 + self.state['step']
        torch.manual_seed(seed * self.fabric.world_size + self.fabric.global_rank)

    def save(self) -> None:
        """Write the state to resume from, and the weights.

        Raises:
            DivergenceError: weights that are not finite; older files stay.
            TrainingError: a full disk; older files stay.
        """
        network = self.saved_network()
        self._check_finite(network)
        state, path = {**self.state, 'run': self.described}, self.folder / STATE_NAME
        if self.fabric.is_global_zero:
            # The state first: weights without one are taken for those of a run that has ended.
            write_output(path, lambda part: self.fabric.save(part, state))
            save_checkpoint(self.folder / LAST_NAME, network, self.info())
        else:  # saving is a collective act in which only the first process writes
            self.fabric.save(path, state)

    def run(self) -> None:
        """Go through the run, or on where it was, and leave the other processes in order."""
        if self.fit():
            self.fabric.print(f'written to {self.folder}')
        # A process that leaves while others still talk to it takes them down.
        self.fabric.barrier()
        leave_group(*(part for part in vars(self).values() if isinstance(part, nn.Module)))

    def fit(self) -> bool:
        """Take the steps that are left, save, and score the result.

        Returns:
            False when a signal or the deadline ended the run early; the state was saved then.

        Raises:
            DivergenceError: a loss or a weight is not finite any more.
            TrainingError: the disk is full.
        """
        speaks = self.fabric.is_global_zero
        with Monitor(self.folder, self.state['step'], self.num_steps, speaks) as monitor:
            finished = self._take_steps(monitor)
            self.save()
            if finished:
                self.finish(monitor)
            else:
                monitor.say(f'stopped and saved at step {self.state["step"]}; start the same '
                            'command again to go on')  # fmt: skip
        return finished

    def finish(self, monitor: Monitor) -> None:
        """Score a run whose steps are taken and saved."""
        self.evaluate('scores.json', monitor)

    def _take_steps(self, monitor: Monitor) -> bool:
        first, clock = self.state['step'], Clock(self.state['seconds'])
        sums: dict[str, Tensor] = {}
        looked = first
        with StopSignal(self.fabric.is_global_zero) as stop:
            for batch in self.batches(first, self.num_steps - first):
                if self.progress >= 1:
                    break
                for name, loss in self.step(batch).items():
                    sums[name] = sums[name] + loss if name in sums else loss
                monitor.step()
                look = self.state['step'] % LOG_EVERY == 0
                if look:
                    self._look(sums, self.state['step'] - looked, clock, monitor)
                    sums, looked = {}, self.state['step']
                self._after_step(monitor, clock)
                ends = stop.received or time.monotonic() >= self.deadline
                if (look or self.fabric.world_size == 1) and self._agree(ends):
                    self.state['seconds'] = clock.seconds
                    return False
        if sums:
            self._look(sums, self.state['step'] - looked, clock, monitor)
        return True

    def _look(self, sums: dict[str, Tensor], steps: int, clock: Clock, monitor: Monitor) -> None:
        """Read losses and clock, the same ones on every process, ``steps`` after the last look."""
        values = torch.stack(list(sums.values())).double() / steps
        values = torch.cat([values, values.new_tensor([clock.seconds])])
        *means, seconds = self.fabric.all_reduce(values, reduce_op='mean').tolist()
        losses, step = dict(zip(sums, means, strict=True)), self.state['step']
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise self._divergence(f'the {name} is {loss} near step {step}')
        speed = steps / max(seconds - self.state['seconds'], 1e-9)
        self.state['seconds'] = seconds
        monitor.numbers(
            step, self.progress, **losses, steps_per_second=speed, **self.numbers()
        )  # fmt: skip

    def _divergence(self, what: str) -> DivergenceError:
        last = self.folder / LAST_NAME
        start = f' and {self.START} {last}' if last.is_file() else ''
        return DivergenceError(
            f'{what}; start the same command again with a lower {self.RATE} in a new output '
            f'folder{start}'
        )

    def _check_finite(self, network: nn.Module) -> None:
        """Refuse weights that are not finite before they replace others."""
        finite = [x.isfinite().all() for x in network.state_dict().values()]
        if not bool(torch.stack(finite).all()):
            step = self.state['step']
            raise self._divergence(f'weights are not finite any more at step {step}')

    def _agree(self, here: bool) -> bool:
        if self.fabric.world_size == 1:
            return here
        flag = torch.tensor(float(here), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op='sum') > 0)

    def _after_step(self, monitor: Monitor, clock: Clock) -> None:
        step, config = self.state['step'], self.config
        epoch, within = divmod(step, self.steps_per_epoch)
        due = not within and config.save_every and epoch % config.save_every == 0
        late = step % LOG_EVERY == 0 and clock.minutes_since_save(self.state['seconds']) >= (
            config.save_minutes or math.inf
        )
        # The scores of the last step are those of the end.
        scored = not within and config.evaluate_every and epoch % config.evaluate_every == 0
        scored = scored and self.progress < 1
        if not (scored or due or late):
            return
        if self.fabric.device.type == 'cuda':  # the steps that it has still to do are training
            torch.cuda.synchronize(self.fabric.device)
        with clock.stopped():
            if scored:
                # Before saving, so that a run that is continued knows its best score.
                self.evaluate(f'scores-{epoch:04d}.json', monitor)
            if due or late:
                self.save()
                clock.saved(self.state['seconds'])
