"""What cannot be trained on is told in one sentence before a training starts."""

from __future__ import annotations

import shutil

import cv2
import pytest

torch = pytest.importorskip('torch')

from tiny_checkpoints import CLASSES, tiny_checkpoint  # noqa: E402

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.__main__ import main  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import save_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import NetworkConfig  # noqa: E402
from rgbd_fusion_seg.training.initialisation import make_network, starts  # noqa: E402

SMALL = {'backbone': 'resnet14', 'head_options': {'width': 8}}
ALL = ['rgb', 'hha', 'depth']


@pytest.mark.parametrize(
    ('name', 'options', 'words'),
    [
        ('cen', {'modalities': ['rgb']}, r"two or more modalities, got \['rgb'\]"),
        ('asymfusion', {'modalities': ['hha']}, r"two or more modalities .* got \['hha'\]"),
        ('cen', {'modalities': []}, 'two or more modalities'),
        ('multimodal', {'modalities': []}, 'modalities must be .* at least one'),
        ('multimodal', {'modalities': ['rgb', 'rgb']}, 'modalities must be different ones of'),
        ('multimodal', {'modalities': ['rgb', 'lidar']}, 'modalities must be .* of rgb, hha'),
        ('multimodal', {'ensemble': 'median'}, 'ensemble must be one of softmax, mean, concat'),
        ('cen', {'modalities': ['rgb', 'rgb']}, 'different ones of rgb, hha, depth'),
        ('cen', {'modalities': ['rgb', 'thermal']}, 'rgb, hha, depth'),
        ('cen', {'modalities': ALL}, '64 channels .* 3 equal parts.*nearly_equal'),
        ('cen', {'modalities': ALL, 'form': 'paper'}, '64 channels .* 3 equal parts'),
        ('cen', {'threshold': -0.02}, r'threshold must be finite and not negative, got -0\.02'),
        ('cen', {'sparsity': -1e-4}, r'sparsity must be finite and not negative, got -0\.0001'),
        ('cen', {'threshold': float('nan')}, 'threshold must be finite and not negative, got nan'),
        ('cen', {'exchange': 'fixed', 'portion': 0.6}, 'portion must be 0 to 1/2'),
        ('cen', {'shrink_depth': True}, 'shrink_depth'),
        ('cen', {'head_options': {'width': 0}}, 'width of the head must be at least 1, got 0'),
        ('cen', {'head': 'deeplabv3plus', 'head_options': {'width': -4}}, 'width .* got -4'),
        ('cen', {'head_options': {'width': 1.5}}, r'width of the head refinenet .* int, got 1\.5'),
        ('cen', {'head_options': {'width': 'x'}}, "width of the head refinenet .* int, got 'x'"),
        (
            'cen',
            {'head': 'pspnet', 'head_options': {'width': 64}},
            "the head pspnet has no option 'width'; it has dropout, auxiliary, private_norms",
        ),
        (
            'asymfusion',
            {'head': 'pspnet', 'head_options': {'dropout': float('nan')}},
            'dropout of the head must be 0 to 1, got nan',
        ),
        ('cen', {'head': 'unet'}, 'head must be one of refinenet'),
        ('cen', {'backbone': 'vgg16'}, 'backbone must be one of .*resnet50'),
    ],
)
def test_networks_that_cannot_be_are_one_sentence(name, options, words):
    with pytest.raises(InputError, match=words) as caught:
        make_network(NetworkConfig(name=name, options={**SMALL, **options}), ('a', 'b', 'c'), [])
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('options', [{}, {'share_norms': True, 'ensemble': 'mean'}])
def test_a_checkpoint_of_another_number_of_modalities_is_refused(tmp_path, options):
    """Also where every tensor would fit, for all of them are shared."""
    path = tmp_path / 'two.safetensors'
    checkpoint = tiny_checkpoint('cen', {**SMALL, **options})
    save_checkpoint(path, checkpoint.build(), checkpoint.info)
    three = {**SMALL, **options, 'modalities': ALL, 'parts': 'nearly_equal'}
    config = NetworkConfig('cen', three, init_from=str(path))
    with pytest.raises(InputError, match=r'2 modalities \(rgb, hha\).* 3 \(rgb, hha, depth\)'):
        make_network(config, CLASSES.names, starts(config))
    # Colour and depth in metres may start from colour and HHA.
    other = {**SMALL, **options, 'modalities': ['rgb', 'depth']}
    config = NetworkConfig('cen', other, init_from=str(path))
    network = make_network(config, CLASSES.names, starts(config))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, checkpoint.weights[key], rtol=0, atol=0)


def depth_is_absent(pack):
    (pack / 'depth8' / '0003.png').unlink()


def depth_is_smaller(pack):
    path = str(pack / 'depth8' / '0003.png')
    cv2.imwrite(path, cv2.imread(path, cv2.IMREAD_UNCHANGED)[::2, ::2])


def depth_is_empty(pack):
    for path in (pack / 'depth8').iterdir():
        cv2.imwrite(str(path), 0 * cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def colour_is_absent(pack):
    (pack / 'rgb' / '0003.jpg').unlink()


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (depth_is_absent, 'depth8/0003.png'),
        (depth_is_smaller, '320x240'),
        (depth_is_empty, 'no depth image of nyudv2-train has a reading'),
        (colour_is_absent, 'rgb/0003.jpg'),
    ],
)
@pytest.mark.parametrize('modality', ['hha', 'depth'])
def test_frames_that_lack_a_modality_end_the_command(
    nyu_pack, tmp_path, monkeypatch, capfd, spoil, words, modality
):
    pack = tmp_path / 'pack'
    shutil.copytree(nyu_pack, pack)
    spoil(pack)
    options = f'{{modalities: [rgb, {modality}], backbone: resnet14, head_options: {{width: 8}}}}'
    arguments = [
        'train', '--run.network.name', 'cen', '--run.network.options', options,
        '--run.data.dataset.folder', str(pack), '--run.data.cache', str(tmp_path / 'cache'),
        '--run.data.width', '64', '--run.data.height', '48', '--run.precision', '32-true',
        '--run.data.synthetic_frames', '0', '--run.data.synthetic_test_frames', '0',
        '--run.accelerator', 'cpu', '--run.output', str(tmp_path / 'run'),
    ]  # fmt: skip
    monkeypatch.setattr('sys.argv', ['training', *arguments])
    assert main() == 1
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(told) == 1
    assert words in told[0]
    assert not (tmp_path / 'run').exists()
