from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.__main__ import main  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import save_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import DatasetConfig  # noqa: E402
from rgbd_fusion_seg.training.translation import evaluation  # noqa: E402
from rgbd_fusion_seg.training.translation.checkpoint import described  # noqa: E402
from rgbd_fusion_seg.training.translation.config import (  # noqa: E402
    GeneratorConfig,
    ImagesConfig,
    TranslationConfig,
)
from rgbd_fusion_seg.training.translation.evaluation import (  # noqa: E402
    evaluate_translation,
    score_translator,
)
from rgbd_fusion_seg.training.translation.generator import Translator  # noqa: E402
from rgbd_fusion_seg.training.translation.prepared import PreparedImages  # noqa: E402

SIDE = 32


def saved(folder: Path, inputs: list[str], targets: list[str]) -> Path:
    """Write a checkpoint of random weights."""
    config = TranslationConfig(
        inputs=inputs, targets=targets, generator=GeneratorConfig(width=8, depth=5),
        images=ImagesConfig(side=SIDE, load_side=SIDE),
    )  # fmt: skip
    torch.manual_seed(0)
    translator = Translator(config.inputs, config.targets, config.generator)
    info = {'translator': described(config), 'step': 0}
    save_checkpoint(folder / 'last.safetensors', translator, info)
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    return saved(tmp_path, ['depth', 'texture'], ['rgb'])


@pytest.fixture
def images(nyu_pack, tmp_path) -> ImagesConfig:
    return ImagesConfig(dataset=DatasetConfig(folder=str(nyu_pack)), cache=str(tmp_path / 'cache'))


def test_scores_are_those_of_every_image(monkeypatch):
    rng = np.random.default_rng(0)
    domains = {
        name: rng.integers(0, 256, (11, SIDE, SIDE, 3), dtype=np.uint8) for name in ('a', 'b', 'c')
    }
    translator = Translator(['a', 'b'], ['c', 'a'], GeneratorConfig(width=8, depth=5)).eval()
    found = score_translator(translator, PreparedImages('random', '', domains), 'cpu')
    assert {target: list(rows) for target, rows in found.items()} == {
        'c': ['a', 'b', 'ensemble'],
        'a': ['b'],
    }
    seen = {
        k: torch.from_numpy(v.transpose(0, 3, 1, 2) / 127.5 - 1).float()
        for k, v in domains.items()
    }
    with torch.no_grad():
        made = translator(seen)
    for rows, name, image, target in (
        (found['c'], 'a', made.streams[0], 'c'),
        (found['c'], 'b', made.streams[1], 'c'),
        (found['c'], 'ensemble', made.ensembles['c'], 'c'),
        (found['a'], 'b', made.streams[2], 'a'),
    ):
        difference = (image - seen[target]).numpy().astype(float)
        assert rows[name]['MAE'] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
        assert rows[name]['MSE'] == pytest.approx((difference**2).mean(), rel=1e-5)


def test_the_command_writes_scores_and_a_sheet_of_pictures(
    model, images, tmp_path, capsys, monkeypatch
):
    output = tmp_path / 'scores'
    arguments = [
        'evaluate-translation', '--model', str(model), '--output', str(output), '--pictures', '2',
        '--images.dataset.folder', images.dataset.folder, '--images.cache', images.cache,
        '--device', 'cpu',
    ]  # fmt: skip
    monkeypatch.setattr(sys, 'argv', ['training', *arguments])
    assert main() == 0
    shown = capsys.readouterr().out
    scores = json.loads((output / 'scores.json').read_text())
    assert scores['images'] == 2
    rows = scores['scores']['rgb']
    assert list(rows) == ['depth', 'texture', 'ensemble']
    for name, row in rows.items():
        assert re.search(rf'\n{name}, MAE x 100 +{100 * row["MAE"]:.2f}\n', shown)
    sheet = cv2.imread(str(output / 'rgb.jpg'))
    height, width = sheet.shape[:2]
    assert width > 6 * SIDE  # depth, texture, made from each, ensemble, real
    assert height > 2 * SIDE


def test_dropout_can_be_left_on(model, images, tmp_path):
    scores = []
    for name, dropout in (('off', False), ('again', False), ('on', True)):
        evaluate_translation(model, images, tmp_path / name, dropout=dropout, device='cpu')
        scores.append(json.loads((tmp_path / name / 'scores.json').read_text())['scores'])
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]


def test_features_of_a_file_give_distances_of_colour(model, images, tmp_path, capsys):
    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return x.float().mean((2, 3)) / 255

    path = tmp_path / 'features.pt'
    torch.jit.script(Means()).save(str(path))
    evaluate_translation(model, images, tmp_path / 'scores', inception=path, device='cpu')
    scores = json.loads((tmp_path / 'scores' / 'scores.json').read_text())['scores']['rgb']
    assert set(scores['ensemble']) == {'MAE', 'MSE', 'FID', 'KID'}
    assert scores['ensemble']['FID'] > 0
    shown = capsys.readouterr().out
    assert re.search(rf'\nensemble, FID +{scores["ensemble"]["FID"]:.2f}\n', shown)
    assert re.search(rf'\nensemble, KID x 100 +{100 * scores["ensemble"]["KID"]:.2f}\n', shown)


def test_nothing_is_scored_in_less_than_float32(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    seen, forward = [], Translator.forward

    def watched(self, batch):
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(self, batch)

    monkeypatch.setattr(Translator, 'forward', watched)
    evaluate_translation(model, images, tmp_path / 'scores', device='cpu')
    assert len(seen) == 3  # a batch, and two rows of pictures
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_scored(
    model, images, monkeypatch
):
    monkeypatch.setattr(evaluation, 'score_translator', lambda *_: pytest.fail('scored'))
    with pytest.raises(InputError, match=r'cannot be a folder, for .*last\.safetensors is a file'):
        evaluate_translation(model, images, model / 'last.safetensors')


def test_features_for_a_model_without_colour_are_refused(images, tmp_path):
    model = saved(tmp_path, ['rgb', 'texture'], ['depth', 'normal'])
    with pytest.raises(InputError, match=r'of colour, and .* makes depth, normal; leave it out'):
        evaluate_translation(model, images, inception=Path('absent.pt'), device='cpu')


@pytest.mark.parametrize('name', ['run.json', 'last.safetensors'])
def test_the_scores_of_a_run_are_not_overwritten(model, images, tmp_path, name):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / name).write_text('')
    (folder / 'scores.json').write_text('its own')
    with pytest.raises(InputError, match=rf'run holds a run \({name}\), .*such as .*run/scored$'):
        evaluate_translation(model, images, folder, device='cpu')
    assert (folder / 'scores.json').read_text() == 'its own'


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'pictures': -1}, 'pictures must be 0 or more'),
        ({'device': 'warp'}, 'the device warp cannot be used'),
        ({'inception': Path('absent.pt')}, r'absent\.pt gives no features'),
    ],
)
def test_what_cannot_be_used_is_told(model, images, options, match):
    with pytest.raises(InputError, match=match):
        evaluate_translation(model, images, **options)
