"""Streams: each goes from one input domain to one target domain, with norms of its own.

They are the subnetworks of CEN's TPAMI version (§3.1), whose four scenarios differ in nothing else
than the domains:

========================== ====================== ======================= =======================
scenario                   inputs                 targets                 channels are exchanged
========================== ====================== ======================= =======================
multimodal fusion          several                one                     between encoders
cycle multimodal fusion    all                    the same                between encoders
multitask learning         one                    several                 between decoders
multimodal multitask       several                several                 between both
========================== ====================== ======================= =======================

Encoders fuse what leads to one target, so they exchange among the streams of the same target;
decoders share what different targets of one input have in common. One encoder for all streams,
whose norms are each stream's own, is what Tables 6 to 9 count as "IN x 6, enc x 1".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rgbd_fusion_seg.errors import InputError


class Stream(NamedTuple):
    """A way from one domain to another."""

    input: str
    target: str

    def __str__(self) -> str:
        return f'{self.input} to {self.target}'


def make_streams(inputs: Sequence[str], targets: Sequence[str]) -> tuple[Stream, ...]:
    """Return the streams from each input to each target but itself, those of a target together.

    Raises:
        InputError: no inputs or targets, one that is named twice, or a target without an input.
    """
    for what, names in (('inputs', inputs), ('targets', targets)):
        if not names or len({*names}) < len(names):
            raise InputError(
                f'{what} must be one or more different image domains, not {list(names)}'
            )
    for target in targets:
        if {*inputs} <= {target}:
            raise InputError(f'the target {target} has no input but itself; give another one')
    return tuple(Stream(i, target) for target in targets for i in inputs if i != target)


def grouped(streams: Sequence[Stream], by: str) -> dict[str, list[int]]:
    """Return the numbers of the streams that have a domain in common, by its name.

    Args:
        streams: all.
        by: 'target' or 'input'.
    """
    groups: dict[str, list[int]] = {}
    for number, stream in enumerate(streams):
        groups.setdefault(getattr(stream, by), []).append(number)
    return groups


def leading_to(streams: Sequence[Stream], target: str = '') -> list[int]:
    """Return the numbers of the streams to a target; without one, of all."""
    return [number for number, stream in enumerate(streams) if target in ('', stream.target)]
