from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from png_files import png

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.replay.output_folder import OutputFolder
from rgbd_fusion_seg.replay.truth import TruthFolder, TruthScores, truth_of_topic

from .bag_camera import Camera

CLASSES = ('wall', 'floor', 'chair')
# Nine and 300 are no classes; 256 is 0 in its lower 8 bits.
TRUTH = {
    'a': np.array([[0, 1, 1, 255]], np.uint8),
    'b': np.array([[0, 0, 0, 0, 0, 0, 1, 9]], np.uint8),
    'c': np.array([[256, 300]], np.uint16),
}
LABELS = {
    'a': np.array([[0, 0, 1, 1]], np.uint8),
    'b': np.array([[0, 0, 0, 0, 0, 0, 0, 1]], np.uint8),
    'c': np.array([[0, 1]], np.uint8),
    'without truth': np.array([[1, 1]], np.uint8),
}


def write_truth(folder: Path, **images: np.ndarray) -> TruthFolder:
    for name, image in images.items():
        assert cv2.imwrite(str(folder / f'{name}.png'), image)
    return TruthFolder(folder, list(images))


def test_scores_by_hand(tmp_path):
    scores = TruthScores(write_truth(tmp_path, **TRUTH), CLASSES)
    for name, labels in LABELS.items():
        scores.add(name, labels)
    rows = scores.rows()
    assert rows['frames scored'] == 3
    # 2 of 3 pixels of a, 6 of 7 of b; the mean of the frames would be 76 %.
    assert rows['pixel accuracy (%)'] == pytest.approx(80)
    assert rows['mean accuracy (%)'] == pytest.approx(100 * (7 / 7 + 1 / 3) / 2)
    assert rows['mIoU (%)'] == pytest.approx(100 * (7 / 9 + 1 / 3) / 2)
    iou = scores.iou_rows()
    assert list(iou) == list(CLASSES)
    assert iou['wall'] == pytest.approx(100 * 7 / 9)
    assert iou['floor'] == pytest.approx(100 / 3)
    assert math.isnan(iou['chair'])


def test_returns_the_truth_and_void_where_there_is_none(tmp_path):
    scores = TruthScores(write_truth(tmp_path, **TRUTH), CLASSES)
    returned = {name: scores.add(name, labels) for name, labels in LABELS.items()}
    for name in ('a', 'b'):
        np.testing.assert_array_equal(returned[name], TRUTH[name])
    for name in ('c', 'without truth'):
        np.testing.assert_array_equal(returned[name], [[255, 255]])
    assert all(truth.dtype == np.uint8 for truth in returned.values())


def test_nothing_scored_is_told(tmp_path):
    scores = TruthScores(write_truth(tmp_path, a=TRUTH['a']), CLASSES)
    scores.add('b', LABELS['b'])
    with pytest.raises(InputError, match=f'no frame .* has a truth in {tmp_path}'):
        scores.rows()


@pytest.mark.parametrize(('bits', 'kind'), [(1, 0), (4, 0), (2, 3), (8, 3)])
def test_numbers_of_few_bits_and_palettes_are_kept(tmp_path, bits, kind):
    values = (np.arange(6).reshape(2, 3) % 2**bits).astype(np.uint8)
    (tmp_path / 'a.png').write_bytes(png(values, bits, kind))
    read = TruthFolder(tmp_path, ['a']).read('a', (2, 3))
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        (np.zeros((2, 4), np.uint8), 'is 4x2 but its frame is 3x2'),
        (np.zeros((3, 2), np.uint8), 'is 2x3 but its frame is 3x2'),
        (np.zeros((2, 3, 3), np.uint8), 'has 3 channels'),
        (b'no image', 'is no image that can be read'),
        (b'', 'is cut short or damaged'),
    ],
)
def test_files_that_are_no_truth_are_named(tmp_path, content, sentence):
    path = tmp_path / 'a.png'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        cv2.imwrite(str(path), content)
    with pytest.raises(InputError, match=sentence) as caught:
        TruthFolder(tmp_path, ['a']).read('a', (2, 3))
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_folder_without_truth_of_the_frames_is_refused(tmp_path):
    with pytest.raises(InputError, match=r'there is no folder .*absent; give'):
        TruthFolder(tmp_path / 'absent', ['f0'])
    with pytest.raises(InputError, match=r'none of the 2 frames .* holds no \.png; .* f0\.png'):
        TruthFolder(tmp_path, ['f0', 'f1'])
    write_truth(tmp_path, g0=TRUTH['a'])
    (tmp_path / '._g0.png').touch()  # by macOS
    with pytest.raises(InputError, match=r'none of the 2 frames .* holds g0\.png; .* f0\.png'):
        TruthFolder(tmp_path, ['f0', 'f1'])
    TruthFolder(tmp_path, ['f0', 'g0'])


def write_bag(path: Path, images: list[tuple[int, str, np.ndarray]]) -> Path:
    with Camera(path) as camera:
        for stamp, encoding, pixels in images:
            camera.image('/labels', stamp, pixels, encoding)
        camera.image('/rgb', 5, np.zeros((2, 2, 3), np.uint8), 'rgb8')
    return path


def test_a_topic_of_label_images_is_found_by_stamp(tmp_path, caplog):
    values = np.array([[0, 1, 2], [300, 255, 7]], np.uint16)
    bag = write_bag(
        tmp_path / 'bag',
        [
            (7 * 10**9, 'mono8', np.full((2, 3), 3, np.uint8)),
            (8 * 10**9, '32FC1', np.zeros((2, 3), np.float32)),
            (5 * 10**9 + 1, '16UC1', values),
        ],
    )
    truth = truth_of_topic(bag, '/labels', tmp_path / 'workspace')
    read = truth.read('frame-000000', (2, 3), 5 * 10**9 + 1)
    np.testing.assert_array_equal(read, np.minimum(values, 255))
    assert (truth.read('frame-000000', (2, 3), 7 * 10**9) == 3).all()
    assert truth.read('frame-000000', (2, 3), 8 * 10**9) is None
    assert "/labels has the encoding '32FC1', which holds no class ids" in caplog.text


def one_label(label: int) -> np.ndarray:
    return np.full((2, 3), label, np.uint8)


def write_run(folder: Path, frames: dict[str, int]) -> Path:
    """Write a run whose frames have these stamps, each labelled by its place."""
    output = OutputFolder(folder)
    for index, (name, stamp) in enumerate(frames.items()):
        path, _ = output.add(name, stamp)
        assert cv2.imwrite(str(path), one_label(index))
    return folder / 'labels'


def test_frames_of_one_stamp_are_known_by_name(tmp_path):
    """A driver that stamps nothing; then a recording that was played twice."""
    for stamps in ([0, 0, 0], [5, 9, 5]):
        frames = {f'frame-{i}': stamp for i, stamp in enumerate(stamps)}
        folder = write_run(tmp_path / str(stamps), frames)
        scores = TruthScores(TruthFolder(folder, list(frames)), CLASSES)
        for index, (name, stamp) in enumerate(frames.items()):
            scores.add(name, one_label(index), stamp)
        assert scores.rows()['pixel accuracy (%)'] == 100
        assert scores.rows()['frames scored'] == 3


def test_a_stamp_of_several_truths_that_no_name_tells_is_refused(tmp_path):
    folder = write_run(tmp_path / 'run', {'a': 5, 'b': 9, 'c': 5})
    truth = TruthFolder(folder, ['a'])
    assert (truth.read('frame-7', (2, 3), 9) == 1).all()
    for name in ('b', 'frame-7'):
        with pytest.raises(InputError, match=rf'{folder} has several truths of the stamp 5 ns'):
            truth.read(name, (2, 3), 5)


def test_a_topic_with_several_label_images_of_a_stamp(tmp_path):
    twice = [(5, 'mono8', one_label(1)), (6, 'mono8', one_label(2))] * 2
    truth = truth_of_topic(write_bag(tmp_path / 'bag', twice), '/labels', tmp_path / 'equal')
    assert [truth.read('', (2, 3), stamp)[0, 0] for stamp in (5, 6)] == [1, 2]
    twice[3] = (6, 'mono8', one_label(0))
    bag = write_bag(tmp_path / 'other', twice)
    with pytest.raises(InputError, match=r'/labels of .*other has several truths of the stamp 6'):
        truth_of_topic(bag, '/labels', tmp_path / 'other_workspace').read('', (2, 3), 6)


def test_of_many_unusable_label_images_ten_are_told_and_all_are_counted(tmp_path, caplog):
    color = np.zeros((2, 3, 3), np.uint8)
    images = [(index, 'rgb8', color) for index in range(25)] + [(99, 'mono8', one_label(1))]
    truth_of_topic(write_bag(tmp_path / 'bag', images), '/labels', tmp_path / 'workspace')
    *sentences, total = (record.getMessage() for record in caplog.records)
    assert len(sentences) == 10
    assert all("has the encoding 'rgb8'" in sentence for sentence in sentences)
    assert total == f'{tmp_path / "bag"}: 25 truths on /labels were skipped'


def test_topics_without_truth_are_told(tmp_path):
    bag = write_bag(tmp_path / 'bag', [])
    with pytest.raises(InputError, match=r'has no images on /labels; name one of /rgb'):
        truth_of_topic(bag, '/labels', tmp_path / 'workspace')
    with pytest.raises(InputError, match=r"no usable label image on /rgb: .*'rgb8', which holds"):
        truth_of_topic(bag, '/rgb', tmp_path / 'workspace')
