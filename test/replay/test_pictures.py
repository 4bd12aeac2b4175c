from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.replay.pictures import (
    StampedVideoWriter,
    VideoWriter,
    contact_sheet,
    depth_picture,
    evenly,
    main_classes,
    video_rate_hz,
    write_image,
)


def test_paths_that_are_no_unicode(tmp_path):
    """OpenCV crashes on them."""
    folder = tmp_path / os.fsdecode(b'caf\xe9')
    folder.mkdir()
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_image(folder / 'a.png', image)
    stored = np.frombuffer((folder / 'a.png').read_bytes(), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(stored, cv2.IMREAD_UNCHANGED), image)
    with (
        pytest.raises(InputError, match='is not in UTF-8'),
        VideoWriter(folder / 'a.mp4', 30) as video,
    ):
        video.write(np.zeros((16, 16, 3), np.uint8))


def test_video_holds_what_was_written(tmp_path):
    path = tmp_path / 'v.mp4'
    colors = [(220, 30, 30), (30, 200, 30), (30, 30, 220)]
    with VideoWriter(path, rate_hz=10) as video:
        for color in colors:
            video.write(np.full((49, 65, 3), color, np.uint8))
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    for color in colors:
        ok, bgr = capture.read()
        assert ok
        assert bgr.shape == (48, 64, 3)
        # MPEG-4 is lossy and stores 16..235.
        assert np.abs(bgr[..., ::-1].mean(axis=(0, 1)) - color).max() < 12
    assert not capture.read()[0]


@pytest.mark.parametrize('shape', [(1, 1000), (40, 1), (1, 1)])
def test_images_of_a_line_of_pixels(tmp_path, shape):
    image = np.full((*shape, 3), 90, np.uint8)
    with VideoWriter(tmp_path / 'v.mp4', 10) as video:
        video.write(image)
    ok, bgr = cv2.VideoCapture(str(tmp_path / 'v.mp4')).read()
    assert ok
    assert bgr.shape == (*(max(16, pixels) for pixels in shape), 3)
    sheet = contact_sheet([[image]], ['a'])
    assert (sheet == 90).all(axis=2).sum() >= 320
    assert sheet.shape[0] < 2000


@pytest.mark.parametrize('count', [1, 2, 5, 40])
def test_stamped_video_holds_all_images(tmp_path, count):
    path = tmp_path / 'v.mp4'
    video = StampedVideoWriter(path)
    for index in range(count):
        video.write(np.full((48, 64, 3), 6 * index, np.uint8), 10**9 + index * 125_000_000)
    video.close()
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == (8 if count > 1 else 30)
    for index in range(count):
        ok, bgr = capture.read()
        assert ok
        assert abs(bgr.mean() - 6 * index) < 4
    assert not capture.read()[0]


def test_stamped_video_without_images(tmp_path):
    StampedVideoWriter(tmp_path / 'v.mp4').close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('stamps_s', 'expected'),
    [
        ([0, 0.1, 0.2, 5, 5.1], 10),  # a pause
        ([8, 8.2, 8.4, 0, 0.2], 5),  # a recording that starts again
        ([1, 1, 1], 30),
        ([0, 60, 120], 1),
        ([0, 0.0001, 0.0002], 120),
        ([0, 0.03337, 0.06674], 29.97),
    ],
)
def test_video_rate(stamps_s, expected):
    assert video_rate_hz([round(s * 1e9) for s in stamps_s]) == expected


def test_video_that_cannot_be_written(tmp_path):
    with (
        VideoWriter(tmp_path / 'absent' / 'v.mp4', 10) as video,
        pytest.raises(InputError, match=r'v\.mp4 cannot be written.*without a video'),
    ):
        video.write(np.zeros((48, 64, 3), np.uint8))


def test_contact_sheet_places_every_image():
    shades = [[10, 60], [110, 160], [210, 240]]
    rows = [[np.full((60, 80, 3), s, np.uint8) for s in row] for row in shades]
    legend = np.full((30, 50, 3), (255, 0, 255), np.uint8)
    sheet = contact_sheet(rows, ['left', 'right'], legend, width=40)
    for shade in np.ravel(shades):
        ys, xs = np.nonzero((sheet == shade).all(axis=2))
        block = sheet[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        # The anti-aliased headings have greys of their own, far from a whole image.
        assert (block == shade).all(axis=2).sum() >= 30 * 40
    order = [tuple(np.argwhere((sheet == s).all(axis=2)).mean(axis=0)) for s in (60, 160)]
    assert order[0][0] < order[1][0]
    assert ((sheet == (255, 0, 255)).all(axis=2)).sum() == legend.shape[0] * legend.shape[1]


def test_contact_sheet_refuses_gaps():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match='moments of 2 images'):
        contact_sheet([[image]], ['a', 'b'])
    with pytest.raises(InputError, match='moments'):
        contact_sheet([], ['a'])


def test_depth_picture_shows_holes_black():
    depth = np.array([[0.0, np.nan, np.inf, -1.0], [0.5, 2.0, 5.0, 50.0]], np.float32)
    picture = depth_picture(depth)
    assert not picture[0].any()
    assert picture[1].any(axis=1).all()
    red, blue = picture[1, :3, 0].astype(int), picture[1, :3, 2].astype(int)
    assert red[0] > blue[0]
    assert blue[2] > red[2]


def test_write_image_keeps_rgb_order(tmp_path):
    write_image(tmp_path / 'a.png', np.full((4, 5, 3), (1, 2, 3), np.uint8))
    assert (cv2.imread(str(tmp_path / 'a.png')) == (3, 2, 1)).all()
    with pytest.raises(InputError, match=r'absent/a\.png cannot be written; .*folder.*space left'):
        write_image(tmp_path / 'absent' / 'a.png', np.zeros((4, 5, 3), np.uint8))


@pytest.mark.parametrize(
    ('count', 'wanted', 'expected'),
    [(1, 6, [0]), (3, 6, [0, 1, 2]), (11, 6, [0, 2, 4, 6, 8, 10]), (100, 2, [0, 99])],
)
def test_evenly(count, wanted, expected):
    assert evenly(count, wanted) == expected


def test_main_classes():
    pixels = np.array([5000, 0, 3000, 1, 2000])
    assert main_classes(pixels).tolist() == [0, 2, 4]
    assert main_classes(np.arange(30)).tolist() == list(range(10, 30))
    assert main_classes(np.array([998, 2])).tolist() == [0]
    assert main_classes(np.array([997, 3])).tolist() == [0, 1]
