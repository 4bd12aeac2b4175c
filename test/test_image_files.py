from __future__ import annotations

import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from png_files import png

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.image_files import read_labels, read_plane, read_rgb
from rgbd_fusion_seg.replay.messages import color_from_message


@pytest.mark.parametrize('kind', [0, 3], ids=['grey', 'palette'])
@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_a_mask_of_few_bits_gives_its_numbers(tmp_path, kind, bits):
    values = np.arange(24 * 32).reshape(24, 32).astype(np.uint8) % min(2**bits, 200)
    path = tmp_path / 'mask.png'
    path.write_bytes(png(values, bits, kind))
    spread = 1 if kind == 3 or bits in (1, 8) else 255 // (2**bits - 1)
    np.testing.assert_array_equal(np.asarray(Image.open(path)) // spread, values)
    np.testing.assert_array_equal(read_plane(path), values)


def test_labels_are_integers(tmp_path):
    path = tmp_path / 'labels.tiff'
    for dtype in (np.uint8, np.uint16):
        values = np.arange(12, dtype=dtype).reshape(3, 4) * dtype(20)
        cv2.imwrite(str(path), values)
        labels = read_labels(path)
        assert labels.dtype == dtype
        np.testing.assert_array_equal(labels, values)
    cv2.imwrite(str(path), np.ones((3, 4), np.float32))
    with pytest.raises(InputError, match=r'labels\.tiff holds float32; save labels as an 8 or 16'):
        read_labels(path)


@pytest.mark.parametrize('read', [read_rgb, read_plane])
def test_a_header_that_claims_too_many_pixels_is_told(tmp_path, read):
    image = png(np.zeros((1, 1), np.uint8), 8, 0)
    header = b'IHDR' + 2 * (60_000).to_bytes(4, 'big') + image[24:29]
    path = tmp_path / 'huge.png'
    path.write_bytes(image[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + image[33:])
    with pytest.raises(InputError, match=r'huge\.png is no image that can be read'):
        read(path)


def test_colour_is_not_turned_by_a_tag(tmp_path):
    """Neither depth and labels nor the calibration would be."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255
    upside_down = b'II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0'
    segment = b'Exif\0\0' + upside_down
    tag = b'\xff\xe1' + (len(segment) + 2).to_bytes(2, 'big') + segment
    jpeg = cv2.imencode('.jpg', image)[1].tobytes()
    path = tmp_path / 'a.jpg'
    path.write_bytes(jpeg[:2] + tag + jpeg[2:])
    assert cv2.imread(str(path), cv2.IMREAD_COLOR)[:6].mean() < 10  # OpenCV obeys the tag
    assert read_rgb(path)[:6].mean() > 245
    message = SimpleNamespace(format='jpeg', data=np.frombuffer(path.read_bytes(), np.uint8))
    assert color_from_message(message, '/c')[:6].mean() > 245


def test_a_jpeg_is_whole_when_its_own_scan_ends(tmp_path):
    """Not that of the thumbnail in its header, and whatever a camera writes behind it."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    jpeg = cv2.imencode('.jpg', image)[1].tobytes()
    thumbnail = cv2.imencode('.jpg', image[::4, ::4])[1].tobytes()
    segment = b'\xff\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    path = tmp_path / 'a.jpg'
    for whole in (jpeg, jpeg[:2] + segment + jpeg[2:], jpeg + bytes(5000)):
        path.write_bytes(whole)
        np.testing.assert_array_equal(read_rgb(path), cv2.imread(str(path))[..., ::-1])
    for length in (3, len(segment) + 2, len(segment) + len(jpeg) // 2):
        path.write_bytes((jpeg[:2] + segment + jpeg[2:])[:length])
        with pytest.raises(InputError, match='cut short'):
            read_rgb(path)
