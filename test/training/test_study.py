from __future__ import annotations

import copy
import dataclasses
import fcntl
import json
import math
import re
import shutil
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import cv2
import pytest
import yaml

torch = pytest.importorskip('torch')

from jsonargparse import ArgumentParser  # noqa: E402

from rgbd_fusion_seg.errors import InputError, TrainingError  # noqa: E402
from rgbd_fusion_seg.training import loop, study_plan, study_report, study_scores  # noqa: E402
from rgbd_fusion_seg.training import study as study_module  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import load_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import (  # noqa: E402
    DataConfig,
    DatasetConfig,
    GroupConfig,
    NetworkConfig,
    OptimiserConfig,
    TrainConfig,
)
from rgbd_fusion_seg.training.evaluation import evaluate  # noqa: E402
from rgbd_fusion_seg.training.study import study  # noqa: E402
from rgbd_fusion_seg.training.study_config import (  # noqa: E402
    ClaimConfig,
    RowConfig,
    StudyConfig,
)
from rgbd_fusion_seg.training.study_runs import collect, row_config  # noqa: E402
from rgbd_fusion_seg.training.translation.study import (  # noqa: E402
    TranslationStudyConfig,
    recorded_runs,
    table,
)
from rgbd_fusion_seg.training.translation.study import row_config as translation_row  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / 'config' / 'training').glob('study_*.yaml'))
PUBLISHED = [path for path in STUDIES if 'document' in yaml.safe_load(path.read_text())['study']]
SEGMENTATION = [path for path in PUBLISHED if 'translation' not in path.stem]


def rows() -> list[RowConfig]:
    unimodal = {m: NetworkConfig('erfnet_encoder', {'modality': m}) for m in ('rgb', 'hha')}
    return [
        RowConfig('rgb_first', 'RGB, first part', unimodal['rgb'], epochs=2, shown=False),
        RowConfig('hha_first', 'HHA, first part', unimodal['hha'], epochs=2, shown=False),
        RowConfig('rgb', 'RGB', unimodal['rgb'], epochs=1, continues='rgb_first'),
        RowConfig(
            'fused', 'RFBNet', NetworkConfig(), epochs=1,
            encoders={'rgb': 'rgb_first', 'hha': 'hha_first'},
        ),
    ]  # fmt: skip


@pytest.fixture
def tiny_study(nyu_pack, tmp_path) -> StudyConfig:
    data = DataConfig(
        dataset=DatasetConfig(folder=str(nyu_pack)), synthetic_frames=0, synthetic_test_frames=0,
        cache=str(tmp_path / 'cache'), width=64, height=48, workers=0,
    )  # fmt: skip
    run = TrainConfig(batch_size=2, precision='32-true', accelerator='cpu', data=data)
    document = tmp_path / 'results.md'
    document.write_text('before\n<!-- study tiny -->\nold\n<!-- end of study tiny -->\nafter\n')
    claims = [ClaimConfig('Fusion helps', 'fused', 'rgb', '+1')]
    return StudyConfig(
        name='tiny', output=str(tmp_path / 'study'), run=run, rows=rows(), claims=claims,
        document=str(document),
    )  # fmt: skip


def test_a_study_trains_compares_and_is_continued(tiny_study, tmp_path, monkeypatch):
    study(tiny_study)
    output = tmp_path / 'study'
    entries = json.loads((output / 'results.json').read_text())['runs']
    assert [e['row'] for e in entries] == ['rgb_first', 'hha_first', 'rgb', 'fused']
    assert [e['epochs'] for e in entries] == [2, 2, 1, 1]
    for entry in entries:
        assert 0 <= entry['scores']['test']['mIoU'] <= 1
    document = (tmp_path / 'results.md').read_text()
    assert document.startswith('before\n')
    assert document.endswith('after\n')
    assert 'old' not in document
    table = [line for line in document.splitlines() if line.startswith('|')]
    assert 'RFBNet' in table[3]
    assert '2 + 1' in table[3]
    assert 'first part' not in document
    assert '](images/study_tiny.png)' in document
    for path in (output / 'miou.png', tmp_path / 'images' / 'study_tiny.png'):
        assert cv2.imread(str(path)).shape[1] > 500

    trained = []
    monkeypatch.setattr(study_module, 'Trainer', lambda config: trained.append(config))
    study(tiny_study)
    assert not trained

    # Where and how fast it is done may change, and the folder's place; what is trained may not.
    tiny_study.run.data.workers, tiny_study.run.data.cache = 3, str(tmp_path / 'other')
    tiny_study.output = str(output.rename(tmp_path / 'moved'))
    study(tiny_study)
    for change, words in (
        (lambda s: setattr(s.run.optimiser, 'lr', 0.5), r'rgb_first-0 .* optimiser\.lr'),
        (lambda s: setattr(s.run.data, 'width', 80), r'rgb_first-0 .* data\.width'),
        (lambda s: setattr(s.rows[3].network, 'name', 'ssma_erfnet'), r'fused-0 .* network\.name'),
        (lambda s: s.rows[3].encoders.pop('hha'), r'fused-0 .* network\.init_hha'),
    ):
        changed = copy.deepcopy(tiny_study)
        change(changed)
        for report_only in (False, True):
            with pytest.raises(InputError, match=words):
                study(changed, report_only)
    assert not trained


def test_fused_rows_start_from_the_unimodal_ones(tiny_study, tmp_path, monkeypatch):
    real = study_module.Trainer
    started = {}

    def noting(config):
        run = real(config)
        started[Path(config.output).name] = run.network.module.state_dict()
        started[Path(config.output).name] = {
            k: v.clone() for k, v in started[Path(config.output).name].items()
        }
        return run

    monkeypatch.setattr(study_module, 'Trainer', noting)
    study(tiny_study)
    name = 'initial_block.conv.weight'
    for modality in ('rgb', 'hha'):
        path = tmp_path / 'study' / f'{modality}_first-0' / 'last.safetensors'
        weights = load_checkpoint(path).weights[f'encoder.{name}']
        torch.testing.assert_close(started['fused-0'][f'{modality}_encoder.{name}'], weights)


def test_processes_share_the_rows(tiny_study, tmp_path):
    """Two of them train each row once, and a row that another one holds is left to it."""
    config = tmp_path / 'study.yaml'
    config.write_text(yaml.safe_dump({'study': dataclasses.asdict(tiny_study)}))
    command = [sys.executable, '-m', 'rgbd_fusion_seg.training', 'study', '--config', str(config)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    trained = [re.findall(r'^(\w+), seed 0: ', output, re.MULTILINE) for output in outputs]
    assert sorted(trained[0] + trained[1]) == sorted(row.name for row in tiny_study.rows)
    runs = json.loads((tmp_path / 'study' / 'results.json').read_text())['runs']
    assert len(runs) == len(tiny_study.rows)


def test_a_row_that_another_process_trains_is_waited_for(tiny_study, tmp_path, monkeypatch):
    output = tmp_path / 'study'
    output.mkdir()
    other = (output / 'hha_first-0.lock').open('w')
    fcntl.flock(other, fcntl.LOCK_EX)
    waits = []

    def look_again(seconds):
        waits.append({path.parent.name for path in output.glob('*/scores.json')})
        other.close()

    monkeypatch.setattr(study_module.time, 'sleep', look_again)
    study(tiny_study)
    assert waits == [{'rgb_first-0', 'rgb-0'}]  # all that does not need the other's row
    assert (output / 'fused-0' / 'scores.json').is_file()


def test_a_signal_ends_the_study_and_leaves_a_report(tiny_study, tmp_path, monkeypatch):
    real = study_module.Trainer.fit

    def signalled(self):
        if self.folder.name == 'rgb-0':
            self.save()
            return False
        return real(self)

    monkeypatch.setattr(study_module.Trainer, 'fit', signalled)
    study(tiny_study)
    runs = json.loads((tmp_path / 'study' / 'results.json').read_text())['runs']
    assert [run['row'] for run in runs] == ['rgb_first', 'hha_first']
    assert not (tmp_path / 'study' / 'fused-0').exists()
    monkeypatch.setattr(study_module.Trainer, 'fit', real)
    study(tiny_study)
    runs = json.loads((tmp_path / 'study' / 'results.json').read_text())['runs']
    assert [run['row'] for run in runs][2:] == ['rgb', 'fused']


def test_a_row_that_diverges_is_left_out_and_named(tiny_study, tmp_path, monkeypatch):
    tiny_study.rows = tiny_study.rows[:3]
    tiny_study.claims, tiny_study.seeds = [], [0, 1]
    tiny_study.rows[1].shown = True
    hha = RowConfig('hha', 'HHA', tiny_study.rows[1].network, epochs=1, continues='hha_first')
    tiny_study.rows.insert(2, hha)
    real, output = study_module.Trainer.loss, tmp_path / 'study'

    def explodes(self, batch):
        return real(self, batch) * (math.nan if self.folder.name == 'hha_first-0' else 1)

    monkeypatch.setattr(study_module.Trainer, 'loss', explodes)
    for _ in range(2):  # it is not tried again of itself
        with pytest.raises(
            TrainingError, match=r'hha_first-0: .* is nan near step .*; hha-0: it .*delete'
        ):
            study(tiny_study)
        monkeypatch.setattr(study_module.Trainer, 'loss', None)
    assert 'optimiser.lr' in (output / 'hha_first-0' / 'failed.txt').read_text()
    results = json.loads((output / 'results.json').read_text())
    done = [(run['row'], run['seed']) for run in results['runs']]
    assert done == [('rgb_first', 0), ('hha_first', 1), ('hha', 1), ('rgb', 0), ('rgb', 1)]
    assert [(f['row'], f['seed']) for f in results['failed']] == [('hha_first', 0), ('hha', 0)]
    assert '| HHA (failed with seed 0) | ' in (output / 'report.md').read_text()
    study(tiny_study, report_only=True)

    monkeypatch.setattr(study_module.Trainer, 'loss', real)
    shutil.rmtree(output / 'hha_first-0')
    study(tiny_study)
    assert 'failed' not in (output / 'report.md').read_text()


def test_all_seeds_start_from_the_first_ones_of_rows_that_are_not_shown(tiny_study, tmp_path):
    tiny_study.seeds = [3, 4]
    study(tiny_study)
    output = tmp_path / 'study'
    runs = json.loads((output / 'results.json').read_text())['runs']
    assert [(run['row'], run['seed']) for run in runs] == [
        ('rgb_first', 3), ('hha_first', 3), ('rgb', 3), ('rgb', 4), ('fused', 3), ('fused', 4),
    ]  # fmt: skip
    configs = [
        json.loads((output / f'{name}-4' / 'run.json').read_text()) for name in ('rgb', 'fused')
    ]
    assert configs[0]['network']['init_from'] == str(output / 'rgb_first-3' / 'last.safetensors')
    assert configs[1]['network']['init_hha'] == str(output / 'hha_first-3' / 'last.safetensors')
    weights = [
        load_checkpoint(output / f'fused-{seed}' / 'last.safetensors').weights for seed in (3, 4)
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_time_budget_scales_all_rows_alike(tiny_study, monkeypatch, tmp_path, capsys):
    seconds = {'rgb_first': 2.0, 'hha_first': 1.0, 'rgb': 2.0, 'fused': 4.0}
    clock = [0.0]

    def measured(study, row, output):
        """Each of four rows is measured for 3 seconds, and twice takes 5 besides its epochs."""
        clock[0] += 3.0
        return 5.0, seconds[row.name]

    monkeypatch.setattr(study_plan, 'measured_seconds', measured)
    monkeypatch.setattr(study_plan.time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(study_plan, 'RESERVE', 0.0)
    tiny_study.minutes, tiny_study.seeds = 3.7, [0, 1]
    output = tmp_path / 'study'
    output.mkdir()
    plan = study_plan.planned_epochs(tiny_study, output)
    assert plan == {'rgb_first': 20, 'hha_first': 20, 'rgb': 10, 'fused': 10}
    monkeypatch.setattr(study_plan, 'measured_seconds', None)
    assert study_plan.planned_epochs(tiny_study, output) == plan

    # A row that comes later has the same budget; more time is time to finish.
    later = dataclasses.replace(tiny_study.rows[2], name='later', epochs=1.17)
    tiny_study.rows.append(later)
    assert study_plan.planned_epochs(tiny_study, output) == {**plan, 'later': 12}
    capsys.readouterr()
    tiny_study.minutes = 60.0
    assert study_plan.planned_epochs(tiny_study, output) == {**plan, 'later': 12}
    assert 'planned for 3.7 minutes are kept' in capsys.readouterr().out
    for minutes in (3.0, 0.0):
        tiny_study.minutes = minutes
        with pytest.raises(InputError, match=r'planned for study\.minutes 3\.7, not [30];'):
            study_plan.planned_epochs(tiny_study, output)
    tiny_study.minutes, later.epochs = 3.7, 40
    with pytest.raises(InputError, match=r'epochs of later were 1\.17 .* are 40 now'):
        study_plan.planned_epochs(tiny_study, output)


def test_a_time_without_an_epoch_for_each_row_is_refused(tiny_study, monkeypatch, tmp_path):
    monkeypatch.setattr(study_plan, 'measured_seconds', lambda study, row, output: (5.0, 2.0))
    monkeypatch.setattr(study_plan.time, 'monotonic', lambda: 0.0)
    monkeypatch.setattr(study_plan, 'RESERVE', 0.2)
    tiny_study.minutes = 0.6  # four rows take 20 seconds and 12 for six epochs, and 8 are kept
    with pytest.raises(InputError, match=r'in 0\.6 minutes .* give study\.minutes 0\.7 or more'):
        study_plan.planned_epochs(tiny_study, tmp_path)
    tiny_study.minutes = 0.7
    assert study_plan.planned_epochs(tiny_study, tmp_path)['fused'] == 1


@pytest.mark.parametrize(
    ('step', 'done', 'under_way'),
    [
        (0.5, ['rgb_first', 'hha_first', 'rgb', 'fused'], []),
        (2.5, ['rgb_first'], ['hha_first']),  # of the 15 seconds that it needs 9.5 are left
        (3.6, ['rgb_first'], []),  # 4.9 seconds are left, of which the shortest needs 5
    ],
)
def test_a_study_ends_in_its_time_and_tells_what_is_left(
    tiny_study, monkeypatch, tmp_path, capsys, step, done, under_way
):
    """As planned a run takes 2 seconds besides its epochs, and these one for each of 3 steps."""
    monkeypatch.setattr(study_plan, 'measured_seconds', lambda *_: (2.0, 3.0))
    monkeypatch.setattr(study_plan, 'RESERVE', 0.0)
    tiny_study.minutes = 26.5 / 60
    clock, real = [0.0], study_module.Trainer.step

    def slow_step(self, batch):
        clock[0] += step
        return real(self, batch)

    fake = types.SimpleNamespace(monotonic=lambda: clock[0], sleep=None)
    monkeypatch.setattr(study_module, 'time', fake)
    monkeypatch.setattr(loop, 'time', fake)
    monkeypatch.setattr(study_module.Trainer, 'step', slow_step)
    study(tiny_study)
    assert clock[0] <= 26.5
    folders, names = tmp_path / 'study', [row.name for row in tiny_study.rows]
    assert [x for x in names if (folders / f'{x}-0/scores.json').is_file()] == done
    assert [x for x in names if (folders / f'{x}-0/resume.ckpt').is_file()] == under_way
    assert [x for x in names if (folders / f'{x}-0').is_dir()] == done + under_way
    left = ', '.join(f'{name}-0' for name in names if name not in done)
    assert (f'left to train: {left}; start the same' in capsys.readouterr().out) == bool(left)
    monkeypatch.setattr(study_module.Trainer, 'step', real)
    study(tiny_study)
    assert all((folders / f'{name}-0/scores.json').is_file() for name in names)


def test_a_row_starts_from_files_that_it_names_itself(tiny_study):
    named = NetworkConfig(init_rgb='runs/a/last.safetensors', init_hha='runs/b/last.safetensors')
    row = RowConfig('named', 'Named', named)
    network = row_config(tiny_study, row, 0, 1).network
    assert (network.init_rgb, network.init_hha) == (named.init_rgb, named.init_hha)
    row.encoders = {'hha': 'hha_first'}
    network = row_config(tiny_study, row, 0, 1).network
    assert network.init_rgb == named.init_rgb
    assert Path(network.init_hha).parent.name == 'hha_first-0'


def test_rows_are_scored_once_more_on_their_own_data(tiny_study, nyu_pack, tmp_path, monkeypatch):
    own = tmp_path / 'own'
    own.symlink_to(nyu_pack)
    tiny_study.rows[0].run = {'data': {'dataset': {'folder': str(own)}}}
    study(tiny_study, only=['rgb_first', 'hha_first'])
    opened, open_source = [], study_scores.open_dataset

    def open_dataset(config, split):
        opened.append((config.folder, split))
        return open_source(config, split)

    monkeypatch.setattr(study_scores, 'open_dataset', open_dataset)
    study(tiny_study, rescore=['rgb_first', 'hha_first'])
    assert opened == [(str(own), 'test'), (str(nyu_pack), 'test')]


def test_a_row_may_have_settings_of_its_own(tiny_study, tmp_path):
    tiny_study.rows[2].run = {'batch_size': 3, 'data': {'width': 96, 'height': 64}}
    study(tiny_study, only=['rgb'])
    first, own = (
        json.loads((tmp_path / 'study' / name / 'run.json').read_text())
        for name in ('rgb_first-0', 'rgb-0')
    )
    assert (own['batch_size'], own['data']['width'], own['data']['height']) == (3, 96, 64)
    same = {'output', 'epochs', 'network', 'batch_size', 'data'}
    assert {k: own[k] for k in {*own} - same} == {k: first[k] for k in {*first} - same}
    own['data'] |= {'width': 64, 'height': 48}
    assert own['data'] == first['data']
    runs = json.loads((tmp_path / 'study' / 'results.json').read_text())['runs']
    assert [run['size'] for run in runs] == [[64, 48], [96, 64]]
    assert runs[1]['gflops'] == pytest.approx(2 * runs[0]['gflops'], rel=0.03)
    for run, words in (
        ({'data': {'widht': 96}}, "the study row 'rgb': run has .*widht"),
        ({'optimiser': {'lr': None}}, "the study row 'rgb': run has a null .*'lr': None"),
        ({'batch_size': 'three'}, "the study row 'rgb': run has .*batch_size.*three"),
        ({'data': 3}, "the study row 'rgb': run has data: 3, but data is a section"),
        ({'batch_size': 0}, 'batch_size >= 1, but batch_size is 0'),
        ({'data': {'width': 20}}, "the study row 'rgb': .*multiples of 8, not 20x48"),
    ):
        tiny_study.rows[2].run = run
        with pytest.raises(InputError, match=words):
            study(tiny_study)
    with pytest.raises(InputError, match='no output, network, epochs, seed in run'):
        RowConfig('other', run={'seed': 3})


@pytest.mark.parametrize('best', ['rgb_first', 'hha_first'])
def test_the_best_of_several_rows_goes_on(tiny_study, tmp_path, monkeypatch, best):
    output, larger = tmp_path / 'study', {'data': {'width': 96, 'height': 64}}
    row = RowConfig('best', 'The best', best_of=['rgb_first', 'hha_first'], run=larger)
    tiny_study.rows, tiny_study.claims = [*tiny_study.rows[:2], row], []
    study(tiny_study, only=['rgb_first', 'hha_first'])

    def score(name: str, miou: float) -> None:
        path = output / f'{name}-0' / 'scores.json'
        scores = json.loads(path.read_text())
        scores['test']['mIoU'] = miou
        path.write_text(json.dumps(scores))

    score('rgb_first', 0.3)
    score('hha_first', 0.4 if best == 'hha_first' else 0.2)
    study(tiny_study)
    info = load_checkpoint(output / 'best-0' / 'last.safetensors').info
    assert (info['network'], info['options']) == ('erfnet_encoder', {'modality': best[:3]})
    assert (info['width'], info['height']) == (96, 64)
    (origin,) = info['started_from']
    assert origin['file'] == str(output / f'{best}-0' / 'last.safetensors')
    title = next(r.title for r in tiny_study.rows if r.name == best)
    assert f'| The best: {title} | ' in (output / 'report.md').read_text()
    # Which it was is settled.
    score(best, 0.1)
    monkeypatch.setattr(study_module, 'Trainer', None)
    study(tiny_study)
    with pytest.raises(InputError, match='neither encoders nor continues beside best_of'):
        dataclasses.replace(row, continues='rgb_first')


def test_a_row_that_failed_is_not_the_best(tiny_study, tmp_path):
    row = RowConfig('best', 'The best', best_of=['rgb_first', 'hha_first'], epochs=1)
    tiny_study.rows, tiny_study.claims = [*tiny_study.rows[:2], row], []
    failed = tmp_path / 'study' / 'rgb_first-0' / 'failed.txt'
    failed.parent.mkdir(parents=True)
    failed.write_text('the loss is nan')
    with pytest.raises(TrainingError, match=r'rgb_first-0: the loss is nan [^;]*$'):
        study(tiny_study)
    info = load_checkpoint(tmp_path / 'study' / 'best-0' / 'last.safetensors').info
    assert info['options'] == {'modality': 'hha'}


def test_the_study_for_a_gpu_trains_the_whole_family(tiny_study, tmp_path):
    """Each of its rows, for three steps of few pixels, and AdapNet++ with few channels."""
    shipped = shipped_study(ROOT / 'config' / 'training' / 'study_rfbnet_gpu_nyudv2.yaml')
    shipped.output, shipped.minutes, shipped.run = tiny_study.output, 0, tiny_study.run
    for row in shipped.rows:
        row.epochs = 1
        if 'adapnetpp' in row.network.name:
            row.network.options['width'] = 0.125
        if 'data' in row.run:
            row.run['data'] = {key: side // 5 for key, side in row.run['data'].items()}
    study(shipped)
    runs = json.loads((tmp_path / 'study' / 'results.json').read_text())['runs']
    assert [run['row'] for run in runs] == [row.name for row in shipped.rows]
    assert [run['size'] for run in runs] == [[64, 48]] * 13 + [[128, 96]]
    table = (tmp_path / 'study' / 'report.md').read_text()
    assert 'not trained' not in table
    assert re.search(r'640x480: (SSMA|RFBNet)\(', table)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('[]', 'it lacks asked, epochs, factor'),
        ('{"epochs": {"rgb": 5}, "asked": {}, "minutes": 0, "seconds": {}}', 'it lacks factor'),
        ('3', 'not iterable'),
        ('{', 'Expecting'),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tiny_study, tmp_path, content, words):
    (tmp_path / 'plan.json').write_text(content)
    with pytest.raises(InputError, match=rf'plan\.json is no plan of a study \(.*{words}'):
        study_plan.planned_epochs(tiny_study, tmp_path)


@pytest.mark.parametrize(
    'settings',
    [
        {'minutes': -3}, {'minutes': math.inf}, {'seeds': []}, {'seeds': [1, 1]}, {'seeds': [-1]},
        {'seeds': [2**32]}, {'output': ''}, {'name': 'a/b'},
    ],
)  # fmt: skip
def test_studies_without_a_meaning_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        StudyConfig(**settings)


@pytest.mark.parametrize('name', ['a/b', '', '..', '/tmp', 'a\0'])
def test_rows_are_named_as_folders_can_be(name):
    with pytest.raises(InputError, match='the row settings must have a name that a folder can'):
        RowConfig(name)


def test_the_speed_of_a_row_is_measured(tiny_study, tmp_path):
    row = tiny_study.rows[-1]
    tiny_study.run.data.width, tiny_study.run.data.height = 32, 32
    once, epoch = study_plan.measured_seconds(tiny_study, row, tmp_path)
    tiny_study.run.data.width, tiny_study.run.data.height = 256, 192
    once_more, longer = study_plan.measured_seconds(tiny_study, row, tmp_path)
    assert 0 < epoch < longer
    assert once > 0
    assert once_more > 0


def test_rows_and_claims_must_name_rows(tiny_study):
    tiny_study.rows[2].continues = 'rgb_last'
    with pytest.raises(InputError, match='rgb_last'):
        study(tiny_study)
    tiny_study.rows[2].continues = 'rgb_first'
    tiny_study.claims[0].better = 'cen'
    with pytest.raises(InputError, match='Fusion helps'):
        study(tiny_study)


@pytest.mark.parametrize(
    ('network', 'words'),
    [
        (NetworkConfig('erfnet_encoder', {'modality': 'hah'}), 'modality must be .*hah'),
        (NetworkConfig('erfnet_encoder', {'modalty': 'hha'}), "no option 'modalty'"),
        (NetworkConfig('erfnet_encodr'), "unknown network 'erfnet_encodr'"),
        (NetworkConfig('multimodal', {'freeze_norms': True}), 'freeze_norms keeps'),
        (NetworkConfig('adapnetpp'), 'multiples of 16, not 64x40'),
        (NetworkConfig('ssma_erfnet'), "the pattern '.encoder' .* matches none"),
    ],
)
def test_a_row_that_cannot_be_trained_is_named_before_any_is(
    tiny_study, tmp_path, monkeypatch, network, words
):
    monkeypatch.setattr(study_module, 'Trainer', None)
    tiny_study.run.data.height = 40
    tiny_study.run.optimiser.groups = [GroupConfig('^encoder')]
    tiny_study.rows[2:] = [RowConfig('last', network=network)]
    tiny_study.claims = []
    with pytest.raises(InputError, match=f"the study row 'last': .*{words}"):
        study(tiny_study)
    assert not (tmp_path / 'study').exists()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'encoders': {'rgb': 'hha_first', 'hha': 'hha_first'}},
         'encoder for rgb from the row hha_first, which reads hha;'),
        ({'network': NetworkConfig('ssma_adapnetpp')}, 'weights for the rgb encoder'),
        ({'network': NetworkConfig('cen', {'backbone': 'resnet14'})}, 'cen cannot start'),
        ({'encoders': {}, 'continues': 'rgb_first'}, 'not that of the row rgb_first'),
        ({'encoders': {'hah': 'hha_first'}}, 'encoder for hah'),
    ],
)  # fmt: skip
def test_a_row_that_cannot_start_from_another_is_named_before_any_is(
    tiny_study, tmp_path, monkeypatch, change, words
):
    monkeypatch.setattr(study_module, 'Trainer', None)
    tiny_study.rows[3] = dataclasses.replace(tiny_study.rows[3], **change)
    with pytest.raises(InputError, match=f"the study row 'fused': .*{words}"):
        study(tiny_study)
    assert not (tmp_path / 'study').exists()


def entry(row: str, seed: int, miou: float) -> dict:
    scores = {'mIoU': miou, 'pixel_accuracy': 0.5, 'mean_accuracy': 0.4}
    return {
        'row': row, 'seed': seed, 'epochs': 3, 'parameters': 2_000_000, 'gflops': 1.5,
        'scores': {'test': scores},
    }  # fmt: skip


@pytest.mark.parametrize(
    ('better', 'verdict'),
    [
        ([0.5, 0.6], 'holds'),
        ([0.5, 0.29], 'on average'),
        ([0.2, 0.4], 'does not reproduce'),
        ([0.5], 'holds (one seed)'),
        ([0.2], 'does not reproduce (one seed)'),
        ([0.3004], 'does not reproduce (one seed)'),  # +0.0, as it is shown
    ],
)
def test_a_claim_is_judged_seed_by_seed(tiny_study, better, verdict):
    entries = [entry('fused', s, x) for s, x in enumerate(better)]
    entries += [entry('rgb', s, 0.3) for s in range(3)]
    line = study_report.report(tiny_study, entries).splitlines()[-1]
    assert verdict in line
    assert f'{100 * (better[0] - 0.3):+.1f}' in line
    assert line.endswith(f'{verdict} |') or verdict == 'on average'


@pytest.mark.parametrize('better', [[0.309], [0.291], [0.32, 0.291], [0.3, 0.3]])
def test_a_small_difference_is_told_to_be_noise(tiny_study, better):
    entries = [entry('fused', s, x) for s, x in enumerate(better)]
    entries += [entry('rgb', s, 0.3) for s in range(3)]
    study = dataclasses.replace(tiny_study, noise=1.0)
    line = study_report.report(study, entries).splitlines()[-1]
    assert line.endswith('within noise (one seed) |' if len(better) == 1 else 'within noise |')


def test_bars_are_means_and_those_of_fused_networks_have_a_colour_of_their_own(tiny_study):
    figure = study_report.picture(
        tiny_study,
        [
            entry('rgb', 0, 0.3) | {'modalities': ['rgb']},
            entry('fused', 0, 0.4) | {'modalities': ['rgb', 'hha']},
            entry('fused', 1, 0.5) | {'modalities': ['rgb', 'hha']},
        ],
    )
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([30, 45])
    rgb, fused = (bar.get_facecolor() for bar in bars)
    assert fused[2] > 1.5 * fused[0]  # blue
    assert rgb[2] < 1.5 * rgb[0]


def test_the_table_names_what_it_has(tiny_study):
    runs = [entry('rgb', 0, 0.3)]
    failed = [{'row': 'fused', 'seed': 0, 'reason': 'the loss is nan'}]
    lines = study_report.report(tiny_study, runs, failed).splitlines()
    assert lines[0].startswith('| network | parameters | GFLOP |')
    assert lines[2].startswith('| RGB | 2.00 M |')
    assert lines[3].startswith('| RFBNet | | | | failed |')
    tiny_study.rows[2].paper_parameters = '1.9 M'
    lines = study_report.report(tiny_study, runs).splitlines()
    assert lines[0].startswith('| network | parameters (paper) | GFLOP |')
    assert '2.00 M (1.9 M)' in lines[2]
    assert '| not trained yet |' in lines[3]


def test_what_some_rows_know_has_columns_where_one_does(tiny_study):
    plain = [entry('rgb', seed, 0.3) for seed in (0, 1)]
    before = study_report.report(tiny_study, plain)
    both = [entry('fused', seed, 0.4) for seed in (0, 1)]
    for run, rgb, hha in zip(both, (0.2, 0.22), (0.3, 0.32), strict=True):
        run['scores']['test']['branches'] = {'rgb': {'mIoU': rgb}, 'hha': {'mIoU': hha}}
    tiny_study.rows[3].paper_branches = '49.7 / 45.1'
    head, _, rgb, fused = study_report.report(tiny_study, plain + both).splitlines()[:4]
    assert '| mIoU | of each branch (paper) | pixel acc. |' in head
    assert '| 40.0 ± 0.0 | 21.0 ± 1.4 / 31.0 ± 1.4 (49.7 / 45.1) | 50.0 ± 0.0 |' in fused
    assert '| 30.0 ± 0.0 |  | 50.0 ± 0.0 |' in rgb
    both[0]['scores']['multi_scale'] = {'mIoU': 0.45}  # of one of two seeds
    assert 'multi-scale' not in study_report.report(tiny_study, both)
    both[1]['scores']['multi_scale'] = {'mIoU': 0.45}
    lines = study_report.report(tiny_study, both).splitlines()
    assert '| of each branch (paper) | multi-scale | pixel acc. |' in lines[0]
    assert '(49.7 / 45.1) | 45.0 ± 0.0 | 50.0' in lines[3]
    assert {line.count('|') for line in lines[:4]} == {11}
    del both[0]['scores']['test']['branches']
    assert 'of each branch' not in study_report.report(tiny_study, both)
    assert study_report.report(tiny_study, plain) == before


def test_finished_rows_are_scored_once_more(tiny_study, tmp_path):
    """As they were when they were trained, and over several views, as the command does it."""
    small = {'backbone': 'resnet14', 'head_options': {'width': 8}}
    network = NetworkConfig('multimodal', small)
    tiny_study.rows = [
        RowConfig('branches', 'Two branches', network, epochs=1),
        RowConfig('later', 'Later', network, epochs=1),
    ]
    tiny_study.claims, tiny_study.record = [], str(tmp_path / 'tiny.json')
    study(tiny_study, only=['branches'])
    folder = tmp_path / 'study' / 'branches-0'
    trained = (folder / 'scores.json').read_text()
    assert set(json.loads(trained)['test']['branches']) == {'rgb', 'hha'}
    older = json.loads(trained)
    del older['test']['branches']
    older['test']['mIoU'] = 0.9
    (folder / 'scores.json').write_text(json.dumps(older))
    study(tiny_study, rescore=['branches'])
    assert json.loads((folder / 'scores.json').read_text()) == json.loads(trained)
    assert not (tmp_path / 'study' / 'later-0').exists()

    study(tiny_study, rescore=['branches'], flip=True)
    scores = json.loads((folder / 'scores.json').read_text())
    assert scores['multi_scale'].pop('views') == 'single scale and mirrored'
    assert scores['test'] == json.loads(trained)['test']

    views = {'scales': (0.5, 1.0), 'flip': True}
    study(tiny_study, rescore=['branches'], **views)
    evaluate(folder, tiny_study.run.data, tmp_path / 'report', boundary=False, pictures=0, **views)
    report = json.loads((tmp_path / 'report' / 'scores.json').read_text())
    (expected,) = report['sets'].values()
    (run,) = json.loads(Path(tiny_study.record).read_text())['runs']
    assert run['scores']['test'] == json.loads(trained)['test']
    found = run['scores']['multi_scale']
    assert 'scales 0.5, 1.0' in found['views']
    assert 'mirrored' in found['views']
    assert found['mIoU'] == expected['mIoU'] != run['scores']['test']['mIoU']
    assert found['branches'] == expected['branches']
    assert f'| {100 * found["mIoU"]:.1f} |' in (tmp_path / 'results.md').read_text()

    for options, words in (
        ({'rescore': ['branches', 'later']}, 'no finished run of later to score'),
        ({'flip': True}, 'scales and flip are of what rescore names'),
    ):
        with pytest.raises(InputError, match=words):
            study(tiny_study, **options)


def test_optional_rows_are_trained_where_they_are_named(tiny_study, monkeypatch):
    tiny_study.rows[2].optional = True  # rgb, which goes on with rgb_first
    trained = []
    monkeypatch.setattr(
        study_module, '_train_rows', lambda *arguments: trained.append(arguments[3])
    )
    study(tiny_study)
    study(tiny_study, only=['rgb'])
    assert trained == [{'rgb_first', 'hha_first', 'fused'}, {'rgb_first', 'rgb'}]
    title = f'| {tiny_study.rows[2].title} |'
    assert title not in study_report.report(tiny_study, [entry('fused', 0, 0.3)])
    assert title in study_report.report(tiny_study, [entry('rgb', 0, 0.3)])
    failed = [{'row': 'rgb', 'seed': 0, 'reason': 'the loss is nan'}]
    assert f'{title} | | | failed |' in study_report.report(tiny_study, [], failed)
    tiny_study.minutes, measured = 1e6, []
    monkeypatch.setattr(
        study_plan,
        'measured_seconds',
        lambda study, row, output: measured.append(row.name) or (1.0, 1.0),
    )
    study_plan._factor(tiny_study, Path())
    assert measured == ['rgb_first', 'hha_first', 'fused']


def test_epochs_of_rows_that_are_nowhere_are_not_known(tiny_study):
    tiny_study.rows.append(RowConfig('longer', 'RGB, longer', continues='rgb'))
    for there, expected in (
        (('rgb_first', 'rgb', 'longer'), '3 + 3 + 3'),
        (('rgb_first', 'longer'), '3 + ? + 3'),
        (('rgb', 'longer'), '? + 3 + 3'),
        (('longer',), '? + ? + 3'),
    ):
        table = study_report.report(tiny_study, [entry(row, 0, 0.3) for row in there])
        (line,) = (line for line in table.splitlines() if line.startswith('| RGB, longer'))
        assert line.split('|')[4].strip() == expected
    # A fused network starts from rows that need not be trained alike.
    unlike = [
        entry(row, 0, 0.3) | {'epochs': e} for row, e in (('rgb_first', 2), ('hha_first', 5))
    ]
    assert '| 5 + 3 |' in study_report.report(tiny_study, [*unlike, entry('fused', 0, 0.3)])


def test_bars_in_words_are_none_of_the_table(tiny_study):
    tiny_study.rows[2].title, tiny_study.claims[0].text = 'RGB | alone', '|F| helps'
    tiny_study.rows[3].title = 'a | b'
    text = study_report.report(tiny_study, [entry('rgb', 0, 0.3)])
    for line in text.splitlines():
        cells = re.split(r'(?<!\\)\|', line)
        assert not line or len(cells) in (6, 10), line
    for words in (r'| RGB \| alone |', r'| a \| b |', r'| \|F\| helps |'):
        assert words in text


def test_the_spread_is_the_sample_standard_deviation():
    assert study_report.spread([30.0, 32.0, 34.0]) == '32.0 ± 2.0'
    assert study_report.spread([30.0, 32.0, 34.0], 2) == '32.00 ± 2.00'
    assert study_report.spread([30.04]) == '30.0'


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (None, r'results\.md is not there; .*<!-- study tiny -->'),
        ('no markers', 'has no section for the study; write <!-- study tiny -->'),
        ('<!-- end of study tiny --> <!-- study tiny -->', 'has no section'),
    ],
)
def test_a_document_without_a_place_for_the_study_is_named_before_training(
    tiny_study, tmp_path, monkeypatch, text, words
):
    monkeypatch.setattr(study_module, 'Trainer', None)
    document = tmp_path / 'results.md'
    document.unlink() if text is None else document.write_text(text)
    for report_only in (False, True):
        with pytest.raises(InputError, match=words):
            study(tiny_study, report_only)
    assert not (tmp_path / 'study').exists()
    assert (document.read_text() if document.exists() else None) == text
    assert collect(tiny_study) == []


def test_a_record_keeps_results_when_the_folder_is_gone(tiny_study, tmp_path):
    tiny_study.record, output = str(tmp_path / 'kept' / 'tiny.json'), tmp_path / 'study'
    study(tiny_study)
    table, record = (
        (output / 'report.md').read_text(),
        json.loads(Path(tiny_study.record).read_text()),
    )
    assert [run['row'] for run in record['runs']] == ['rgb_first', 'hha_first', 'rgb', 'fused']
    for run in record['runs']:
        folder = output / f'{run["row"]}-0'
        scores = json.loads((folder / 'scores.json').read_text())
        assert run['scores']['test'] == scores['test']
        assert run['settings']['data.width'] == 64
        assert not {'data.cache', 'data.workers', 'data.dataset.folder'} & {*run['settings']}
    shutil.rmtree(output)
    tiny_study.output = str(tmp_path / 'elsewhere' / 'study')
    study(tiny_study, report_only=True)
    assert (tmp_path / 'elsewhere' / 'study' / 'report.md').read_text() == table
    assert json.loads(Path(tiny_study.record).read_text()) == record
    # What a row scored outlives that the study is asked about others.
    tiny_study.rows, tiny_study.claims = tiny_study.rows[:2], []
    study(tiny_study, report_only=True)
    assert json.loads(Path(tiny_study.record).read_text()) == record


def test_a_record_knows_the_defaults_that_its_runs_were_trained_with(tiny_study, tmp_path):
    @dataclasses.dataclass
    class Tomorrow(TrainConfig):
        optimiser: OptimiserConfig = dataclasses.field(
            default_factory=lambda: OptimiserConfig(power=0.5)
        )

    path = tmp_path / 'tiny.json'
    tiny_study.rows, tiny_study.claims, tiny_study.record = tiny_study.rows[:1], [], str(path)
    study(tiny_study)
    record = json.loads(path.read_text())
    assert record['defaults']['optimiser.power'] == 0.9
    assert 'optimiser.power' not in record['runs'][0]['settings']
    shutil.rmtree(tiny_study.output)
    settings = {f.name: getattr(tiny_study.run, f.name) for f in dataclasses.fields(TrainConfig)}
    tiny_study.run = Tomorrow(**settings)  # with all that was the default
    study(tiny_study, report_only=True)
    assert json.loads(path.read_text()) == record
    del settings['optimiser']
    tiny_study.run = Tomorrow(**settings)
    with pytest.raises(InputError, match=r'rgb_first with .* with another optimiser\.power than'):
        study(tiny_study, report_only=True)


def test_settings_that_came_after_a_record_have_todays_defaults_in_it(tiny_study, tmp_path):
    path = tmp_path / 'tiny.json'
    tiny_study.rows, tiny_study.claims, tiny_study.record = tiny_study.rows[:1], [], str(path)
    study(tiny_study)
    record = json.loads(path.read_text())
    shutil.rmtree(tiny_study.output)
    older = copy.deepcopy(record)
    del older['defaults']['optimiser.decay_all']
    older['defaults']['optimiser.gone'] = 3.0
    path.write_text(json.dumps(older))
    study(tiny_study, report_only=True)
    record['defaults']['optimiser.gone'] = 3.0
    assert json.loads(path.read_text()) == record


def test_rows_of_a_record_are_trained_only_where_asked_for(tiny_study, tmp_path):
    tiny_study.record, output = str(tmp_path / 'tiny.json'), tmp_path / 'study'
    with pytest.raises(InputError, match=r'no row fusd; only takes rgb_first, .* fused'):
        study(tiny_study, only=['fusd'])
    study(tiny_study, only=['rgb'])
    assert sorted(path.parent.name for path in output.glob('*/scores.json')) == [
        'rgb-0',
        'rgb_first-0',
    ]
    kept = Path(tiny_study.record).read_text()
    shutil.rmtree(output)

    tiny_study.seeds = [0, 1]  # the record's run is of the first
    study(tiny_study, only=['fused'])
    done = sorted(path.parent.name for path in output.glob('*/scores.json'))
    assert done == ['fused-0', 'fused-1', 'hha_first-0', 'rgb_first-0']
    runs = json.loads(Path(tiny_study.record).read_text())['runs']
    assert [(run['row'], run['seed']) for run in runs] == [
        ('rgb_first', 0), ('hha_first', 0), ('rgb', 0), ('fused', 0), ('fused', 1),
    ]  # fmt: skip
    assert runs[2] == json.loads(kept)['runs'][1]
    assert re.search(r'Fusion helps \| [+-]\d', (output / 'report.md').read_text())


def test_a_record_that_cannot_be_written_is_refused_before_training(
    tiny_study, tmp_path, monkeypatch
):
    monkeypatch.setattr(study_module, 'Trainer', None)
    (tmp_path / 'file').write_text('')
    for record, words in (
        (tmp_path, 'study.record .* is a folder; give the name of a file'),
        (tmp_path / 'file' / 'tiny.json', 'file cannot be a folder'),
    ):
        tiny_study.record = str(record)
        with pytest.raises(InputError, match=words):
            study(tiny_study)
    assert not (tmp_path / 'study').exists()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda record: record['runs'][0]['settings'].update({'optimiser.lr': 0.5}),
         r'rgb_first with seed 0 .* another optimiser\.lr than'),
        (lambda record: record.update(study='other'), 'is of other'),
        (lambda record: record['runs'][0].pop('scores'), 'lacks scores'),
        (lambda record: record.update(defaults=3), 'no record of a study .TypeError'),
        (lambda record: record.pop('defaults'), "no record of a study .KeyError: 'defaults'"),
        (lambda record: record.pop('runs'), "no record of a study .KeyError: 'runs'"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_is_refused_before_training(
    tiny_study, tmp_path, monkeypatch, change, words
):
    path = tmp_path / 'tiny.json'
    tiny_study.record = str(path)
    study(tiny_study, only=['rgb_first'])
    monkeypatch.setattr(study_module, 'Trainer', None)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    shutil.rmtree(tmp_path / 'study')
    with pytest.raises(InputError, match=words):
        study(tiny_study)
    assert json.loads(path.read_text()) == record
    path.write_text('{')
    with pytest.raises(InputError, match='no record of a study'):
        study(tiny_study)


def shipped_study(path: Path, kind: type = StudyConfig) -> StudyConfig | TranslationStudyConfig:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument('--config', action='config')
    parser.add_class_arguments(kind, 'study')
    return parser.instantiate(parser.parse_args(['--config', str(path)])).study


@pytest.mark.parametrize('path', PUBLISHED, ids=lambda path: path.stem)
def test_published_tables_are_those_of_the_records(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    translates = 'translation' in path.stem
    shipped = shipped_study(path, TranslationStudyConfig if translates else StudyConfig)
    shipped.output = str(tmp_path)
    if translates:
        runs = [(row, seed) for row in shipped.rows for seed in shipped.seeds]
        configs = {(row.name, seed): translation_row(shipped, row, seed) for row, seed in runs}
        expected = table(shipped, [*recorded_runs(shipped, configs).values()])
    else:
        expected = study_report.report(shipped, collect(shipped))
    published = Path(shipped.document).read_text().split(f'<!-- study {shipped.name} -->')[1]
    assert published.strip().startswith(expected.strip())


@pytest.mark.parametrize('seeds', [[0], [1], [1, 0], [0, 1]])
@pytest.mark.parametrize('path', SEGMENTATION, ids=lambda path: path.stem)
def test_a_record_holds_whatever_seeds_are_wanted_next(path, seeds, monkeypatch, tmp_path):
    """Rows that are not shown had the first seed of those days."""
    monkeypatch.chdir(ROOT)
    shipped = shipped_study(path)
    shipped.output = str(tmp_path)
    recorded = len(collect(shipped))
    shipped.seeds = seeds
    assert len(collect(shipped)) == recorded
    starting = [row for row in shipped.rows if row.encoders or row.continues]
    for row in starting:
        row.continues, row.encoders = (
            row.continues and row.name,
            dict.fromkeys(row.encoders, row.name),
        )
    with pytest.raises(InputError, match=r'another network\.init_') if starting else nullcontext():
        collect(shipped)


@pytest.mark.parametrize('path', PUBLISHED, ids=lambda path: path.stem)
def test_the_documents_of_the_shipped_studies_have_a_place_for_them(path):
    described = yaml.safe_load(path.read_text())['study']
    assert study_report.around(ROOT / described['document'], described['name'])
