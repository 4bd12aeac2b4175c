"""What a study is made of: rows that are trained alike, and claims that compare them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rgbd_fusion_seg.training.config import NetworkConfig, TrainConfig
from rgbd_fusion_seg.training.rules import is_folder_name, require

OF_ROWS = ('output', 'network', 'epochs', 'seed')
"""Settings of a run that the study gives each row."""


@dataclass
class RowConfig:
    """A network of the study.

    Args:
        name: short and unique; names its folder.
        title: as the table shows it.
        network: what is trained.
        epochs: how many, 1 or more, before the budget scales all rows alike.
        encoders: modality -> name of the unimodal row whose encoder it starts from.
        continues: name of a row whose weights it goes on with.
        best_of: names of rows; it goes on with the network and the weights of the one of them that
            scored best with the first seed, in place of `network` and `continues`.
        run: what is otherwise than in the study's run, such as {data: {width: 640, height: 480}}.
        shown: whether the table has it; rows that others only start from need not be.
        optional: it is trained where ``only`` names it alone, and the table has it once it was.
        paper_parameters, paper_miou, paper_branches: the paper's figures, as text; the last of
            the mIoU of each branch.
    """

    name: str
    title: str = ''
    network: NetworkConfig = field(default_factory=NetworkConfig)
    epochs: float = 10
    encoders: dict[str, str] = field(default_factory=dict)
    continues: str = ''
    best_of: list[str] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    shown: bool = True
    optional: bool = False
    paper_parameters: str = ''
    paper_miou: str = ''
    paper_branches: str = ''

    def __post_init__(self) -> None:
        named = is_folder_name(self.name)
        rules = {
            'a name that a folder can have': named,
            'epochs >= 1': self.epochs >= 1,
            f'no {", ".join(OF_ROWS)} in run': not {*self.run} & {*OF_ROWS},
            'neither encoders nor continues beside best_of': not self.best_of
            or not (self.encoders or self.continues),
        }
        require(self, rules)


@dataclass
class ClaimConfig:
    """A claim of a paper that the study tests.

    Args:
        text: the claim.
        better, worse: names of the rows it compares.
        paper: by how many points of mIoU, as text.
    """

    text: str
    better: str
    worse: str
    paper: str = ''


@dataclass
class StudyConfig:
    """A study.

    Args:
        name: of the study; names its section in the document.
        output: folder for its runs and results.
        minutes: time for everything, measuring and scoring too; every row's epochs are scaled
            by one factor, from measured speeds, to fit into it. What is left when so many minutes
            have passed since the start of the command is left to the next start: a row under way
            is saved, and none is begun that would not end. 0 trains the epochs as they stand.
        seeds: every row is trained with each; rows that are not shown with the first alone, and
            what starts from them starts from that.
        run: what all rows share.
        rows: the networks.
        claims: what is to be tested.
        noise: points of mIoU; smaller differences, on average over seeds, are told to be noise.
        document: Markdown file that gets table, claims and picture between the markers
            `<!-- study NAME -->` and `<!-- end of study NAME -->`.
        record: JSON file that keeps the results of every finished run. Runs in it that were not
            trained here stand in the table, too, so a study can be shared by machines and be
            continued where its folder is gone. They are trained again unless ``only`` leaves them
            out: a record has no weights.
    """

    name: str = 'study'
    output: str = 'runs/study'
    minutes: float = 0.0
    seeds: list[int] = field(default_factory=lambda: [0])
    run: TrainConfig = field(default_factory=TrainConfig)
    rows: list[RowConfig] = field(default_factory=list)
    claims: list[ClaimConfig] = field(default_factory=list)
    noise: float = 0.0
    document: str = ''
    record: str = ''

    def __post_init__(self) -> None:
        rules = {'minutes >= 0': self.minutes >= 0, 'noise >= 0': self.noise >= 0}
        require(self, rules | study_rules(self))


def study_rules(study: Any) -> dict[str, bool]:
    """Return what must hold of any kind of study, by its words for an error.

    Args:
        study: `StudyConfig`, or another one with a name, an output and seeds.
    """
    seeds = study.seeds
    return {
        'a name that a file can have': is_folder_name(study.name),
        'an output folder': bool(study.output),
        'one of seeds at least': bool(seeds),
        'seeds that differ': len(seeds) == len(set(seeds)),
        'seeds from 0 to 2**32 - 1': all(0 <= seed < 2**32 for seed in seeds),
    }
