from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.errors import DivergenceError, InputError  # noqa: E402
from rgbd_fusion_seg.file_lock import file_lock  # noqa: E402
from rgbd_fusion_seg.training.config import DatasetConfig  # noqa: E402
from rgbd_fusion_seg.training.run_lock import lock_of  # noqa: E402
from rgbd_fusion_seg.training.translation import evaluation  # noqa: E402
from rgbd_fusion_seg.training.translation import study as module  # noqa: E402
from rgbd_fusion_seg.training.translation.config import (  # noqa: E402
    GeneratorConfig,
    ImagesConfig,
    TranslationConfig,
)
from rgbd_fusion_seg.training.translation.evaluation import evaluate_translation  # noqa: E402
from rgbd_fusion_seg.training.translation.study import (  # noqa: E402
    RowConfig,
    TranslationStudyConfig,
    study_translation,
)
from rgbd_fusion_seg.training.translation.trainer import TranslationTrainer  # noqa: E402

MARKERS = '# Results\n<!-- study tiny -->\nold\n<!-- end of study tiny -->\nend\n'


@pytest.fixture
def study(nyu_pack, tmp_path) -> TranslationStudyConfig:
    document = tmp_path / 'results.md'
    document.write_text(MARKERS)
    images = ImagesConfig(
        dataset=DatasetConfig(folder=str(nyu_pack)), cache=str(tmp_path / 'cache'), side=32,
        load_side=32, workers=0,
    )  # fmt: skip
    run = TranslationConfig(
        images=images, batch_size=3, epochs=1, precision='32-true', accelerator='cpu',
        generator=GeneratorConfig(width=8, depth=5), discriminator_width=8,
    )  # fmt: skip
    rows = [
        RowConfig('apart', 'two branches', ['depth', 'texture'], ['rgb'], {'fusion': 'none'}),
        RowConfig(
            'tasks', 'CEN, decoders', ['rgb'], ['depth', 'normal'],
            {'fusion': 'none', 'exchange_decoders': True, 'decoders': 'per_target'},
            {'depth': '4.82 / 8.50'},
        ),
    ]  # fmt: skip
    return TranslationStudyConfig(
        'tiny',
        str(tmp_path / 'runs'),
        [0],
        run,
        rows,
        str(document),
        str(tmp_path / 'record.json'),
    )


def table(study: TranslationStudyConfig) -> list[list[str]]:
    text = Path(study.document).read_text()
    assert text.startswith('# Results\n<!-- study tiny -->\n')
    assert text.endswith('<!-- end of study tiny -->\nend\n')
    rows = [line for line in text.splitlines() if line.startswith('| ')]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows[1:]]


def test_rows_are_trained_once_and_told(study, monkeypatch):
    study_translation(study, only=['tasks'])
    rows = table(study)
    assert [row[:2] for row in rows] == [
        ['two branches', 'depth + texture → rgb'],
        ['CEN, decoders', 'rgb → depth'],
        ['CEN, decoders', 'rgb → normal'],
    ]
    assert rows[0][3] == 'not trained yet'
    assert rows[1][6] == '4.82 / 8.50'
    study_translation(study)
    monkeypatch.setattr(TranslationTrainer, 'fit', lambda self: pytest.fail('trained again'))
    study_translation(study)
    scores = json.loads((Path(study.output) / 'apart-0' / 'scores.json').read_text())['scores']
    row = table(study)[0]
    values = scores['rgb']
    assert row[3] == ', '.join(f'{100 * values[name]["MAE"]:.2f}' for name in ('depth', 'texture'))
    error = values['ensemble']
    assert row[4:6] == [f'{100 * error["MAE"]:.2f}', f'{100 * error["MSE"] ** 0.5:.2f}']
    assert not (Path(study.output) / 'apart-0' / 'resume.ckpt').exists()


def test_errors_are_told_to_their_last_digit(study):
    study.rows = study.rows[:1]
    study_translation(study)
    path = Path(study.output) / 'apart-0' / 'scores.json'
    scores = json.loads(path.read_text())
    scores['scores']['rgb']['ensemble']['MSE'] = 0.000657013  # of 0.00066 the root is 2.57
    path.write_text(json.dumps(scores))
    study_translation(study, report_only=True)
    assert table(study)[0][5] == '2.56'


def test_optional_rows_are_trained_where_they_are_named(study):
    study.rows[0].optional = True
    study_translation(study)
    assert {row[0] for row in table(study)} == {'CEN, decoders'}
    assert not (Path(study.output) / 'apart-0').exists()
    study_translation(study, only=['apart'])
    assert {row[0] for row in table(study)} == {'two branches', 'CEN, decoders'}


class Means(torch.nn.Module):
    """Stands for Inception: an image's mean colour, in the form of NVIDIA's file."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return x.float().mean((2, 3)) / 255


@pytest.fixture
def inception(tmp_path) -> str:
    path = tmp_path / 'inception.pt'
    torch.jit.script(Means()).save(str(path))
    return str(path)


def test_rows_to_colour_are_scored_by_an_inception_network(
    study, inception, tmp_path, monkeypatch
):
    study_translation(study)
    document, record, plain = Path(study.document), Path(study.record), table(study)
    before = document.read_text(), record.read_text()
    study.inception = inception
    study_translation(study, report_only=True)  # scores nothing
    assert (document.read_text(), record.read_text()) == before
    monkeypatch.setattr(TranslationTrainer, 'fit', lambda self: pytest.fail('trained again'))
    study_translation(study)
    text, rows = document.read_text(), table(study)
    assert '| MAE | RMSE | FID | KID | in the paper |\n' in text
    evaluate_translation(
        Path(study.output) / 'apart-0', study.run.images, tmp_path / 'scored', Path(inception),
        device='cpu',
    )  # fmt: skip
    scores = json.loads((tmp_path / 'scored' / 'scores.json').read_text())['scores']
    expected = scores['rgb']['ensemble']
    assert rows[0][6:8] == [f'{expected["FID"]:.2f}', f'{100 * expected["KID"]:.2f}']
    assert [row[6:8] for row in rows[1:]] == [['', ''], ['', '']]
    assert [row[:6] + row[8:] for row in rows] == plain
    monkeypatch.setattr(module, 'evaluate_translation', lambda *_, **__: pytest.fail('again'))
    study_translation(study)
    study.output, study.inception = str(tmp_path / 'elsewhere'), ''  # from the record
    study_translation(study, report_only=True)
    assert document.read_text() == text


def test_finished_rows_that_are_not_named_are_scored_too(study, inception, monkeypatch):
    study.rows[0].optional = True
    study_translation(study, only=['apart'])
    study.inception = inception
    monkeypatch.setattr(TranslationTrainer, 'fit', lambda self: False)  # as if a signal came
    study_translation(study)
    assert table(study)[0][6]
    assert not (Path(study.output) / 'tasks-0' / 'scores.json').exists()


def test_what_an_inception_network_told_elsewhere_stays_in_the_record(study, inception):
    study.rows, study.inception = study.rows[:1], inception
    study_translation(study)
    measured, folder = table(study), Path(study.output) / 'apart-0'
    assert measured[0][6]
    shutil.rmtree(folder / 'colour')
    study.inception = ''
    for _ in range(2):
        study_translation(study, report_only=True)
        assert table(study) == measured
    scores = json.loads((folder / 'scores.json').read_text())
    scores['scores']['rgb']['ensemble']['MAE'] += 1e-4  # of other weights
    (folder / 'scores.json').write_text(json.dumps(scores))
    study_translation(study, report_only=True)
    assert 'FID' not in Path(study.document).read_text()


def test_a_file_that_is_no_inception_network_is_told_before_the_first_is_trained(study, tmp_path):
    study.inception = str(tmp_path / 'absent.pt')
    with pytest.raises(InputError, match=r'absent\.pt gives no features'):
        study_translation(study)
    assert not Path(study.output).exists()


def test_a_row_that_another_process_trains_is_left_to_it(study):
    Path(study.output).mkdir()
    with file_lock(lock_of(Path(study.output) / 'apart-0')):
        study_translation(study)
    assert [row[3] == 'not trained yet' for row in table(study)] == [True, False, False]
    study_translation(study)
    assert all('not trained yet' not in row for row in table(study))


def test_the_record_keeps_rows_whose_folders_are_gone(study, tmp_path):
    study_translation(study)
    before = table(study)
    other = tmp_path / 'elsewhere'
    study.output = str(other)
    study_translation(study, report_only=True)
    assert table(study) == before
    runs = json.loads(Path(study.record).read_text())['runs']
    assert [(run['row'], run['epochs']) for run in runs] == [('apart', 1), ('tasks', 1)]


def test_a_row_has_settings_of_its_run(study):
    study.rows = study.rows[:1]
    study.rows[0].targets, study.rows[0].run = ['rgb', 'depth'], {'flows': 'one'}
    study_translation(study)
    settings = json.loads(Path(study.record).read_text())['runs'][0]['settings']
    assert settings['flows'] == 'one'
    study.rows[0].run.clear()
    with pytest.raises(InputError, match='was trained with another flows than'):
        study_translation(study)


def test_several_seeds_are_their_mean_and_its_spread(study):
    study.rows, study.seeds = study.rows[:1], [0, 1]
    study_translation(study)
    maes = [
        json.loads((Path(study.output) / f'apart-{seed}' / 'scores.json').read_text())
        for seed in (0, 1)
    ]
    values = [100 * x['scores']['rgb']['ensemble']['MAE'] for x in maes]
    mean, deviation = sum(values) / 2, abs(values[0] - values[1]) / math.sqrt(2)
    assert table(study)[0][4] == f'{mean:.2f} ± {deviation:.2f}'


def test_a_row_that_diverges_does_not_end_the_others(study, monkeypatch, capsys):
    fit = TranslationTrainer.fit

    def diverges(self):
        if 'apart' in str(self.folder):
            raise DivergenceError('a loss is not finite near step 10')
        return fit(self)

    monkeypatch.setattr(TranslationTrainer, 'fit', diverges)
    words = (
        'apart diverged and stand in no table; give the study a lower run.lr with another output'
    )
    with pytest.raises(DivergenceError, match=words) as caught:
        study_translation(study)
    assert 'and record' in str(caught.value)
    assert 'apart, seed 0 failed: a loss is not finite' in capsys.readouterr().out
    assert [row[3] == 'not trained yet' for row in table(study)] == [True, False, False]


def test_a_row_that_cannot_be_scored_does_not_end_the_others(
    study, inception, monkeypatch, capsys
):
    study.inception = inception
    prepared = evaluation.prepared_images

    def one(*arguments):
        found = prepared(*arguments)
        return dataclasses.replace(found, domains={k: x[:1] for k, x in found.domains.items()})

    monkeypatch.setattr(evaluation, 'prepared_images', one)
    reason = 'FID and KID compare distributions, and there is 1 image; give two'
    for _ in range(2):  # all are trained, and then told again
        with pytest.raises(InputError, match=f'^apart stand in the table without .*: {reason}'):
            study_translation(study)
        assert f'apart, seed 0 has no FID and KID: {reason}' in capsys.readouterr().out
        assert all('not trained yet' not in row for row in table(study))
        monkeypatch.setattr(TranslationTrainer, 'fit', lambda self: pytest.fail('trained again'))


def test_a_signal_ends_the_study_after_saving(study, monkeypatch):
    monkeypatch.setattr(TranslationTrainer, 'fit', lambda self: False)
    monkeypatch.setattr(
        module, 'write_results', lambda *_: pytest.fail('told of an unfinished run')
    )
    study_translation(study)


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        ('{"study": "other", "defaults": {}, "runs": []}', 'it is of other'),
        (
            '{"study": "tiny", "defaults": {}, "runs": [{"row": "apart"}]}',
            'it lacks epochs, parameters',
        ),
        ('no json', 'is no record of a study'),
    ],
)
def test_another_file_is_not_taken_for_the_record(study, content, match):
    Path(study.record).write_text(content)
    with pytest.raises(InputError, match=match):
        study_translation(study)
    assert not Path(study.output).exists()
    Path(study.record).unlink()
    Path(study.record).mkdir()
    with pytest.raises(InputError, match=r'record\.json is a folder'):
        study_translation(study)


def test_a_run_of_another_budget_is_not_taken_for_one_of_the_study(study):
    study.rows = study.rows[:1]
    study_translation(study)
    settings = json.loads(Path(study.record).read_text())['runs'][0]['settings']
    assert settings['precision'] == '32-true'
    assert 'accelerator' not in settings
    study.run.max_minutes = 5.0
    with pytest.raises(InputError, match=r'study\.record .* with another max_minutes than'):
        study_translation(study)
    study.record = ''
    with pytest.raises(InputError, match='apart-0 holds a run with another max_minutes; move'):
        study_translation(study)
    study.run.max_minutes, study.run.precision = 0.0, 'bf16-mixed'
    study_translation(study, report_only=True)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (
            lambda s: (
                s.rows[0].generator.update(fusion='align') or setattr(s.run, 'batch_size', 1)
            ),
            'the row apart: fusion align .* make batch_size 2 or more for each process',
        ),
        (lambda s: s.rows[1].generator.update(colour=1), 'the row tasks: run has .*colour'),
        (lambda s: s.rows[1].generator.update(width='abc'), 'the row tasks: run has .*width.*abc'),
        (lambda s: s.rows[1].generator.update(dropout=None), "run has a null .*'dropout': None"),
        (lambda s: s.rows[1].generator.update(fusion='sum'), 'fusion one of'),
        (lambda s: s.rows[1].run.update(flows='one'), 'flows all for generator.exchange_decoders'),
        (lambda s: s.rows[1].run.update(lr=1.0), 'the row tasks sets lr of its run, which all'),
        (
            lambda s: s.rows[0].generator.update(exchange_decoders=True),
            'the row apart: .*two targets',
        ),
        (lambda s: s.rows[1].inputs.clear(), 'the row tasks: .*inputs must be one or more'),
        (lambda s: s.rows[1].inputs.append('heat'), 'the row tasks: .*heat'),
        (lambda s: Path(s.document).write_text('no markers'), 'has no section for the study'),
    ],
)
def test_a_mistake_in_any_row_is_told_before_the_first_is_trained(study, change, match):
    change(study)
    with pytest.raises(InputError, match=match):
        study_translation(study)
    assert not Path(study.output).exists()


def test_figures_of_the_paper_are_of_targets(study):
    with pytest.raises(InputError, match=r"paper that are targets, but .*paper is {'depht': '3'}"):
        dataclasses.replace(study.rows[1], paper={'depht': '3'})


def test_rows_of_one_name_are_refused_in_a_sentence(study):
    with pytest.raises(InputError, match=r'must have one of rows at least, of different names$'):
        dataclasses.replace(study, rows=study.rows[:1] * 2)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'seeds': []}, 'one of seeds at least'),
        ({'seeds': [-1]}, r'seeds from 0 to 2\*\*32 - 1, but seeds is \[-1\]'),
        ({'seeds': [2**32]}, r'seeds from 0 to 2\*\*32 - 1'),
        ({'seeds': [0, 0]}, r'seeds that differ, but seeds is \[0, 0\]'),
        ({'output': ''}, 'an output folder'),
        ({'name': 'a/b'}, 'a name that a file can have'),
    ],
)
def test_settings_that_no_study_can_have_are_told(study, changes, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(study, **changes)


def test_scores_without_settings_are_not_taken_for_a_finished_run(study):
    folder = Path(study.output) / 'apart-0'
    folder.mkdir(parents=True)
    (folder / 'scores.json').write_text('{}')
    with pytest.raises(
        InputError, match=r'apart-0 has scores but no run\.json; delete the folder'
    ):
        study_translation(study)


def test_other_settings_than_those_of_finished_runs_are_refused(study):
    study.rows = study.rows[:1]
    study_translation(study)
    study.run.lr = 1e-3
    with pytest.raises(InputError, match=r'apart in study\.record .* with another lr than'):
        study_translation(study, report_only=True)
    Path(study.record).unlink()
    with pytest.raises(InputError, match='apart-0 holds a run with another lr; move it away'):
        study_translation(study)
    with pytest.raises(InputError, match='the study tiny has no row nobody'):
        study_translation(study, only=['nobody'])
