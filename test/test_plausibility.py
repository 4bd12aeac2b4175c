"""Signs of a wrong unit, and floors that are guessed where the camera's height is known."""

from __future__ import annotations

import numpy as np
import pytest

from rgbd_fusion_seg import hha
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.plausibility import (
    FloorGuess,
    camera_fault,
    depth_statistics,
    height_fault,
    training_range_fault,
    unit_fault,
)

CAMERA = Intrinsics(262.5, 262.5, 159.5, 119.5, 320, 240)


def floor_seen(height_m: float, pitch_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth of a floor and of a wall 3 m ahead, from a height above the floor, and gravity."""
    angle = np.radians(pitch_deg)
    down = np.array([0.0, np.cos(angle), np.sin(angle)])
    ahead = np.array([0.0, -np.sin(angle), np.cos(angle)])
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width]
    x, y = (u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy
    rays = np.stack([x, y, np.ones_like(x)], -1)
    with np.errstate(divide='ignore'):
        to_floor, to_wall = height_m / (rays @ down), 3.0 / (rays @ ahead)
    return np.where(to_floor > 0, np.minimum(to_floor, to_wall), to_wall).astype(np.float32), down


@pytest.mark.parametrize('pitch_deg', [0.0, 25.0])
@pytest.mark.parametrize('height_m', [0.4, 1.3])
def test_the_lowest_reading_lies_on_the_floor(height_m, pitch_deg):
    depth, down = floor_seen(height_m, pitch_deg)
    for gravity in (down, None):
        below = hha.lowest_below_camera(depth, CAMERA, gravity)
        # Up to what a ray that leans by a pixel makes at the wall (hha.FIRST_PIXEL).
        assert below == pytest.approx(height_m, abs=0.02)


def test_depth_without_readings_lies_nowhere():
    assert hha.lowest_below_camera(np.zeros((240, 320), np.float32), CAMERA) == 0


def test_a_camera_that_sees_the_ceiling_alone_sees_nothing_below_it():
    angle = np.radians(-60)
    down = np.array([0.0, np.cos(angle), np.sin(angle)])
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width]
    x, y = (u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy
    up = -np.stack([x, y, np.ones_like(x)], -1) @ down
    assert up.min() > 0
    assert hha.lowest_below_camera((1.1 / up).astype(np.float32), CAMERA, down) == 0


def test_a_low_camera_is_told_once_it_is_one_for_long():
    depth, down = floor_seen(0.43, 10.0)
    guess = FloorGuess()
    faults = [guess.fault(depth, CAMERA, down) for _ in range(20)]
    assert faults[:17] == [''] * 17
    assert all(faults[17:])
    assert '0.43 m below the camera' in faults[-1]
    assert 'the floor for 1.3 m below' in faults[-1]
    # Frames of the same camera without any depth do not speak of the floor.
    empty = np.zeros_like(depth)
    assert [guess.fault(empty, CAMERA, down) for _ in range(3)][-1] == ''


def test_a_camera_that_sees_a_table_for_a_while_is_not_told():
    table, room = floor_seen(0.6, 20.0)[0], floor_seen(1.4, 20.0)[0]
    guess = FloorGuess()
    assert not any(guess.fault(depth, CAMERA) for depth in [table] * 15 + [room] * 20)
    assert not any(guess.fault(depth, CAMERA) for depth in ([table] * 5 + [room]) * 8)


def test_the_lowest_of_all_that_is_seen_is_told():
    guess = FloorGuess()
    heights_m = [0.43] * 10 + [0.62] * 2 + [0.51] * 8
    views = (floor_seen(height_m, 10.0) for height_m in heights_m)
    faults = [guess.fault(depth, CAMERA, down) for depth, down in views]
    assert '0.62 m below the camera' in faults[-1]


@pytest.mark.parametrize('median_m', [None, 0.2, 1.5, 15.0])
def test_depth_of_rooms_has_no_fault(median_m):
    assert unit_fault(median_m) == ''


@pytest.mark.parametrize('median_m', [0.0015, 0.05, 25.0, 150.0, 1500.0])
def test_depth_in_another_unit_has_one(median_m):
    assert unit_fault(median_m) == f'the median depth is {median_m:.4g} m'


def test_statistics_are_those_of_the_readings():
    depth = np.full((40, 160), 1, np.float32)
    depth[:, 80:120] = 4
    depth[:, 120:] = np.repeat([0, np.nan, np.inf, -1], 10)[:, None]
    assert depth_statistics(depth) == (0.75, 1.0)
    assert depth_statistics(depth[:, 120:]) == (0, None)
    # The median of two is their mean, and their sum would overflow.
    assert depth_statistics(np.full((4, 8), 3e38, np.float32)).median_m == 1e4


@pytest.mark.parametrize(
    ('median_m', 'range_m', 'told'),
    [
        (0.69, (0.7, 8.0), '0.69 m, but the network was trained on 0.7 to 8.0 m'),
        (8.01, (0.7, 8.0), '8.01 m, but the network was trained on 0.7 to 8.0 m'),
        (0.7, (0.7, 8.0), ''),
        (8.0, (0.7, 8.0), ''),
        (None, (0.7, 8.0), ''),
        (100.0, None, ''),
    ],
)
def test_depth_that_a_network_never_saw_is_told(median_m, range_m, told):
    fault = training_range_fault(median_m, range_m)
    assert told in fault
    assert bool(fault) == bool(told)


@pytest.mark.parametrize(
    ('across_deg', 'down_deg', 'sound'),
    [
        (5.1, 5.1, True),
        (169, 169, True),
        (4.9, 40, False),
        (40, 4.9, False),
        (171, 40, False),
        (40, 171, False),
    ],
)
def test_no_camera_sees_less_or_more(across_deg, down_deg, sound):
    fx, fy = 160 / np.tan(np.radians([across_deg, down_deg]) / 2) * (1, 0.75)
    fault = camera_fault(Intrinsics(fx, fy, 159.5, 119.5, 320, 240))
    expected = f'a field of view of {across_deg} by {down_deg} degrees'
    assert fault == ('' if sound else expected)


@pytest.mark.parametrize(
    ('cx', 'cy', 'inside'),
    [(1, 1, True), (319, 239, True), (320, 120, False), (160, 240, False), (0, 9, False)],
)
def test_the_principal_point_lies_in_the_image(cx, cy, inside):
    fault = camera_fault(Intrinsics(262.5, 262.5, cx, cy, 320, 240))
    assert fault == ('' if inside else f'the principal point ({cx}, {cy}) outside the image')


@pytest.mark.parametrize('height_m', [None, 0.4, 5.0])
def test_cameras_of_rooms_are_at_a_sound_height(height_m):
    assert height_fault(height_m) == ''


@pytest.mark.parametrize('height_m', [5.1, 43.0])
def test_a_height_in_another_unit_is_told(height_m):
    assert height_fault(height_m).startswith(f'the camera is said to be {height_m:g} m above')
