"""The Kinect model against geometry and against what the sensor is known to do."""

from __future__ import annotations

import numpy as np
import pytest

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.synthetic.primitives import LABEL
from rgbd_fusion_seg.synthetic.scene import KINECT, Room
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect

SMALL = KINECT.resized(320, 240)
BASELINE_M, STEP_M = 0.075, 8 * 0.075 * 580.0  # published figures of the Kinect v1
BORDER = 8  # columns at 640 pixels


@pytest.fixture(scope='module')
def views() -> list:
    room = Room.random(35)
    rng = np.random.default_rng(0)
    return [room.render(room.random_pose(rng)) for _ in range(3)]


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def plane(z: float, camera: Intrinsics = SMALL) -> np.ndarray:
    return np.full((camera.height, camera.width), z, np.float32)


def test_readings_lie_on_the_disparity_grid(views):
    for view in views:
        depth = simulate_kinect(view.depth, KINECT, rng(), view.labels)
        steps = STEP_M / depth[depth > 0].astype(np.float64)
        np.testing.assert_allclose(steps, np.round(steps), atol=2e-4 * steps.max() / 100)
        assert len(np.unique(np.round(steps))) > 30


def test_without_noise_a_reading_is_within_half_a_step(views):
    depth = simulate_kinect(views[0].depth, KINECT, rng(), strength=0.0)
    seen = depth > 0
    error = STEP_M / depth[seen] - STEP_M / views[0].depth[seen].astype(np.float64)
    assert seen.mean() > 0.6
    assert np.abs(error).max() <= 0.5 + 1e-3


def test_no_depth_is_invented(views):
    """Each reading is near a depth that exists within two pixels of it."""
    view = views[1]
    depth = simulate_kinect(view.depth, KINECT, rng(), view.labels, rgb=view.rgb)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(view.depth, 2, 'edge'), (5, 5))
    exact = STEP_M / windows.reshape(480, 640, 25)
    seen = depth > 0
    off = np.abs(exact[seen] - (STEP_M / depth[seen])[:, None]).min(axis=1)
    assert off.max() < 4.0
    assert np.median(off) < 1.0


def test_noise_grows_with_the_square_of_depth():
    deviation = {}
    for z in (2.0, 4.0):
        # a little depth from left to right, or all of a plane falls between two steps alike
        exact = plane(z, KINECT) * np.linspace(0.95, 1.05, 640, dtype=np.float32)
        depth = simulate_kinect(exact, KINECT, rng())
        deviation[z] = np.std((depth - exact)[depth > 0])
    assert deviation[4.0] / deviation[2.0] == pytest.approx(4.0, rel=0.15)
    # Khoshelham and Elberink measured 1.4 mm times the square of depth in metres
    assert deviation[2.0] == pytest.approx(0.0014 * 2**2, rel=0.6)


@pytest.mark.parametrize('camera', [KINECT, SMALL], ids=['vga', 'qvga'])
def test_shadow_is_where_the_projector_cannot_see(camera):
    """A square in front of a wall; the line from the projector is cut with it in 3-D."""
    front, back, half = 1.2, 3.0, 0.2
    x = (np.arange(camera.width) - camera.cx) / camera.fx
    y = (np.arange(camera.height) - camera.cy) / camera.fy
    square = (np.abs(x * front) <= half)[None] & (np.abs(y * front) <= half)[:, None]
    depth = np.where(square, np.float32(front), np.float32(back))
    holes = simulate_kinect(depth, camera, rng(), strength=0.0) == 0
    # where the line from (b, 0, 0) to the wall's point passes the square's plane
    at = BASELINE_M + (x * back - BASELINE_M) * front / back
    down = y * back * front / back
    shadow = (np.abs(at) <= half)[None] & (np.abs(down) <= half)[:, None] & ~square
    shadow[:, -BORDER * camera.width // 640 :] = True
    assert shadow.sum() > 100
    wrong = holes != shadow
    # rounding of the projector's columns: one pixel at each end of a row of shadow
    assert wrong.sum(axis=1).max() <= 2
    assert not holes[square].any()


def test_shadows_stay_left_of_edges(views):
    """Without noise every hole has something nearer close to its right."""
    view = views[2]
    holes = simulate_kinect(view.depth, KINECT, rng(), strength=0.0) == 0
    holes[:, -BORDER:] = False
    rows, columns = np.nonzero(holes & (view.depth < 8.0) & (view.depth > 0.5))
    assert len(rows) > 50
    for v, u in zip(rows, columns, strict=True):
        widest = int(KINECT.fx * BASELINE_M / 0.3)
        assert view.depth[v, u : u + widest].min() < view.depth[v, u] * 0.97


def test_range_and_missing_input():
    assert not simulate_kinect(plane(0.4), SMALL, rng()).any()
    assert simulate_kinect(plane(7.5), SMALL, rng(), strength=0.0).any()
    assert not simulate_kinect(plane(9.0), SMALL, rng(), strength=0.0).any()
    depth = plane(2.0)
    depth[:60], depth[60:90], depth[90:120] = 0, np.nan, np.inf
    reading = simulate_kinect(depth, SMALL, rng())
    assert not reading[:117].any()
    assert np.isfinite(reading).all()
    assert (reading[124:, : -BORDER // 2] > 0).mean() > 0.99


def test_what_loses_readings(views):
    """Mirrors, dark surfaces and grazing angles, each against plain surfaces beside them."""
    labels = np.zeros((240, 320), np.uint8)
    labels[:, :160] = LABEL['mirror']
    lost = simulate_kinect(plane(2.0), SMALL, rng(), labels)[:, :312] == 0
    assert lost[:, :155].mean() > 0.4
    assert lost[:, 165:].mean() < 0.05
    rgb = np.full((240, 320, 3), 160, np.uint8)
    rgb[:, :160] = 8
    lost = simulate_kinect(plane(3.5), SMALL, rng(), rgb=rgb)[:, :312] == 0
    assert lost[:, :155].mean() > 0.3
    assert lost[:, 165:].mean() < 0.05
    # a floor 1 m below: the ray at row v meets it at depth fy / (v - cy), ever more grazing
    row = np.arange(240)[:, None] - SMALL.cy
    floor = np.where(row > 30, SMALL.fy / np.maximum(row, 1), 0) * np.ones((1, 320))
    lost = simulate_kinect(floor.astype(np.float32), SMALL, rng())[:, :312] == 0
    assert lost[153:163].mean() > lost[200:].mean() + 0.05
    for view in views:
        share = np.mean(simulate_kinect(view.depth, KINECT, rng(), view.labels) == 0)
        assert 0.015 < share < 0.4


def test_strength_and_seed(views):
    view = views[0]
    weak, strong = (
        np.mean(simulate_kinect(view.depth, KINECT, rng(), view.labels, strength=s) == 0)
        for s in (0.0, 2.0)
    )
    assert weak < strong
    one, same = (simulate_kinect(view.depth, KINECT, rng()) for _ in range(2))
    other = simulate_kinect(view.depth, KINECT, np.random.default_rng(6))
    np.testing.assert_array_equal(one, same)
    assert np.mean(one != other) > 0.1


def test_sizes_must_match():
    with pytest.raises(FrameError, match='320x240'):
        simulate_kinect(plane(2.0), KINECT, rng())
    with pytest.raises(FrameError, match='labels'):
        simulate_kinect(plane(2.0), SMALL, rng(), np.zeros((10, 10), np.uint8))
