from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from rgbd_fusion_seg.errors import InputError, TrainingError  # noqa: E402
from rgbd_fusion_seg.palette import NYU40_CLASSES, NYU40_COLORS  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import (  # noqa: E402
    class_entries,
    load_checkpoint,
    read_checkpoint,
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
        'width': 320,
        'height': 240,
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
        (SafetensorError('I/O error: no space'), 'I/O error: no space.; free some space'),
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


@pytest.mark.parametrize(
    'what', ['network', 'options', 'classes', 'statistics', 'width', 'height']
)
def test_a_checkpoint_that_tells_too_little_is_named(tmp_path, what):
    partial = {k: v for k, v in info().items() if k != what}
    save_checkpoint(tmp_path / 'c.safetensors', build_network('erfnet_encoder', 4), partial)
    with pytest.raises(InputError, match=f'does not tell its {what};'):
        load_checkpoint(tmp_path / 'c.safetensors')


def test_halved_weights_are_kernels_alone_and_read_as_floats(tmp_path):
    network = build_network('erfnet_encoder', 4)
    for name, value in network.state_dict().items():
        if name.endswith('running_var'):
            value.fill_(1e6)  # beyond what sixteen bits hold
    save_checkpoint(tmp_path / 'c.safetensors', network, info(), halved=True)
    stored, read = (
        load_file(tmp_path / 'c.safetensors'),
        read_checkpoint(tmp_path / 'c.safetensors'),
    )
    for name, value in network.state_dict().items():
        halved = value.ndim > 1
        assert stored[name].dtype == (torch.float16 if halved else value.dtype), name
        expected = value.half().float() if halved else value
        torch.testing.assert_close(read[0][name], expected, rtol=0, atol=0, msg=name)
