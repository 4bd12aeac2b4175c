"""Network inputs against numpy, OpenCV-free area averages, and the HHA they are made of."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.bundle import TensorInput
from rgbd_fusion_seg.depth import fill_holes
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.hha import encode_hha
from rgbd_fusion_seg.preprocess import (
    FARTHEST_INPUT_M,
    depth_image,
    depth_tensor,
    hha_image,
    hha_tensor,
    network_inputs,
    rgb_image,
    rgb_tensor,
)

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_numpy(image: np.ndarray) -> np.ndarray:
    return ((image.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1)[None]


def test_pixels_are_normalised_channel_by_channel():
    image = random_image(37, 53)
    tensor = rgb_tensor(image, TensorInput(37, 53, MEAN, STD))
    assert tensor.dtype == np.float32
    assert tensor.shape == (1, 3, 37, 53)
    assert tensor.flags.c_contiguous
    assert np.abs(tensor - by_numpy(image)).max() < 1e-6


@pytest.mark.parametrize('view', ['reversed', 'cropped', 'read-only'])
def test_images_in_any_memory_layout_give_the_same_tensor(view):
    image = random_image(20, 30)
    other = {
        'reversed': np.ascontiguousarray(image[..., ::-1])[..., ::-1],
        'cropped': np.pad(image, ((0, 0), (0, 9), (0, 0)))[:, :30],
        'read-only': np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),
    }[view]
    size = TensorInput(20, 30, MEAN, STD)
    assert np.array_equal(rgb_tensor(other, size), rgb_tensor(image, size))


def test_no_memory_layout_compiles_anew():
    """A frame must not wait seconds for the compiler."""
    rgb_tensor(random_image(20, 30)[..., ::-1], TensorInput(20, 30, MEAN, STD))
    rgb_tensor(random_image(20, 60)[:, ::2], TensorInput(20, 30, MEAN, STD))
    signatures = kernels.normalize.signatures
    assert {array.layout for arrays in signatures for array in arrays} == {'C'}


def test_a_buffer_is_written_and_returned():
    size = TensorInput(20, 30, MEAN, STD)
    out = np.full((1, 3, 20, 30), np.nan, np.float32)
    image = random_image(20, 30)
    assert rgb_tensor(image, size, out=out) is out
    assert np.array_equal(out, rgb_tensor(image, size))
    assert hha_tensor(image, size, out=out) is out


def test_shrinking_averages_areas():
    image = random_image(40, 60)
    areas = image.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3))
    assert np.abs(rgb_image(image, 15, 10) - areas).max() <= 0.5


def test_enlarging_is_bilinear_about_pixel_centres():
    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 4, axis=0)
    image = np.repeat(ramp, 3, axis=2)
    x = np.clip((np.arange(64) + 0.5) / 4 - 0.5, 0, 15)
    enlarged = rgb_image(image, 64, 16)
    assert np.abs(enlarged - (10 * x)[None, :, None]).max() <= 0.51


def test_an_image_of_the_right_size_is_not_copied():
    image = random_image(20, 30)
    assert rgb_image(image, 30, 20) is image


def test_one_axis_may_shrink_while_the_other_grows():
    assert rgb_image(random_image(20, 30), 15, 40).shape == (40, 15, 3)


def test_hha_of_another_size_is_refused():
    with pytest.raises(FrameError) as caught:
        hha_tensor(random_image(20, 30), TensorInput(10, 15, MEAN, STD))
    assert '(20, 30, 3)' in str(caught.value)
    assert '(10, 15, 3)' in str(caught.value)


def tilted_floor(camera: Intrinsics) -> np.ndarray:
    """Depth of a floor 1.2 m below a camera that looks 20° down, up to a wall at 4 m."""
    v = (np.arange(camera.height)[:, None] - camera.cy) / camera.fy
    down, ahead = np.cos(np.radians(20)), np.sin(np.radians(20))
    with np.errstate(divide='ignore'):
        floor = 1.2 / (v * down + ahead)
    depth = np.where((floor > 0) & (floor < 4.0), floor, 4.0)
    return np.repeat(depth, camera.width, axis=1).astype(np.float32)


def test_hha_is_encoded_at_the_network_size_with_holes_filled_but_not_trusted():
    camera = Intrinsics(260.0, 260.0, 159.5, 119.5, 320, 240)
    depth = tilted_floor(camera)
    holes = np.zeros(depth.shape, bool)
    holes[100:140, 60:120] = True
    depth[holes] = np.nan
    # Every second pixel, from the middle of each 2x2 cell on, is what resampling to a half takes.
    small = depth[1::2, 1::2]
    readings = np.isfinite(small)
    smaller = camera.resized(160, 120)
    expected = encode_hha(fill_holes(small), smaller, ~readings, floor_from=readings)
    assert np.array_equal(hha_image(depth, camera, 160, 120), expected)
    untouched = hha_image(tilted_floor(camera), camera, 160, 120)
    far_from_holes = np.ones((120, 160), bool)
    far_from_holes[46:74, 26:64] = False
    difference = np.abs(expected.astype(int) - untouched)[far_from_holes]
    assert difference.max() <= 1


@pytest.mark.parametrize('lost_rows', [24, 48])
def test_no_floor_is_found_where_nothing_was_measured(lost_rows):
    """What fills the lowest rows is the depth above them, which would lie below the floor."""
    camera = Intrinsics(260.0, 260.0, 159.5, 119.5, 320, 240)
    depth = tilted_floor(camera)
    begin = 240 - lost_rows
    is_floor = depth[:begin] < 3.9
    depth[begin:] = 0
    down = np.array([0.0, np.cos(np.radians(20)), np.sin(np.radians(20))])
    heights = hha_image(depth, camera, 320, 240, gravity=down)[:begin, :, 1]
    assert heights[is_floor].max() <= 8  # cm


def test_gravity_that_is_given_is_used():
    camera = Intrinsics(130.0, 130.0, 79.5, 59.5, 160, 120)
    depth = tilted_floor(camera)
    down = np.array([0.0, np.cos(np.radians(20)), np.sin(np.radians(20))])
    given = hha_image(depth, camera, 160, 120, gravity=down)
    sideways = hha_image(depth, camera, 160, 120, gravity=np.array([1.0, 0.0, 0.0]))
    assert np.abs(given[..., 2].astype(int) - sideways[..., 2]).max() > 40
    # On the floor the height is 0 and the angle with gravity 0°, which is grey level 38.
    assert (given[100:, :, 1] <= 3).all()
    assert np.abs(given[100:115, 10:150, 2].astype(int) - 38).max() <= 1


def test_depth_without_a_reading_still_gives_an_image():
    camera = Intrinsics(130.0, 130.0, 79.5, 59.5, 160, 120)
    for nothing in (0.0, np.nan, np.inf, -1.0):
        image = hha_image(np.full((120, 160), nothing, np.float32), camera, 80, 60)
        assert image.shape == (60, 80, 3)
        assert (image == image[0, 0]).all()
        assert image[0, 0, 0] == 255
        assert image[0, 0, 2] == 218


def test_metres_are_scaled_and_tiled_to_three_channels():
    metres = np.random.default_rng(0).uniform(0.4, 9, (20, 30)).astype(np.float32)
    size = TensorInput(20, 30, np.float32([2.5, 2.5, 3.0]), np.float32([1.25, 1.25, 0.5]))
    tensor = depth_tensor(metres, size)
    assert (tensor.dtype, tensor.shape) == (np.float32, (1, 3, 20, 30))
    z = metres.astype(np.float64)
    expected = [(z - 2.5) / 1.25, (z - 2.5) / 1.25, (z - 3) / 0.5]
    np.testing.assert_allclose(tensor[0], expected, atol=1e-5)
    out = np.full_like(tensor, np.nan)
    assert depth_tensor(metres, size, out=out) is out
    assert np.array_equal(out, tensor)
    with pytest.raises(FrameError, match=r'\(20, 30\).*\(30, 20\)'):
        depth_tensor(metres, TensorInput(30, 20, MEAN, STD))


def test_the_public_recipe_is_millimetres_over_5000():
    millimetres = np.arange(500, 9500, 15, dtype=np.uint16).reshape(20, 30)
    recipe = TensorInput(20, 30, np.zeros(3, np.float32), np.full(3, 5, np.float32))
    tensor = depth_tensor(depth_image(millimetres / np.float32(1000), 30, 20), recipe)
    np.testing.assert_allclose(tensor[0], [millimetres / 5000] * 3, rtol=1e-6)


def test_depth_is_seen_in_metres_with_holes_filled_and_without_what_no_sensor_measures():
    camera = Intrinsics(260.0, 260.0, 159.5, 119.5, 320, 240)
    depth = tilted_floor(camera)
    whole = depth_image(depth, 160, 120)
    assert np.array_equal(whole, depth[1::2, 1::2])
    depth[100:140, 60:120] = np.nan
    depth[11, 10:20] = 1e6
    seen = depth_image(depth, 160, 120)
    assert np.isfinite(seen).all()
    hole = (slice(50, 70), slice(30, 60))
    assert np.abs(seen[hole] - whole[hole]).max() < 0.5
    assert (seen[hole] > 1).all()
    assert (seen[5, 5:10] <= FARTHEST_INPUT_M).all()
    rest = np.ones(seen.shape, bool)
    rest[hole] = rest[5, 5:10] = False
    assert np.array_equal(seen[rest], whole[rest])
    for nothing in (0.0, np.nan, np.inf, -1.0):
        assert (depth_image(np.full((24, 32), nothing, np.float32), 16, 12) == 0).all()


def test_a_real_frame_becomes_metres_of_its_picture(data_dir: Path):
    path = data_dir / 'nyudv2' / 'depth8' / '0001.png'
    if not path.is_file():
        pytest.skip(f'needs NYU Depth V2, and {path} is absent')
    levels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    depth = ((levels + 0.5) / 25.5).astype(np.float32)
    camera = Intrinsics(518.9, 519.5, 325.6, 253.7, 640, 480)
    frame = RgbdFrame(random_image(480, 640), depth, camera)
    size = TensorInput(240, 320, np.full(3, 2.7, np.float32), np.full(3, 1.1, np.float32))
    tensors = network_inputs(frame, {'rgb': size, 'hha': size, 'depth': size})
    # Every second pixel, from the middle of each 2x2 cell on; this data set has no holes.
    expected = ((levels[1::2, 1::2] + 0.5) / 25.5 - 2.7) / 1.1
    np.testing.assert_allclose(tensors['depth'][0], [expected] * 3, atol=1e-5)
    assert np.array_equal(tensors['rgb'], rgb_tensor(frame.rgb, size))
    hha = hha_image(depth, camera, 320, 240)
    assert np.array_equal(tensors['hha'], hha_tensor(hha, size))


def test_where_one_axis_grows_colours_are_interpolated_on_half_pixel_centres():
    ramp = np.arange(0, 160, 10, dtype=np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2)
    x = np.clip((np.arange(64) + 0.5) / 4 - 0.5, 0, 15)
    shown = rgb_image(ramp, 64, 4).astype(float)
    assert np.abs(shown - (10 * x)[None, :, None]).max() <= 0.51
