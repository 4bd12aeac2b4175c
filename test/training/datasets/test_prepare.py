from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.preprocess import hha_image

pytest.importorskip('torch')

from rgbd_fusion_seg.training import evaluation
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig, NetworkConfig, TrainConfig
from rgbd_fusion_seg.training.datasets import DATASETS, open_dataset
from rgbd_fusion_seg.training.datasets.prepare import check_data, prepare, prepare_frames
from rgbd_fusion_seg.training.datasets.synthetic_rooms import SyntheticRooms
from rgbd_fusion_seg.training.evaluation import scored_sources
from rgbd_fusion_seg.training.initialisation import bare_network
from rgbd_fusion_seg.training.inputs import whole_frames
from rgbd_fusion_seg.training.trainer import Trainer

CLASSES = ('floor', 'wall', 'chair')
RFBNET = NetworkConfig()


def write_frame(folder: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    depth = rng.integers(900, 1100, (48, 64)).astype(np.uint16)
    labels = np.zeros((48, 64), np.uint8)
    labels[:12], labels[12:18], labels[18] = 1, 2, 255
    rgb = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48))
    cv2.imwrite(f'{folder}/rgb/{number}.jpg', rgb)
    cv2.imwrite(f'{folder}/depth/{number}.png', depth)
    cv2.imwrite(f'{folder}/labels/{number}.png', labels)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    """Data without a fault: frames 0..7 to train on, 8 and 9 to test on."""
    folder = tmp_path_factory.mktemp('whole')
    for name in ('rgb', 'depth', 'labels'):
        (folder / name).mkdir()
    for number in range(10):
        write_frame(folder, number)
    camera = {'fx': 60.0, 'fy': 60.0, 'cx': 31.5, 'cy': 23.5, 'width': 64, 'height': 48}
    description = {
        'name': 'tiny', 'classes': list(CLASSES), 'depth_unit': 'mm', 'camera': camera,
        'rgb': 'rgb/*.jpg', 'depth': 'depth/*.png', 'labels': 'labels/*.png',
        'splits': {'train': 'train.txt', 'test': 'test.txt'},
    }  # fmt: skip
    (folder / 'data.yaml').write_text(yaml.safe_dump(description))
    (folder / 'train.txt').write_text('\n'.join(map(str, range(8))))
    (folder / 'test.txt').write_text('8\n9\n')
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / 'data'))


def config(folder: Path, **options) -> DataConfig:
    dataset = DatasetConfig(name='folder', folder=str(folder / 'data.yaml'))
    return DataConfig(dataset=dataset, cache=str(folder / 'cache'), **options)


def faults(folder: Path) -> list[str]:
    return check_data(config(folder)).faults


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(share * path.stat().st_size))


def test_data_without_a_fault_pass_and_class_frequencies_are_printed(whole, capsys):
    prepare(config(whole), RFBNET, check=True)
    text = capsys.readouterr().out
    assert 'no faults' in text
    assert not (whole / 'cache').exists()
    shares = {line.split()[1]: float(line.split()[2]) for line in text.splitlines() if '%' in line}
    assert shares == pytest.approx(
        {'floor': 2900 / 47, 'wall': 1200 / 47, 'chair': 600 / 47}, abs=1e-3
    )
    assert text.index('tiny-train') < text.index('tiny-test')


def test_all_faults_are_reported_each_with_its_file(copy, capsys):
    cut(copy / 'rgb/0.jpg', 0.5)
    cut(copy / 'depth/1.png', 0.9)
    (copy / 'labels/2.png').unlink()
    labels = np.full((48, 64), 3, np.uint8)
    cv2.imwrite(str(copy / 'labels/3.png'), labels)
    cv2.imwrite(str(copy / 'labels/4.png'), np.zeros((24, 32), np.uint8))
    cv2.imwrite(str(copy / 'depth/5.png'), np.full((48, 32), 1000, np.uint16))
    cv2.imwrite(str(copy / 'depth/6.png'), np.full((48, 64), 3, np.uint16))
    cv2.imwrite(str(copy / 'depth/7.png'), np.zeros((48, 64), np.uint16))
    shutil.copy(copy / 'rgb/7.jpg', copy / 'rgb/8.jpg')
    (copy / 'test.txt').write_text('8\n9\n10\n')
    with pytest.raises(InputError, match='10 faults in the data'):
        prepare(config(copy), RFBNET, check=True)
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith('fault: ')]
    expected = [
        ('tiny-train frame 0', 'rgb/0.jpg is cut short'),
        ('tiny-train frame 1', 'depth/1.png is cut short'),
        ('tiny-train frame 2', 'labels/2.png is missing'),
        ('tiny-train frame 3', 'labels/3.png has the label 3'),
        ('tiny-train frame 4', 'labels are 32x24 but colour is 64x48'),
        ('tiny-train frame 5', 'depth/5.png: depth is 32x48 but colour is 64x48'),
        ('tiny-train frame 6', 'median depth is 0.003 m'),
        ('tiny-train frame 7', 'no reading'),
        ('tiny-test frame 8', 'the same picture as tiny-train frame 7'),
        ('tiny-test frame 10', 'labels/10.png is missing'),
    ]
    assert len(found) == len(expected)
    for line, (frame, text) in zip(found, expected, strict=True):
        assert line.startswith((f'fault: {frame}: ', f'fault: {frame} shows'))
        assert text in line


def test_a_png_with_a_changed_byte_is_damaged(copy):
    data = bytearray((copy / 'labels/1.png').read_bytes())
    data[len(data) // 2] ^= 0x10
    (copy / 'labels/1.png').write_bytes(data)
    (fault,) = faults(copy)
    assert 'labels/1.png is cut short or damaged' in fault


def test_a_file_that_is_no_image_is_named(copy):
    (copy / 'rgb/1.jpg').write_text('<html>404</html>')
    (copy / 'depth/2.png').write_bytes(b'')
    first, second = faults(copy)
    assert 'rgb/1.jpg is no image' in first
    assert 'depth/2.png is cut short' in second


def test_depth_in_millimetres_taken_for_metres_is_implausible(copy):
    description = yaml.safe_load((copy / 'data.yaml').read_text())
    (copy / 'data.yaml').write_text(yaml.safe_dump({**description, 'depth_unit': 'm'}))
    found = faults(copy)
    assert len(found) == 10
    assert all('median depth' in fault and 'unit' in fault for fault in found)


def test_depth_of_a_room_ten_times_too_far_is_implausible(copy):
    for path in (copy / 'depth').iterdir():
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), depth + np.uint16(1500))  # 2.4 to 2.6 m
    assert faults(copy) == []
    description = yaml.safe_load((copy / 'data.yaml').read_text())
    (copy / 'data.yaml').write_text(yaml.safe_dump({**description, 'depth_unit': 0.01}))
    found = faults(copy)
    assert len(found) == 10
    words = r'median depth is 2[45]\.?\d* m; the unit .*, or give outdoors: true'
    assert all(re.search(words, fault) for fault in found)
    street = {**description, 'depth_unit': 0.01, 'outdoors': True}
    (copy / 'data.yaml').write_text(yaml.safe_dump(street))
    assert faults(copy) == []
    (copy / 'data.yaml').write_text(yaml.safe_dump({**street, 'depth_unit': 'm'}))
    assert all('median depth' in fault and 'outdoors' not in fault for fault in faults(copy))


def test_depth_of_8_bits_taken_for_millimetres_is_implausible(copy):
    for path in (copy / 'depth').iterdir():
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(depth > 0, 140, 0).astype(np.uint8))
    found = faults(copy)
    assert len(found) == 10
    assert all('median depth is 0.14 m' in fault for fault in found)


def test_intrinsics_in_another_unit_are_told_once_a_split(copy):
    description = yaml.safe_load((copy / 'data.yaml').read_text())
    description['camera'] |= {'fx': 0.06, 'fy': 0.06}  # of images 64 pixels wide
    (copy / 'data.yaml').write_text(yaml.safe_dump(description))
    train, test = faults(copy)
    for fault, where in ((train, 'tiny-train frame 0'), (test, 'tiny-test frame 8')):
        assert fault.startswith(f'{where}: its camera has a field of view of 180 by 180 degrees')
        assert 'pixels' in fault


def test_a_camera_of_another_size_is_named_with_the_image(copy):
    description = yaml.safe_load((copy / 'data.yaml').read_text())
    description['camera'] |= {'width': 32, 'height': 24}
    (copy / 'data.yaml').write_text(yaml.safe_dump(description))
    first, *_ = faults(copy)
    assert f'{copy}/data.yaml: camera is 32x24 but {copy}/rgb/0.jpg is 64x48' in first


def test_the_description_is_asked_for_where_a_folder_is_given(copy):
    dataset = DatasetConfig(name='folder', folder=str(copy))
    (fault,) = check_data(DataConfig(dataset=dataset)).faults
    assert f'{copy} is a folder' in fault
    assert '--data.dataset.folder' in fault


def test_both_splits_are_checked_where_one_cannot_be_opened(copy):
    (copy / 'train.txt').write_text('\n')
    cut(copy / 'rgb/9.jpg', 0.7)
    first, second = faults(copy)
    assert "split 'train' has no frames" in first
    assert 'rgb/9.jpg' in second


def test_a_fault_of_the_description_counts_once(copy):
    description = yaml.safe_load((copy / 'data.yaml').read_text())
    (copy / 'data.yaml').write_text(yaml.safe_dump({**description, 'depth_unit': 'cm'}))
    (fault,) = faults(copy)
    assert "depth_unit is 'cm'" in fault


def test_a_frame_in_both_lists_is_a_fault(copy):
    (copy / 'test.txt').write_text('8\n3\n')
    (fault,) = faults(copy)
    assert 'tiny-test frame 3 shows the same picture as tiny-train frame 3' in fault


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_split_without_a_label_is_a_fault(copy, split):
    for number in (copy / f'{split}.txt').read_text().split():
        cv2.imwrite(str(copy / f'labels/{number}.png'), np.full((48, 64), 255, np.uint8))
    (fault,) = faults(copy)
    assert f'no pixel of tiny-{split} has a class' in fault
    with pytest.raises(InputError, match=f'no pixel of tiny-{split} has a class'):
        prepare_frames(config(copy), bare_network(RFBNET))


def test_a_split_of_one_class_is_a_fault(copy):
    for number in (copy / 'train.txt').read_text().split():
        cv2.imwrite(str(copy / f'labels/{number}.png'), np.ones((48, 64), np.uint8))
    (fault,) = faults(copy)
    assert 'all labelled pixels of tiny-train are of one class' in fault
    with pytest.raises(InputError, match='of tiny-train are of one class'):
        prepare_frames(config(copy), bare_network(RFBNET))


def test_classes_that_never_occur_are_named(copy, capsys):
    description = yaml.safe_load((copy / 'data.yaml').read_text())
    description['classes'] += ['door', 'lamp']
    (copy / 'data.yaml').write_text(yaml.safe_dump(description))
    for check in (True, False):
        prepare(config(copy), RFBNET, check=check)
        assert capsys.readouterr().out.count('never: door, lamp\n') == 2


def test_two_equal_pictures_within_a_split_are_none(copy):
    shutil.copy(copy / 'rgb/1.jpg', copy / 'rgb/2.jpg')
    assert faults(copy) == []


@pytest.mark.parametrize(
    ('network', 'sizes'),
    [
        (RFBNET, [16, 32, 64]),
        (NetworkConfig('erfnet_encoder', {'modality': 'rgb'}), [16, 32]),
        (NetworkConfig('erfnet_encoder', {'modality': 'depth'}), [16, 32, 64]),
    ],
)
def test_prepare_makes_the_caches_that_training_opens(copy, capsys, monkeypatch, network, sizes):
    """At the size of its views, and only what the network reads."""
    data = config(copy, width=64, height=48)
    prepare(data, network)
    assert 'tiny-train: 8 frames' in capsys.readouterr().out
    monkeypatch.setattr(DATASETS['folder'], '__getitem__', None)
    run = TrainConfig(str(copy / 'run'), network=network, data=data, accelerator='cpu')
    frames = Trainer(run).frames
    assert list(frames) == ['train', 'test']
    assert [len(part) for part in frames.values()] == [8, 2]
    assert frames['train'].classes.names == CLASSES
    assert [level.shape[2] for level in frames['train'].hha] == sizes


@pytest.mark.parametrize('name', ['rfbnet_erfnet', 'erfnet_encoder'])
def test_frames_smaller_than_the_input_have_the_hha_of_the_runtime(copy, name):
    """Frames half as wide as the depth input; the runtime computes HHA at the full input size."""
    options = {'modality': 'hha'} if name == 'erfnet_encoder' else {}
    network = bare_network(NetworkConfig(name, options))
    k = 4 if network.shrink_depth else 2
    data = config(copy, width=64 * k, height=48 * k, stereo_share=0.5, stereo_test=True)
    frames = prepare_frames(data, network)
    assert list(frames) == ['train', 'test', 'stereo', 'stereo_test']
    sizes = network.input_sizes(data.height, data.width)
    assert sizes['hha'] == (96, 128)
    for split in ('train', 'test'):
        assert [level.shape[2] for level in frames[split].hha] == [16, 32, 128]
        source = open_dataset(data.dataset, split)
        for i, batch in enumerate(whole_frames(frames[split], sizes, 'cpu')):
            frame = source[i].frame
            expected = hha_image(frame.depth, frame.intrinsics, 128, 96)
            np.testing.assert_array_equal(batch['hha'][0].permute(1, 2, 0).numpy(), expected)


def test_prepare_refuses_a_size_that_training_would_refuse(copy):
    with pytest.raises(InputError, match=r'rfbnet_erfnet needs data\.width .* multiples of 16'):
        prepare(config(copy, width=60, height=44), RFBNET)
    assert not (copy / 'cache').exists()


def test_synthetic_rooms_join_data_of_the_nyu40_classes(nyu_pack, tmp_path):
    dataset = DatasetConfig(folder=str(nyu_pack))
    options = {'dataset': dataset, 'cache': str(tmp_path), 'synthetic_test_frames': 0}
    data = DataConfig(synthetic_frames=2, width=160, height=120, **options)
    frames = prepare_frames(data, bare_network(RFBNET))
    assert {name: len(part) for name, part in frames.items()} == {
        'train': 6, 'test': 2, 'synthetic': 2,
    }  # fmt: skip
    for part in frames.values():
        assert [level.shape[2] for level in part.hha] == [80, 160, 320]


def test_rooms_that_no_view_is_drawn_from_are_not_rendered(nyu_pack, tmp_path):
    dataset, cache = DatasetConfig(folder=str(nyu_pack)), tmp_path / 'cache'
    data = DataConfig(dataset, 2, 0.0, 1, cache=str(cache), width=64, height=48)
    run = TrainConfig(str(tmp_path / 'run'), network=RFBNET, data=data, accelerator='cpu')
    trainer = Trainer(run)
    assert list(trainer.frames) == ['train', 'test', 'synthetic_test']
    assert not list(cache.glob('synthetic-0-*'))
    assert [entry['name'] for entry in trainer.info()['data']] == ['nyudv2-train']


def test_the_name_of_other_classes_brings_no_rooms(copy):
    description = yaml.safe_load((copy / 'data.yaml').read_text())
    (copy / 'data.yaml').write_text(yaml.safe_dump({**description, 'name': 'nyu40'}))
    assert set(prepare_frames(config(copy), bare_network(RFBNET))) == {'train', 'test'}


@pytest.mark.parametrize('asked', ['synthetic_frames', 'synthetic_test_frames'])
def test_rooms_that_were_asked_for_besides_other_classes_are_refused(copy, asked):
    data = config(copy, **{asked: 2})
    words = rf'data\.{asked} is 2, but .* the classes of NYU40, other ones than tiny'
    with pytest.raises(InputError, match=words):
        prepare_frames(data, bare_network(RFBNET))
    with pytest.raises(InputError, match=words):
        scored_sources(data)
    (fault,) = check_data(data).faults
    assert re.match(words, fault)


def test_what_is_scored_is_named_by_data_set_and_split(copy, nyu_pack):
    def sizes(data: DataConfig) -> dict[str, int]:
        return {name: len(source) for name, source in scored_sources(data).items()}

    assert sizes(config(copy)) == {'tiny_test': 2}
    dataset = DatasetConfig(folder=str(nyu_pack), test_split='train')
    expected = {'nyudv2_train': 6, 'synthetic_test': 3}
    assert sizes(DataConfig(dataset, synthetic_test_frames=3)) == expected
    rooms = DatasetConfig('synthetic', options={'test_frames': 2})
    assert sizes(DataConfig(rooms, synthetic_test_frames=3)) == {'synthetic_test': 2}


@pytest.mark.parametrize(('name', 'split'), [('scannet', 'val'), ('cityscapes', 'val')])
def test_what_is_scored_by_default_is_named_by_the_split_of_its_reader(monkeypatch, name, split):
    monkeypatch.setattr(evaluation, 'open_dataset', lambda *args: SyntheticRooms(2))
    data = DataConfig(DatasetConfig(name), synthetic_test_frames=0, stereo_test=True)
    assert list(scored_sources(data)) == [f'{name}_{split}', f'{name}_{split}_stereo']
    data.dataset.test_split = 'train'
    assert list(scored_sources(data)) == [f'{name}_train', f'{name}_train_stereo']


def test_a_data_set_is_opened_by_name_with_its_options(nyu_pack):
    assert len(open_dataset(DatasetConfig(folder=str(nyu_pack)), 'test')) == 2
    swapped = DatasetConfig(folder=str(nyu_pack), train_split='test', test_split='train')
    assert open_dataset(swapped, 'train').name == 'nyudv2-test'
    rooms = DatasetConfig('synthetic', options={'train_frames': 5, 'test_frames': 3})
    assert [len(open_dataset(rooms, split)) for split in ('train', 'test')] == [5, 3]
    with pytest.raises(InputError, match=r"no data set 'nyu'; .* nyudv2, "):
        open_dataset(DatasetConfig('nyu'), 'train')
    with pytest.raises(InputError, match="no option 'dept'; it has depth, labels, depth_scale"):
        open_dataset(DatasetConfig(folder=str(nyu_pack), options={'dept': 'raw'}), 'train')


@pytest.mark.parametrize('frames', ['abc', -5, [3]])
def test_options_of_the_wrong_kind_are_named(frames):
    rooms = DatasetConfig('synthetic', options={'train_frames': frames})
    with pytest.raises(InputError, match=r"train_frames.* of the data set 'synthetic' cannot be"):
        open_dataset(rooms, 'train')


@pytest.mark.parametrize('name', DATASETS)
def test_every_reader_keeps_to_the_form(name, tmp_path):
    """An unknown split or folder is an error of the user's; train and test are among SPLITS."""
    reader = DATASETS[name]
    if reader.SPLITS:
        assert {reader.TRAIN_SPLIT, reader.TEST_SPLIT} <= set(reader.SPLITS)
    with pytest.raises(InputError):
        open_dataset(DatasetConfig(name, str(tmp_path / 'absent'), train_split='no such'), 'train')
    if name != 'synthetic':
        with pytest.raises(InputError, match='absent'):
            reader(tmp_path / 'absent', reader.TRAIN_SPLIT)
