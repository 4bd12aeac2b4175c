"""The stereo pair against shifted pictures, and against rooms rendered for both cameras."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.synthetic import stereo
from rgbd_fusion_seg.synthetic.scene import KINECT, Room
from rgbd_fusion_seg.synthetic.stereo import (
    DISPARITIES,
    MATCHERS,
    StereoRig,
    match_stereo,
    simulate_stereo,
)

QUIET = StereoRig(noise=0.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def speckles(shape: tuple[int, int] = (480, 640)) -> np.ndarray:
    """Colour uint8 (H, W, 3) that matches everywhere, coarser than what counts as grain."""
    coarse = rng().uniform(30, 220, (shape[0] // 4, shape[1] // 4)).astype(np.float32)
    grey = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize('matcher', MATCHERS)
def test_a_shift_of_so_many_pixels_is_the_depth_that_triangles_say(matcher):
    picture = speckles()[..., 0]
    for shift in (9, 30):
        right = np.roll(picture, -shift, axis=1)
        depth = match_stereo(picture, right, 500.0, 0.1, matcher)
        assert depth.dtype == np.float32
        assert (depth[:, :DISPARITIES] == 0).all()
        found = depth[20:-20, DISPARITIES + 20 : -60]
        assert (found > 0).mean() > 0.99
        np.testing.assert_allclose(found[found > 0], 500 * 0.1 / shift, rtol=0.03)


@pytest.mark.parametrize('matcher', MATCHERS)
def test_a_wall_stands_where_it_is(matcher):
    for metres, baseline in ((1.3, 0.05), (2.0, 0.075), (3.5, 0.12)):
        wall = np.full((480, 640), metres, np.float32)
        rig = StereoRig(baseline, matcher)
        depth = simulate_stereo(speckles(), wall, KINECT, rig, rng())
        seen = depth[20:-20, DISPARITIES + 20 : -20]
        assert (seen > 0).mean() > 0.97
        assert np.median(seen[seen > 0]) == pytest.approx(metres, rel=0.02)


def test_a_slope_is_as_steep_as_it_is():
    """Inverse depth grows evenly to the right, from 4 m to 1.6 m."""
    slope = 1 / np.linspace(1 / 4, 1 / 1.6, 640)
    exact = np.broadcast_to(slope.astype(np.float32), (480, 640))
    depth = simulate_stereo(speckles(), exact, KINECT, QUIET, rng())
    seen = depth > 0
    assert seen[:, DISPARITIES + 20 : -20].mean() > 0.9
    assert np.median(np.abs(depth - exact)[seen] / exact[seen]) < 0.01


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('matcher', MATCHERS)
def test_simulated_pairs_are_matched_like_rendered_ones(seed, matcher):
    """What the right camera sees is rendered here from its own place, by the ray caster."""
    room, generator = Room.random(103 + seed), np.random.default_rng(3 + seed)
    rig, pose = StereoRig(matcher=matcher), room.random_pose(generator)
    beside = pose.copy()
    beside[:3, 3] += rig.baseline_m * pose[:3, 0]
    left, right = room.render(pose, KINECT), room.render(beside, KINECT)
    grey = [cv2.cvtColor(view.rgb, cv2.COLOR_RGB2GRAY) for view in (left, right)]
    rendered = match_stereo(*grey, KINECT.fx, rig.baseline_m, matcher)
    simulated = simulate_stereo(left.rgb, left.depth, KINECT, rig, rng())
    ours, theirs = (
        np.abs(np.log(depth[depth > 0] / left.depth[depth > 0])) for depth in (simulated, rendered)
    )
    # Rendered pairs: readings at 37 to 79 % of the pixels, of which 6 to 15 % are off by a tenth.
    assert ours.size / theirs.size == pytest.approx(1.0, abs=0.35)
    assert np.median(ours) == pytest.approx(np.median(theirs), abs=0.01)
    assert np.mean(ours > 0.1) == pytest.approx(np.mean(theirs > 0.1), abs=0.06)
    both = (simulated > 0) & (rendered > 0)
    assert both.sum() > 0.6 * theirs.size
    assert np.mean(np.abs(np.log(simulated[both] / rendered[both])) < 0.05) > 0.7


def test_what_the_right_camera_cannot_see_is_seldom_read():
    """Left of a near square lies what it hides from the right camera."""
    exact = np.full((480, 640), 4.0, np.float32)
    exact[140:340, 300:450] = 1.0
    rig = StereoRig(matcher='block', noise=0.0)
    shadow = round(KINECT.fx * rig.baseline_m * (1 / 1.0 - 1 / 4.0))
    depth = simulate_stereo(speckles(), exact, KINECT, rig, rng())
    hidden = depth[160:320, 300 - shadow + 8 : 300 - 8]
    mirrored = depth[160:320, 450 + 8 : 450 + shadow - 8]
    assert np.mean(np.abs(hidden - 4) < 0.2) < 0.4
    assert np.mean(np.abs(mirrored - 4) < 0.2) > 0.7


@pytest.mark.parametrize('matcher', MATCHERS)
def test_a_bare_wall_is_read_by_the_light_of_a_projector_alone(matcher):
    """Its grain in the left picture is not what the right camera would see there."""
    wall, generator = np.full((480, 640), 2.0, np.float32), rng()
    picture = np.full((480, 640, 3), 120, np.float32) + generator.normal(0, 2, (480, 640, 1))
    picture = picture.clip(0, 255).astype(np.uint8)
    share = []
    for projector in (0.0, 120.0):
        rig = StereoRig(matcher=matcher, projector=projector)
        depth = simulate_stereo(picture, wall, KINECT, rig, rng())
        share.append(np.mean(np.abs(depth - 2.0) < 0.1))
    bare, lit = share
    assert bare < {'block': 0.05, 'semi-global': 0.4}[matcher]
    assert lit > 0.75


def matched_pictures(monkeypatch, *scene) -> list[np.ndarray]:
    """Return what the two cameras see, float64 (H, W)."""
    seen = []

    def match(left, right, *_):
        seen.extend((left.astype(float), right.astype(float)))
        return np.zeros(left.shape, np.float32)

    monkeypatch.setattr(stereo, 'match_stereo', match)
    simulate_stereo(*scene, rng())
    return seen


def test_each_camera_has_noise_and_gain_of_its_own(monkeypatch):
    wall, picture = np.full((480, 640), 2.0, np.float32), np.full((480, 640, 3), 120, np.uint8)
    rig = StereoRig(noise=2.0, gain=1.05)
    left, right = matched_pictures(monkeypatch, picture, wall, KINECT, rig)
    for seen, gain in ((left, 1.0), (right, 1.05)):
        assert seen.mean() == pytest.approx(gain * 120, abs=0.1)
        assert seen.std() == pytest.approx(2.0, rel=0.1)
    shift = round(KINECT.fx * rig.baseline_m / 2)
    for pixels in (0, shift):
        correlation = np.corrcoef(left[:, pixels:].ravel(), right[:, : 640 - pixels].ravel())
        assert abs(correlation[0, 1]) < 0.02


def test_the_right_camera_sees_the_background_beside_what_stands_in_front(monkeypatch):
    """A bright square before a dark wall, which it hides and shows at other places."""
    exact = np.full((480, 640), 4.0, np.float32)
    exact[140:340, 300:450] = 1.0
    picture = np.where(exact[..., None] < 2, 220, speckles() // 4).astype(np.uint8)
    near, far = 40, 10  # pixels of disparity, at 1 m and 4 m
    rig = StereoRig(near / KINECT.fx, noise=0.0)
    left, right = matched_pictures(monkeypatch, picture, exact, KINECT, rig)
    assert (left[150:330, 303:447] > 200).all()
    assert (right[150:330, 303 - near : 447 - near] > 200).all()
    assert right[150:330, : 297 - near].max() < 100
    np.testing.assert_allclose(right[:100, : 640 - far], left[:100, far:], atol=1)
    edge = 450 - far  # where background goes on that both see
    hidden = right[150:330, 450 - near : edge]
    assert 5 < hidden.std() < hidden.max() < 100
    beside = right[150:330, edge : edge + near - far]
    np.testing.assert_allclose(hidden[:, 3:], beside[:, -4::-1], atol=1)


def test_other_noise_other_readings_but_the_same_with_the_same():
    view = Room.random(4).render(Room.random(4).random_pose(rng()), KINECT)
    rigs = {StereoRig.random(np.random.default_rng(seed)) for seed in range(40)}
    assert {rig.matcher for rig in rigs} == {*MATCHERS}
    assert {rig.projector > 0 for rig in rigs} == {True, False}
    assert 0.05 <= min(rig.baseline_m for rig in rigs) < max(r.baseline_m for r in rigs) <= 0.12
    rig = StereoRig(projector=50.0)
    first, again, other = (
        simulate_stereo(view.rgb, view.depth, KINECT, rig, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_holes_are_filled_before_the_right_camera_looks():
    exact = np.full((480, 640), 2.0, np.float32)
    exact[100:300, 300:500] = 0
    depth = simulate_stereo(speckles(), exact, KINECT, QUIET, rng())
    np.testing.assert_allclose(np.median(depth[120:280, 320:480]), 2.0, rtol=0.02)
    assert not simulate_stereo(speckles(), np.zeros_like(exact), KINECT, QUIET, rng()).any()


def test_a_narrow_background_is_not_mirrored_beyond_its_other_side(monkeypatch):
    """Between two near posts less of the wall is seen than lies beside it unseen."""
    near, far = 60, 10  # pixels of disparity
    exact = np.full((480, 640), 4.0, np.float32)
    exact[:, 300:380] = exact[:, 440:520] = 4.0 * far / near
    picture = np.where(exact[..., None] < 2, 220, speckles() // 4).astype(np.uint8)
    rig = StereoRig(near / KINECT.fx * exact.min(), noise=0.0)
    _, right = matched_pictures(monkeypatch, picture, exact, KINECT, rig)
    for post in (slice(244, 316), slice(384, 456)):
        assert (right[50:430, post] > 200).all()
    # Of the 60 pixels between them the right camera and the left one see the last ten.
    assert right[50:430, 324:376].max() < 100
    assert not np.ptp(right[50:430, 326:356], axis=1).any()


@pytest.mark.parametrize('matcher', MATCHERS)
@pytest.mark.parametrize('size', [(10, 12), (15, 40), (200, 15), (1, 1)])
def test_pictures_no_larger_than_a_window_match_nowhere(matcher, size):
    picture = speckles()[: size[0], : size[1], 0]
    depth = match_stereo(picture, picture, 500.0, 0.1, matcher)
    assert depth.shape == size
    assert not depth.any()
    wider = speckles()[:16, :80, 0]
    assert match_stereo(wider, wider, 500.0, 0.1, matcher).shape == (16, 80)


def test_what_does_not_fit_is_told():
    depth = np.ones((240, 320), np.float32)
    with pytest.raises(FrameError, match=r'depth 320x240 .* 640x480; scale them'):
        simulate_stereo(speckles(), depth, KINECT, QUIET, rng())
    with pytest.raises(FrameError, match=r"'sgm' is no stereo matcher; give one of block"):
        StereoRig(matcher='sgm')
