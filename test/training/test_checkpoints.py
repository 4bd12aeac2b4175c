from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError, TrainingError  # noqa: E402
from rgbd_fusion_seg.palette import NYU40_CLASSES, NYU40_COLORS  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import (  # noqa: E402
    class_entries,
    load_checkpoint,
    save_checkpoint,
    write_output,
)
from rgbd_fusion_seg.training.datasets.base import ClassSet  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network  # noqa: E402


def info(**changes) -> dict:
    classes = ClassSet('nyu40', NYU40_CLASSES, NYU40_COLORS)
    entries = {
        'network': 'rfbnet_erfnet',
        'options': {'gates': False},
        'classes': class_entries(classes),
        'statistics': {'rgb': [[1, 2, 3], [4, 5, 6]], 'hha': [[1, 2, 3], [4, 5, 6]]},
    }
    return {**entries, **changes}


def test_checkpoints_rebuild_the_network(tmp_path):
    network = build_network('rfbnet_erfnet', 40, gates=False).eval()
    save_checkpoint(tmp_path / 'c.safetensors', network, info())
    checkpoint = load_checkpoint(tmp_path / 'c.safetensors')
    x = {'rgb': torch.rand(1, 3, 32, 32), 'hha': torch.rand(1, 3, 16, 16)}
    with torch.no_grad():
        torch.testing.assert_close(network(x), checkpoint.build()(x))
    assert checkpoint.classes.names == NYU40_CLASSES
    assert (checkpoint.classes.colors == NYU40_COLORS).all()
    assert checkpoint.info['statistics'] == info()['statistics']


def test_what_a_killed_run_left_of_a_file_is_overwritten(tmp_path):
    (tmp_path / 'file.partial').write_text('half of a larg')
    write_output(tmp_path / 'file', lambda part: part.write_text('whole'))
    assert (tmp_path / 'file').read_text() == 'whole'
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (OSError(28, 'No space left on device'), 'No space left on device.; free some space'),
        (OSError(13, 'Permission denied'), 'Permission denied.; mend that'),
    ],
)
def test_what_kept_a_file_from_being_written_is_told(tmp_path, error, words):
    def fails(part):
        raise error

    with pytest.raises(TrainingError, match=words):
        write_output(tmp_path / 'file', fails)


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    (tmp_path / 'x.safetensors').write_bytes(b'nonsense')
    for name in ('x.safetensors', 'absent.safetensors'):
        with pytest.raises(InputError, match=name):
            load_checkpoint(tmp_path / name)


def test_a_checkpoint_that_tells_too_little_is_named(tmp_path):
    partial = {k: v for k, v in info().items() if k != 'classes'}
    save_checkpoint(tmp_path / 'c.safetensors', build_network('erfnet_encoder', 4), partial)
    with pytest.raises(InputError, match='does not tell its classes'):
        load_checkpoint(tmp_path / 'c.safetensors')
