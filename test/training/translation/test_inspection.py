from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.__main__ import main  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import save_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.translation.checkpoint import described  # noqa: E402
from rgbd_fusion_seg.training.translation.config import (  # noqa: E402
    GeneratorConfig,
    ImagesConfig,
    TranslationConfig,
)
from rgbd_fusion_seg.training.translation.generator import Translator  # noqa: E402
from rgbd_fusion_seg.training.translation.inspection import inspect_translation  # noqa: E402

PICTURES = {'gammas.png', 'exchanged.png', 'proportions.png'}


def saved(folder: Path, inputs, targets, small=(), **options) -> Path:
    """Write a checkpoint with scales of 1 but for the ``small``: part, layer, stream, channels."""
    config = TranslationConfig(
        inputs=list(inputs), targets=list(targets), images=ImagesConfig(side=32),
        generator=GeneratorConfig(width=8, depth=5, **options),
    )  # fmt: skip
    torch.manual_seed(0)
    translator = Translator(config.inputs, config.targets, config.generator)
    for part, layer, stream, channels in small:
        norms = getattr(translator, f'{part}_norms')[layer]
        norms.of(stream).weight.data[channels] = 0.0
    folder.mkdir(exist_ok=True)
    save_checkpoint(
        folder / 'last.safetensors', translator, {'translator': described(config), 'step': 7}
    )
    return folder


def told(folder: Path) -> dict:
    """Return summary.json of a group whose pictures are all there."""
    page = (folder / 'summary.md').read_text()
    for name in (part.partition(')')[0] for part in page.split('](')[1:]):
        assert (cv2.imread(str(folder / name)) < 200).any(-1).mean() > 0.01, name
    return json.loads((folder / 'summary.json').read_text())


def test_a_translator_is_told_layer_by_layer(tmp_path, monkeypatch):
    # Of 16, 32 and 64 channels; the first half of the first stream's is penalised.
    small = [('encoder', 1, 0, [0, 1, 15]), ('encoder', 2, 1, [31]), ('encoder', 3, 0, [0])]
    run = saved(tmp_path / 'run', ['shade', 'texture'], ['rgb'], small)
    monkeypatch.setattr(sys, 'argv', ['training', 'inspect-translation', '--model', str(run)])
    assert main() == 0
    folder = run / 'inspection' / 'to_rgb'
    summary = told(folder)
    assert {path.name for path in folder.glob('*.png')} == PICTURES
    assert list(summary['blocks']) == ['encoder 2', 'encoder 3', 'encoder 4']
    for layer, stream, exchanged, penalised in (
        ('encoder 2', 'shade', 3 / 16, 2 / 8),
        ('encoder 2', 'texture', 0, 0),
        ('encoder 3', 'shade', 0, 0),
        ('encoder 3', 'texture', 1 / 32, 1 / 16),
        ('encoder 4', 'shade', 1 / 64, 1 / 32),
    ):
        found = summary['blocks'][layer][stream]
        assert found['exchanged'] == pytest.approx(exchanged)
        assert found['penalised_below_threshold'] == pytest.approx(penalised)
    assert summary['whole']['shade']['exchanged'] == pytest.approx(4 / 112)
    assert summary['ensemble'] == pytest.approx({'shade': 0.5, 'texture': 0.5})
    page = (folder / 'summary.md').read_text()
    assert '| shade: channels exchanged, percent | 18.8 | 0.0 | 1.6 | 3.6 |' in page


def test_streams_are_told_with_those_that_they_exchange_with(tmp_path):
    # Streams in order: a to c, b to c, a to d, b to d. Decoders' layers have 64, 32, 16, 8.
    small = [('decoder', 0, 2, [5]), ('encoder', 1, 3, [2, 3])]
    options = {'exchange_decoders': True, 'decoders': 'per_target'}
    run = saved(tmp_path, ['a', 'b'], ['c', 'd'], small, **options)
    inspect_translation(run, tmp_path / 'out')
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'to_c', 'to_d', 'from_a', 'from_b'
    }  # fmt: skip
    shares = {
        name: {
            k: v['exchanged'] for k, v in told(tmp_path / 'out' / name)['blocks'][layer].items()
        }
        for name, layer in (
            ('to_c', 'encoder 2'),
            ('to_d', 'encoder 2'),
            ('from_a', 'decoder 1'),
            ('from_b', 'decoder 1'),
        )
    }
    assert shares == {
        'to_c': {'a': 0, 'b': 0},
        'to_d': {'a': 0, 'b': 2 / 16},
        'from_a': {'c': 0, 'd': 1 / 64},
        'from_b': {'c': 0, 'd': 0},
    }


@pytest.mark.parametrize(
    ('inputs', 'targets', 'options', 'folders'),
    [
        (['a'], ['c', 'd'], {'fusion': 'none', 'exchange_decoders': True}, {'from_a'}),
        (['a', 'c'], ['d', 'c'], {}, {'to_d'}),
        (['a', 'c'], ['d', 'c'], {'fusion': 'none'}, {'to_c', 'to_d'}),
    ],
)
def test_there_is_a_folder_for_each_group_that_exchanges(
    tmp_path, inputs, targets, options, folders
):
    inspect_translation(saved(tmp_path, inputs, targets, **options))
    assert {path.name for path in (tmp_path / 'inspection').iterdir()} == folders


def test_without_exchange_the_norms_of_the_encoders_are_told(tmp_path):
    run = saved(tmp_path, ['a', 'b'], ['c'], fusion='none')
    inspect_translation(run)
    folder = tmp_path / 'inspection' / 'to_c'
    summary = told(folder)
    assert {path.name for path in folder.glob('*.png')} == PICTURES - {'exchanged.png'}
    assert list(summary['blocks']) == ['encoder 2', 'encoder 3', 'encoder 4']
    assert summary['whole']['a'] == {'channels': 112, 'median': 1.0}
    assert 'No channels are exchanged here' in (folder / 'summary.md').read_text()


def test_the_papers_form_is_told_to_look_at_the_sign(tmp_path):
    inspect_translation(saved(tmp_path, ['a', 'b'], ['c'], form='paper'))
    page = (tmp_path / 'inspection' / 'to_c' / 'summary.md').read_text()
    assert 'so negative ones are too' in page


def test_a_segmentation_network_is_refused(tmp_path):
    path = tmp_path / 'last.safetensors'
    save_checkpoint(path, torch.nn.Linear(2, 2), {'network': 'erfnet'})
    with pytest.raises(InputError, match='is of a segmentation network, not of a translator'):
        inspect_translation(path)
