"""HHA against the public code's outputs, closed forms, and a slow independent implementation."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg import hha, hha_kernels, kernels
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics

sys.path.insert(0, str(Path(__file__).resolve().parent))
import reference_hha

CAMERA = Intrinsics(fx=260.0, fy=262.0, cx=161.0, cy=122.0, width=320, height=240)
KINECT = Intrinsics(fx=585.0, fy=585.0, cx=320.0, cy=240.0, width=640, height=480)
XTION = Intrinsics(fx=525.0, fy=525.0, cx=319.5, cy=239.5, width=640, height=480)
DOWN = np.array([0.0, 1.0, 0.0])


def angle_between_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def rotation(pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Return camera from level camera: looking `pitch_deg` down, rolled about the axis."""
    p, r = np.radians([pitch_deg, roll_deg])
    pitch = [[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]]
    roll = [[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]]
    return np.array(roll) @ np.array(pitch)


def rays(camera: Intrinsics) -> np.ndarray:
    """Return (H, W, 3) rays with z = 1 of the grid the public code uses."""
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    first = hha.FIRST_PIXEL
    x, y = (u + first - camera.cx) / camera.fx, (v + first - camera.cy) / camera.fy
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def room(
    rotation: np.ndarray, height_m: float = 1.3, wall_m: float = 3.0, camera: Intrinsics = CAMERA
) -> tuple[np.ndarray, np.ndarray]:
    """Return depth (H, W) of a floor and a wall ahead, and bool (H, W): the floor is seen."""
    level = rays(camera) @ rotation
    with np.errstate(divide='ignore'):
        floor = np.where(level[..., 1] > 0, height_m / level[..., 1], np.inf)
        wall = np.where(level[..., 2] > 0, wall_m / level[..., 2], np.inf)
    return np.minimum(floor, wall).astype(np.float32), floor < wall


def clear_of(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return where the whole window lies inside the mask."""
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    eroded = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    return eroded.astype(bool)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b.astype(int))


def assert_same_hha(ours: np.ndarray, theirs: np.ndarray, left_out: np.ndarray) -> None:
    """Require at most 1 grey level; of the pixels left out, only disparity and height count."""
    off = difference(ours, theirs)
    assert off[..., :2].max() <= 1
    assert off[~left_out].max() <= 1


def collinear_windows(missing: np.ndarray) -> np.ndarray:
    """Return where a 7x7 window has valid pixels, all of them on one line.

    There the normal is free to turn, and the reference normalises round-off. Which windows those
    are follows from the mask alone, in whole numbers. Windows without valid pixels do count.
    """
    return (reference_hha.determinants(missing, 3) == 0) & depths_seen(missing, 3)


def depths_seen(missing: np.ndarray, radius: int) -> np.ndarray:
    """Return where a window holds any pixel that counts."""
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return cv2.dilate((~missing).astype(np.uint8), kernel).astype(bool)


@pytest.mark.parametrize(
    ('file', 'depth_key', 'scale', 'masked_by', 'output', 'gravity', 'left_out'),
    [
        # 2561 of 307200 pixels lie in collinear windows of the raw depth's ragged holes.
        ('hha_demo', 'depth_u16', 1e4, 'rawdepth_u16', 'hha_rgb', 'yDir', 2561),
        ('hha_demo', 'depth_u16', 1e4, 'depth_u16', 'hha_complete_rgb', 'yDir_complete', 0),
        ('hha_floor_wall', 'depth_m', 1, 'rawdepth_m', 'hha_rgb', 'yDir', 0),
    ],
)
def test_matches_the_public_code(
    goldens_dir, file, depth_key, scale, masked_by, output, gravity, left_out
):
    golden = np.load(goldens_dir / f'{file}.npz')
    depth = (golden[depth_key] / scale).astype(np.float32)
    missing = golden[masked_by] == 0
    camera = Intrinsics.from_matrix(golden['K'], depth.shape[1], depth.shape[0])
    assert angle_between_deg(hha.estimate_gravity(depth, camera, missing), golden[gravity]) < 0.1
    encoded = hha.encode_hha(depth, camera, missing)
    assert encoded.dtype == np.uint8
    collinear = collinear_windows(missing)
    assert collinear.sum() == left_out
    assert_same_hha(encoded, golden[output], collinear)


def test_reference_of_this_test_matches_the_public_code(goldens_dir):
    golden = np.load(goldens_dir / 'hha_floor_wall.npz')
    depth, missing = golden['depth_m'], golden['rawdepth_m'] == 0
    camera = Intrinsics.from_matrix(golden['K'], depth.shape[1], depth.shape[0])
    gravity = reference_hha.estimate_gravity(depth, camera, missing)
    np.testing.assert_allclose(gravity, golden['yDir'], atol=1e-5)
    ours = reference_hha.encode(depth, camera, missing, gravity)
    assert difference(ours, golden['hha_rgb']).max() <= 1


def real_frames(data_dir: Path) -> list[tuple[np.ndarray, Intrinsics]]:
    files = [data_dir / 'kinect_sequence' / f'frame-{i:06d}.depth.png' for i in (0, 70, 140)]
    files += [data_dir / 'frames' / 'xtion' / 'depth' / f'{i}.png' for i in (17, 154)]
    images = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]
    cameras = [KINECT] * 3 + [XTION] * 2
    return [(depths.depth_to_metres(i, '16UC1'), c) for i, c in zip(images, cameras, strict=True)]


def test_matches_the_formulae_on_real_frames_with_real_holes(data_dir):
    for depth, camera in real_frames(data_dir):
        depth, camera = depths.resize_depth(depth, 320, 240), camera.resized(320, 240)
        missing, filled = depth == 0, depths.fill_holes(depth)
        expected = reference_hha.estimate_gravity(depth, camera)
        assert angle_between_deg(hha.estimate_gravity(depth, camera), expected) < 0.1
        for image in (filled, depth):
            encoded = hha.encode_hha(image, camera, missing, expected)
            reference = reference_hha.encode(image, camera, missing, expected)
            points = reference_hha.point_cloud(image, camera)
            normals = reference_hha.fit_normals(points, missing, 3)
            edge_on = reference_hha.edge_on(points, normals)
            left_out = collinear_windows(missing) | edge_on
            assert edge_on.mean() < 0.001
            assert left_out.mean() < 0.02
            assert_same_hha(encoded, reference, left_out)


def test_matches_the_formulae_at_full_size(data_dir):
    depth, camera = real_frames(data_dir)[0]
    expected = reference_hha.estimate_gravity(depth, camera)
    assert angle_between_deg(hha.estimate_gravity(depth, camera), expected) < 0.1


@pytest.mark.parametrize('pitch', [0.0, 12.0, 25.0])
@pytest.mark.parametrize('roll', [-12.0, 0.0, 7.0])
def test_gravity_follows_the_camera(pitch, roll):
    """Within half a degree: the windows that straddle floor and wall pull at it."""
    turned = rotation(pitch, roll)
    depth, _ = room(turned, wall_m=6.0)
    estimated = hha.estimate_gravity(depth, CAMERA)
    assert np.linalg.norm(estimated) == pytest.approx(1.0)
    assert angle_between_deg(estimated, turned @ DOWN) < 0.5
    assert angle_between_deg(estimated, reference_hha.estimate_gravity(depth, CAMERA)) < 0.1


def test_floor_and_wall_have_their_known_values():
    turned = rotation(20.0, 5.0)
    depth, on_floor = room(turned, height_m=1.3)
    encoded = hha.encode_hha(depth, CAMERA).astype(int)
    floor, wall = clear_of(on_floor, 3), clear_of(~on_floor, 3)
    assert floor.sum() > 5000
    assert wall.sum() > 5000
    assert np.abs(encoded[floor][:, 2] - 38).max() <= 1
    assert np.abs(encoded[wall][:, 2] - 128).max() <= 1
    above_floor_cm = 130.0 - 100.0 * depth * (rays(CAMERA) @ turned @ DOWN)
    assert np.abs(encoded[..., 1] - np.clip(above_floor_cm, 0, 255)).max() <= 1.5
    assert np.abs(encoded[..., 0] - np.minimum(310.0 / depth, 255)).max() <= 0.51


def test_ceiling_is_seen_from_below():
    turned = rotation(-20.0, 0.0)
    level = rays(CAMERA) @ turned
    depth = np.where(level[..., 1] < 0, 1.2 / -level[..., 1], 0).astype(np.float32)
    seen = clear_of(depth > 0, 3)
    encoded = hha.encode_hha(depth, CAMERA, gravity=turned @ DOWN)
    assert seen.sum() > 5000
    assert np.abs(encoded[seen][:, 2].astype(int) - 218).max() <= 1


def test_a_lowest_point_near_the_camera_is_not_taken_for_the_floor():
    """A table top 0.6 m below stands 0.7 m above a floor guessed 1.3 m below the camera."""
    turned = rotation(30.0, 0.0)
    depth, on_table = room(turned, height_m=0.6)
    encoded = hha.encode_hha(depth, CAMERA, gravity=turned @ DOWN)
    assert np.abs(encoded[on_table][:, 1].astype(int) - 70).max() <= 1


def stray(depth: np.ndarray, on_floor: np.ndarray, share: float, factor: float) -> np.ndarray:
    """Put a share of the pixels, of the floor, `factor` times as far; return which, (H, W)."""
    count = max(1, int(share * depth.size))
    strays = np.zeros(depth.shape, bool)
    strays.ravel()[np.random.default_rng(2).permutation(np.flatnonzero(on_floor))[:count]] = True
    depth[strays] *= factor
    return strays


@pytest.mark.parametrize('share', [1e-5, 0.005, 0.019])
@pytest.mark.parametrize('factor', [2.0, 30.0])
def test_strays_below_the_floor_leave_heights_as_they_are(share, factor):
    """As wrong readings of stereo cameras do; every height would be 1.3 m more, or saturate."""
    turned = rotation(30.0, 0.0)
    depth, on_floor = room(turned, height_m=1.3)
    expected = hha.encode_hha(depth, CAMERA, gravity=turned @ DOWN)[..., 1].astype(int)
    strays = stray(depth, on_floor, share, factor)
    encoded = hha.encode_hha(depth, CAMERA, gravity=turned @ DOWN)[..., 1].astype(int)
    assert np.abs(encoded - expected)[~strays].max() <= 1
    assert (encoded[strays] == 0).all()
    assert hha.lowest_below_camera(depth, CAMERA, turned @ DOWN) == pytest.approx(1.3, abs=0.01)
    reference = reference_hha.encode(depth, CAMERA, gravity=turned @ DOWN)[..., 1].astype(int)
    assert np.abs(encoded - reference).max() <= 1


@pytest.mark.parametrize(('share', 'factor'), [(0.021, 3.0), (0.01, 1.7)])
def test_what_is_no_stray_is_the_floor(share, factor):
    """Many readings far below, as of stairs that lead down; few, but within a metre."""
    turned = rotation(30.0, 0.0)
    depth, on_floor = room(turned, height_m=1.3)
    stray(depth, on_floor, share, factor)
    heights = -100.0 * depth * (rays(CAMERA) @ turned @ DOWN)
    encoded = hha.encode_hha(depth, CAMERA, gravity=turned @ DOWN)[..., 1]
    assert np.abs(encoded - np.clip(heights - heights.min(), 0, 255)).max() <= 1
    reference = reference_hha.encode(depth, CAMERA, gravity=turned @ DOWN)[..., 1].astype(int)
    assert np.abs(encoded - reference).max() <= 1


def test_strays_do_not_make_a_floor_of_furniture():
    turned = rotation(30.0, 0.0)
    depth, on_table = room(turned, height_m=0.6)
    strays = stray(depth, on_table, 0.01, 5.0)
    encoded = hha.encode_hha(depth, CAMERA, gravity=turned @ DOWN)[..., 1].astype(int)
    assert np.abs(encoded[on_table & ~strays] - 70).max() <= 1


def test_a_floor_with_few_readings_among_few_is_none_of_strays():
    """It has less than 2 % of the pixels, but more of the readings."""
    turned = rotation(30.0, 0.0)
    depth, on_floor = room(turned, height_m=1.3)
    height_m = -depth * (rays(CAMERA) @ turned @ DOWN)
    pixel = np.arange(depth.size).reshape(depth.shape)
    floor, upper = on_floor & (pixel % 61 == 0), (height_m > -0.1) & (pixel % 3 == 0)
    assert floor.mean() < 0.02
    assert floor.sum() > 0.05 * upper.sum()
    depth[~(floor | upper)] = 0
    assert hha.lowest_below_camera(depth, CAMERA, turned @ DOWN) == pytest.approx(1.3, abs=0.02)


@pytest.mark.parametrize('camera_m', [0.3, 0.6, 1.3, 1.9])
def test_a_given_height_of_the_camera_says_where_the_floor_is(camera_m):
    """Whatever the lowest visible point: here the floor, or a table top 0.2 m above it."""
    turned = rotation(20.0, 5.0)
    for floor_m in (0.0, 0.2):
        depth, _ = room(turned, height_m=camera_m - floor_m)
        encoded = hha.encode_hha(depth, CAMERA, None, turned @ DOWN, camera_m).astype(int)
        above_floor_cm = 100.0 * (camera_m - depth * (rays(CAMERA) @ turned @ DOWN))
        assert above_floor_cm.min() == pytest.approx(100 * floor_m, abs=1)
        assert np.abs(encoded[..., 1] - np.clip(above_floor_cm, 0, 255)).max() <= 1.5


@pytest.mark.parametrize('height', [0.0, -0.4, np.nan, np.inf])
def test_a_height_that_is_none_is_refused(height):
    with pytest.raises(FrameError, match='height of the camera must be a positive number'):
        hha.encode_hha(np.ones((240, 320), np.float32), CAMERA, camera_height=height)


def test_given_gravity_replaces_the_estimate():
    turned = rotation(15.0, 4.0)
    depth, on_floor = room(turned)
    expected = hha.encode_hha(depth, CAMERA)
    for length in (1.0, 9.81, 1e-200, 1e200):
        given_down = hha.encode_hha(depth, CAMERA, gravity=length * (turned @ DOWN))
        assert difference(given_down, expected).max() <= 1
    sideways = hha.encode_hha(depth, CAMERA, gravity=turned @ np.array([1.0, 0.0, 0.0]))
    plane = clear_of(on_floor, 3) | clear_of(~on_floor, 3)
    assert np.abs(sideways[plane][:, 2].astype(int) - 128).max() <= 1


@pytest.mark.parametrize(
    'gravity', [(0, 0, 0), (np.nan, 1, 0), (0, np.inf, 0), (0, 1), ((0, 1, 0),)]
)
def test_a_gravity_without_direction_is_refused(gravity):
    with pytest.raises(FrameError, match='gravity must be 3 finite numbers'):
        hha.encode_hha(np.ones((240, 320), np.float32), CAMERA, gravity=np.array(gravity))


def test_sizes_that_do_not_match_are_refused():
    with pytest.raises(FrameError, match='320x240'):
        hha.encode_hha(np.ones((480, 640), np.float32), CAMERA)
    with pytest.raises(FrameError, match='missing mask'):
        hha.estimate_gravity(np.ones((240, 320), np.float32), CAMERA, np.zeros((2, 2), bool))


def test_missing_pixels_keep_their_depth_but_have_no_say_in_normals():
    turned = rotation(20.0, 0.0)
    depth, _ = room(turned)
    missing = np.zeros(depth.shape, bool)
    missing[100:130, 50:90] = True
    filled = depth.copy()
    filled[missing] = 1.7
    expected = hha.encode_hha(np.where(missing, 0, depth), CAMERA)
    encoded = hha.encode_hha(filled, CAMERA, missing)
    np.testing.assert_array_equal(encoded[~missing], expected[~missing])
    assert np.all(encoded[missing][:, 0] == round(310 / 1.7))
    # Farther from the edge than the window reaches there is nothing to fit.
    assert np.all(encoded[104:126, 54:86, 2] == 218)
    unread = hha.encode_hha(np.where(missing, 0, depth), CAMERA, np.zeros(depth.shape, bool))
    np.testing.assert_array_equal(unread, expected)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.0, 1.0),
    hole=st.sampled_from([np.nan, np.inf, -np.inf, -1.0, -0.0]),
)
def test_all_kinds_of_holes_are_alike(seed, share, hole):
    random = np.random.default_rng(seed)
    camera = CAMERA.resized(48, 36)
    depth = random.uniform(0.5, 5.0, (36, 48)).astype(np.float32)
    holes = random.random(depth.shape) < share
    zeros, others = np.where(holes, np.float32(0), depth), np.where(holes, np.float32(hole), depth)
    np.testing.assert_array_equal(
        hha.encode_hha(others, camera), hha.encode_hha(zeros, camera, holes)
    )
    np.testing.assert_array_equal(
        hha.estimate_gravity(others, camera), hha.estimate_gravity(zeros, camera)
    )


@pytest.mark.parametrize('hole', [0.0, np.nan, np.inf, -2.0])
def test_without_any_reading_the_image_is_neutral(hole):
    depth = np.full((240, 320), hole, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encoded = hha.encode_hha(depth, CAMERA)
        np.testing.assert_array_equal(hha.estimate_gravity(depth, CAMERA), DOWN)
    assert np.all(encoded == (255, 130, 218))


def test_readings_on_one_line_give_no_normal():
    for line in (np.s_[60, 80], np.s_[60, :], np.s_[:, 80], np.diag_indices(240)):
        depth = np.zeros((240, 320), np.float32)
        depth[line] = np.random.default_rng(0).uniform(1, 4, depth[line].shape)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            encoded = hha.encode_hha(depth, CAMERA)
        assert np.all(encoded[..., 2] == 218)
        np.testing.assert_array_equal(hha.estimate_gravity(depth, CAMERA), DOWN)


@pytest.mark.parametrize('extreme', [1e-45, 1e-30, 1e30, 3e38])
def test_absurd_readings_do_not_spread(extreme):
    """Sums that slide over the image must not keep what a huge value has rounded away."""
    turned = rotation(20.0, 5.0)
    depth, _ = room(turned)
    wrong = depth.copy()
    wrong[30, 40] = extreme
    assert angle_between_deg(hha.estimate_gravity(wrong, CAMERA), turned @ DOWN) < 0.1
    gravity = turned @ DOWN
    near = np.zeros(depth.shape, bool)
    near[27:34, 37:44] = True
    encoded = hha.encode_hha(wrong, CAMERA, gravity=gravity)[..., 2]
    expected = hha.encode_hha(depth, CAMERA, gravity=gravity)[..., 2]
    np.testing.assert_array_equal(encoded[~near], expected[~near])


def test_a_single_wall_leaves_gravity_where_it_was():
    """Nothing tells where down is within the wall's plane, so the image's y axis stays."""
    noise = np.random.default_rng(3).normal(0, 0.004, (240, 320))
    yaw = np.radians(10)
    ahead = rays(CAMERA) @ np.array([np.sin(yaw), 0.0, np.cos(yaw)])
    depth = (2.0 / ahead + noise).astype(np.float32)
    assert angle_between_deg(hha.estimate_gravity(depth, CAMERA), DOWN) < 1.0


@pytest.mark.parametrize(('width', 'height'), [(1, 1), (2, 3), (21, 1), (7, 50)])
def test_tiny_images(width, height):
    depth = np.full((height, width), 2.0, np.float32)
    encoded = hha.encode_hha(depth, CAMERA.resized(width, height))
    assert encoded.shape == (height, width, 3)
    assert np.all(encoded[..., 0] == 155)


def test_no_kind_of_array_compiles_anew():
    """A frame must not wait seconds for the compiler because its array is of another kind."""
    kernels.warm_up()
    functions = [*vars(hha_kernels).values(), *vars(depths).values()]
    dispatchers = [f for f in functions if hasattr(f, 'signatures')]
    before = [len(d.signatures) for d in dispatchers]
    depth, _ = room(rotation(10.0, 0.0))
    frozen = depth.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(b'\0' + depth.tobytes(), np.uint8)[1:].view(np.float32)
    kinds = {
        'plain': depth,
        'read-only': frozen,
        'strided': np.repeat(depth, 2, axis=1)[:, ::2],
        'float64': depth.astype(np.float64),
        'big-endian': depth.astype('>f4'),
        'column-major': np.asfortranarray(depth),
        'unaligned': unaligned.reshape(depth.shape),
    }
    expected = hha.encode_hha(depth, CAMERA, depth > 4)
    for name, image in kinds.items():
        encoded = hha.encode_hha(image, CAMERA, image > 4)
        np.testing.assert_array_equal(encoded, expected, err_msg=name)
        np.testing.assert_array_equal(depths.fill_holes(image), depth, err_msg=name)
        np.testing.assert_array_equal(depths.resize_depth(image, 320, 240), depth, err_msg=name)
    assert [len(d.signatures) for d in dispatchers] == before


def test_heights_follow_a_tilt_of_half_a_degree():
    """A floor 1.2 m below a camera that looks 0.6 degrees down, written out."""
    camera, tilt = Intrinsics(260.0, 260.0, 159.5, 119.5, 320, 240), math.radians(0.6)
    y = (np.arange(240)[:, None] - camera.cy + hha.FIRST_PIXEL) / camera.fy
    down = y * math.cos(tilt) + math.sin(tilt)
    depth = np.where(down > 0.15, 1.2 / np.maximum(down, 0.15), 8.0).repeat(320, 1)
    gravity = np.array([0.0, math.cos(tilt), math.sin(tilt)])
    found = hha.encode_hha(depth.astype(np.float32), camera, gravity=gravity)[..., 1]
    height = -100 * depth * down
    assert np.abs(found - np.clip(height - height.min(), 0, 255)).max() <= 1.5


def test_a_card_names_every_constant():
    assert set(hha.constants()) == {
        'angle_offset', 'angle_radius_px', 'disparity_scale', 'first_pixel',
        'floor_guess_above_cm', 'floor_guess_cm', 'gravity_iterations', 'gravity_radius_px',
        'gravity_thresholds_deg', 'min_depth_cm', 'no_normal_deg',
    }  # fmt: skip


@pytest.mark.parametrize('tilt_deg', [0.05, 0.2, -0.5])
def test_heights_follow_gravity_from_a_tenth_of_a_degree_on(tilt_deg):
    """Of a wall eight metres away, which a tilt of 0.2 degrees lifts by three centimetres."""
    camera = Intrinsics(500.0, 500.0, 159.5, 119.5, 320, 240)
    wall = np.full((240, 320), 8.0, np.float32)
    tilt = math.radians(tilt_deg)
    gravity = np.array([0.0, math.cos(tilt), math.sin(tilt)])
    heights = hha.encode_hha(wall, camera, gravity=gravity, camera_height=1.2)[:, 160, 1]
    used = tilt if abs(tilt_deg) > 0.1 else 0.0
    down = (np.arange(240) + 1 - camera.cy) * 8.0 / camera.fy
    expected = 120 - 100 * (down * math.cos(used) + 8.0 * math.sin(used))
    seen = (expected > 5) & (expected < 250)
    assert np.abs(heights - expected)[seen].max() <= 0.51
