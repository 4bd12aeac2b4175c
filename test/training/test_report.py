from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest

pytest.importorskip('matplotlib')
pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.palette import NYU40_CLASSES, NYU40_COLORS
from rgbd_fusion_seg.training import report
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame
from rgbd_fusion_seg.training.metrics import BoundaryScores, SetScores

THREE = ClassSet('three', ('wall', 'floor', 'dragon'), np.eye(3, dtype=np.uint8) * 255)


def three_scores(name: str = 'toy_test') -> SetScores:
    return SetScores(
        name=name,
        classes=THREE,
        terms='made by a test',
        size=(40, 30),
        indices=np.array([0, 2]),
        accuracy=np.array([0.75, np.nan]),
        matrix=np.array([[6, 3, 0, 1], [0, 10, 0, 0], [0, 0, 0, 0]]),
        boundary=BoundaryScores(0.25, np.array([0.5, 0.0, np.nan])),
    )


def test_the_report_tells_numbers_and_what_was_measured(tmp_path):
    model = {'path': 'models/tiny', 'sha256': 'abc'}
    report.write_report(tmp_path / 'new', model, 'care', 'python x', [three_scores()])
    body = json.loads((tmp_path / 'new' / 'scores.json').read_text())
    assert body['model'] == model
    assert (body['command'], body['measured_with']) == ('python x', 'care')
    scores = body['sets']['toy_test']
    assert scores['pixel_accuracy'] == 0.8
    assert scores['boundary_f'] == 0.25
    assert scores['frame_accuracy'] == {'0': 0.75, '2': None}
    wall, floor, dragon = scores['classes']
    assert wall == {
        'class': 'wall', 'frequency': 0.5, 'iou': 0.6, 'accuracy': 0.6, 'precision': 1.0,
        'boundary_f': 0.5, 'taken_for': {'class': 'floor', 'share': 0.3},
    }  # fmt: skip
    assert floor['precision'] == pytest.approx(10 / 13, abs=1e-4)
    assert dragon['iou'] is None
    assert 'taken_for' not in floor
    page = (tmp_path / 'new' / 'report.md').read_text()
    assert '| wall | 50.0 | 60.0 | 60.0 | 100.0 | 50.0 | floor (30 %) |' in page
    assert '| dragon | 0.0 | – | – | – | – |  |' in page
    assert '| toy_test | 2 |' in page
    for words in ('abc', 'python x', 'care', 'made by a test', '40x30'):
        assert words in page


def test_bars_in_names_are_none_of_the_table(tmp_path):
    scores = three_scores()
    names = ('wall | other', 'a|b', 'dragon')
    scores = dataclasses.replace(scores, classes=ClassSet('bars', names, THREE.colors))
    report.write_report(tmp_path, {'path': 'x'}, 'care', 'python x', [scores])
    lines = (tmp_path / 'report.md').read_text().splitlines()
    row = next(line for line in lines if line.startswith('| wall'))
    assert row == r'| wall \| other | 50.0 | 60.0 | 60.0 | 100.0 | 50.0 | a\|b (30 %) |'


def test_the_page_links_the_pictures_that_there_are(tmp_path):
    (tmp_path / 'toy_test' / 'worst').mkdir(parents=True)
    (tmp_path / 'toy_test' / 'worst' / '01-frame00002.jpg').touch()
    report.write_report(tmp_path, {'path': 'm'}, '', '', [three_scores(), three_scores('other')])
    page = (tmp_path / 'report.md').read_text()
    assert '(toy_test/worst/01-frame00002.jpg)' in page
    assert 'Best' not in page
    for link in ('toy_test/confusion.png', 'other/confusion.png'):
        assert f'({link})' in page
        assert (tmp_path / link).is_file()


def test_the_confusion_plot_shows_each_row_in_its_place(tmp_path):
    k = 40
    matrix = np.zeros((k, k + 1), int)
    matrix[np.arange(k), (np.arange(k) * 7) % k] = 100
    matrix[4] = 0
    classes = ClassSet('nyu40', NYU40_CLASSES, NYU40_COLORS)
    scores = SetScores('x', classes, '', None, np.arange(1), np.ones(1), matrix, None)
    report.write_confusion(tmp_path / 'plot.png', scores)
    image = cv2.imread(str(tmp_path / 'plot.png')).astype(int)
    assert min(image.shape[:2]) > 1000  # names of 40 classes must be legible
    # Full cells are the only dark blue ones, one in each row but the empty one; and a larger
    # piece of the colour bar.
    blue = (image[..., 0] > 90) & (image[..., 2] < 30) & (image[..., 0] - image[..., 2] > 70)
    _, _, stats, centres = cv2.connectedComponentsWithStats(blue.astype(np.uint8), connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    cells = centres[(area > 300) & (area < 1000)]
    assert len(cells) == k - 1
    rows = [y for y in range(k) if y != 4]
    step = (cells[:, 1].max() - cells[:, 1].min()) / (k - 1)
    y = np.rint((cells[:, 1] - cells[:, 1].min()) / step).astype(int)
    x = np.rint((cells[:, 0] - cells[:, 0].min()) / step).astype(int)
    assert sorted(zip(y, x, strict=True)) == sorted((r, r * 7 % k) for r in rows)


@pytest.fixture
def item() -> LabelledFrame:
    rgb = np.full((30, 40, 3), (200, 100, 50), np.uint8)
    camera = Intrinsics(30.0, 30.0, 20.0, 15.0, 40, 30)
    truth = np.zeros((30, 40), np.uint8)
    truth[:5], truth[20:] = 255, 1
    return LabelledFrame(RgbdFrame(rgb, np.ones((30, 40), np.float32), camera), truth)


def test_errors_are_red_and_void_is_black(item):
    labels = np.zeros((30, 40), np.uint8)
    labels[10:15, :7] = 255
    picture = report.error_map(item.frame.rgb, labels, item.labels, 3)
    wrong = (item.labels != 255) & (labels != item.labels)
    assert wrong.sum() == 10 * 40 + 5 * 7
    red = picture[..., 0].astype(int) - picture[..., 1] > 80
    np.testing.assert_array_equal(red, wrong)
    np.testing.assert_array_equal((picture == 0).all(-1), item.labels == 255)
    right = picture[~wrong & (item.labels != 255)]
    assert (right == right[:, :1]).all()


def test_a_frame_is_drawn_as_four_pictures(item, tmp_path, monkeypatch):
    sheets = []
    real = report.contact_sheet
    monkeypatch.setattr(
        report, 'contact_sheet', lambda *a, **k: sheets.append((a, k)) or real(*a, **k)
    )
    labels = np.zeros((30, 40), np.uint8)
    report.write_frame(tmp_path / 'a' / 'x.png', item, labels, THREE, '17, f17')
    assert cv2.imread(str(tmp_path / 'a' / 'x.png')) is not None
    ([row], headings, _), _ = sheets[0]
    assert len(row) == len(headings) == 4
    assert '17' in headings[0]
    assert '60.0%' in headings[3]
    np.testing.assert_array_equal(row[0], item.frame.rgb)
    assert (row[1][25, 5] != row[2][25, 5]).any()
    np.testing.assert_array_equal(row[1][10], row[2][10])


def test_a_folder_that_cannot_be_written_is_named(item, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(InputError, match='file'):
        report.write_report(tmp_path / 'file', {'path': 'm'}, '', '', [three_scores()])
    with pytest.raises(InputError, match='file'):
        report.write_frame(tmp_path / 'file' / 'x.png', item, item.labels, THREE, 0)
