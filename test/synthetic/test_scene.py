"""Rendered rooms against independent geometry: implicit surfaces, reprojection, plane fits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.palette import NYU40_CLASSES
from rgbd_fusion_seg.synthetic import furniture, objects, wet_rooms
from rgbd_fusion_seg.synthetic.layout import KINDS
from rgbd_fusion_seg.synthetic.primitives import LABEL, Primitive, Shape
from rgbd_fusion_seg.synthetic.scene import KINECT, Room
from rgbd_fusion_seg.synthetic.trajectory import CLEARANCE_M, camera_pose

CAMERA = KINECT.resized(320, 240)
FURNITURE = set(range(40)) - {
    LABEL[name] for name in ('wall', 'floor', 'ceiling', 'door', 'window', 'otherprop')
}


@pytest.fixture(scope='module')
def room() -> Room:
    return Room.random(35)


@pytest.fixture(scope='module')
def walk(room) -> np.ndarray:
    return room.trajectory(seed=2, num_frames=300)


def rays(camera: Intrinsics, pose: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """World directions (N, 3) of depth 1 through pixels."""
    local = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(len(u))])
    return (pose[:3, :3] @ local).T


def implicit(solid: Primitive, points: np.ndarray) -> np.ndarray:
    """Positive outside, zero on the surface, negative inside; points (N, 3)."""
    q = np.abs((points - solid.center) @ solid.rotation) / solid.half
    if solid.shape == Shape.ELLIPSOID:
        return np.linalg.norm(q, axis=1) - 1
    if solid.shape == Shape.CYLINDER:
        return np.maximum(np.hypot(q[:, 0], q[:, 1]), q[:, 2]) - 1
    inside = q.max(axis=1) - 1
    return -inside if solid.shape == Shape.ROOM else inside


def test_depth_of_walls_and_floor_in_closed_form():
    """An empty room: each ray meets the nearest of six planes."""
    full = Room.random(3)
    size = np.array([*full.size[:2], 2 * full.size[2]]) / 2
    empty = Room('empty', full.size, full.primitives[:1], [], full.lights)
    pose = camera_pose(np.array([0.3, -0.4, 1.3]), 0.8, 0.25, 0.05)
    view = empty.render(pose, CAMERA)
    rng = np.random.default_rng(0)
    u, v = rng.integers(320, size=500), rng.integers(240, size=500)
    d = rays(CAMERA, pose, u, v)
    t = np.where(d > 0, (size - pose[:3, 3]) / d, (np.array([-size[0], -size[1], 0])
                 - pose[:3, 3]) / d)  # fmt: skip
    np.testing.assert_allclose(view.depth[v, u], t.min(axis=1), rtol=1e-6)
    axis, up = t.argmin(axis=1), d[:, 2] > 0
    expected = np.where(axis < 2, LABEL['wall'], np.where(up, LABEL['ceiling'], LABEL['floor']))
    np.testing.assert_array_equal(view.labels[v, u], expected)


@pytest.mark.parametrize('seed', [4, 35])
def test_depth_is_the_first_surface_along_the_ray(seed):
    """March along rays: outside every solid before the depth, on one of them at the depth."""
    room = Room.random(seed)
    rng = np.random.default_rng(seed)
    pose = room.random_pose(rng)
    view = room.render(pose, CAMERA)
    u, v = rng.integers(320, size=150), rng.integers(240, size=150)
    t = view.depth[v, u].astype(np.float64)
    d = rays(CAMERA, pose, u, v)
    steps = np.linspace(0.01, 0.9995, 400)
    along = pose[:3, 3] + (t[:, None] * steps)[..., None] * d[:, None]
    end = pose[:3, 3] + t[:, None] * d
    nearest = np.full(150, np.inf)
    label = np.full(150, -1)
    for solid in room.primitives:
        before = implicit(solid, along.reshape(-1, 3)).reshape(150, -1)
        # starts outside and never enters; a thin solid may be missed, a thick one not
        assert (before > -1e-6).all(), f'{NYU40_CLASSES[solid.labels[0]]} is nearer than the depth'
        gap = np.abs(implicit(solid, end)) * solid.half.min()
        label[gap < nearest] = solid.labels[0]
        nearest = np.minimum(nearest, gap)
    assert nearest.max() < 1e-5
    shell = np.isin(view.labels[v, u], [LABEL['floor'], LABEL['ceiling']])
    assert np.mean(label[~shell] == view.labels[v, u][~shell]) > 0.98


def test_views_agree_on_points_and_labels(room, walk):
    """Points of one view, moved into another a second later, meet equal depth and label."""
    first, second = room.render(walk[60], CAMERA), room.render(walk[90], CAMERA)
    v, u = (i.ravel() for i in np.mgrid[:240, :320])
    world = walk[60][:3, 3] + first.depth.ravel()[:, None] * rays(CAMERA, walk[60], u, v)
    local = (world - walk[90][:3, 3]) @ walk[90][:3, :3]
    z = local[:, 2]
    front = z > 0.1
    x = np.round(local[front, 0] / z[front] * CAMERA.fx + CAMERA.cx).astype(int)
    y = np.round(local[front, 1] / z[front] * CAMERA.fy + CAMERA.cy).astype(int)
    inside = (x >= 0) & (x < 320) & (y >= 0) & (y < 240)
    x, y, z = x[inside], y[inside], z[front][inside]
    assert len(z) > 10_000
    there = second.depth[y, x]
    assert np.mean(there > z + 0.08) < 0.01, 'seen through a surface'
    same = np.abs(there - z) < 0.02
    assert same.mean() > 0.6
    labels = first.labels.ravel()[front][inside]
    assert np.mean(labels[same] == second.labels[y, x][same]) > 0.98


def test_gravity_is_square_to_the_floor_that_is_seen(room):
    rng = np.random.default_rng(3)
    fitted = 0
    for _ in range(6):
        view = room.render(room.random_pose(rng), CAMERA)
        v, u = np.nonzero(view.labels == LABEL['floor'])
        if len(v) < 2000:
            continue
        points = view.depth[v, u, None] * rays(CAMERA, np.eye(4), u, v)
        normal = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][2]
        normal *= np.sign(normal @ points.mean(axis=0))
        assert normal @ view.gravity > np.cos(np.deg2rad(0.05))
        assert np.linalg.norm(view.gravity) == pytest.approx(1.0)
        fitted += 1
    assert fitted >= 2


def test_same_seed_same_room_and_pictures(room):
    again = Room.random(35)
    pose = room.random_pose(np.random.default_rng(1))
    np.testing.assert_array_equal(pose, again.random_pose(np.random.default_rng(1)))
    one, two = room.render(pose, CAMERA), again.render(pose, CAMERA)
    for name in ('rgb', 'depth', 'labels', 'gravity'):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert Room.random(36).size != room.size


def test_pictures_are_exposed_and_not_flat(room, walk):
    for pose in walk[::100]:
        rgb = room.render(pose, CAMERA).rgb
        assert 70 < rgb.mean() < 190
        assert rgb.std() > 20
        assert np.mean(rgb == 255) < 0.1


@pytest.mark.parametrize('seed', range(20))
def test_rooms_are_furnished_without_collisions(seed):
    room = Room.random(seed)
    assert {LABEL['wall'], LABEL['floor'], LABEL['ceiling']} <= room.classes
    assert len(room.classes & FURNITURE) >= 4
    for one, two in combinations(room.pieces, 2):
        overlap = np.minimum(one.high, two.high) - np.maximum(one.low, two.low)
        assert overlap.min() <= 1e-9, f'{one.name} stands in {two.name}'
    half = np.array(room.size[:2]) / 2
    for piece in room.pieces:
        assert np.all(np.abs([piece.low[:2], piece.high[:2]]) <= half + 1e-9)


PIECES = [
    furniture.chair, furniture.office_chair, furniture.armchair, furniture.sofa, furniture.bed,
    furniture.night_stand, furniture.dining_set, furniture.coffee_table, furniture.desk,
    furniture.bookshelf, furniture.shelves, furniture.cabinet, furniture.dresser,
    furniture.tv_stand, furniture.floor_lamp, furniture.plant, furniture.sitting_group,
    furniture.bed_group, furniture.ottoman, furniture.fireplace, furniture.radiator,
    wet_rooms.refrigerator, wet_rooms.toilet, wet_rooms.vanity, wet_rooms.bathtub,
    wet_rooms.towel_rail, objects.bag, objects.cardboard_box, objects.floor_clothes,
    objects.waste_basket, objects.picture, objects.mirror, objects.whiteboard, objects.door,
    objects.wall_shelf, objects.coat_hooks, objects.clock, objects.person,
    lambda rng: wet_rooms.kitchen_row(rng, 2.4), lambda rng: objects.window(rng, 1.0),
]  # fmt: skip


@pytest.mark.parametrize('build', PIECES, ids=lambda b: b.__name__)
def test_a_piece_stays_in_the_space_it_claims(build):
    """Handles, leaning backs and rugs may stick out a little; nothing sinks into the floor."""
    for seed in range(8):
        piece = build(np.random.default_rng(seed))
        solids = [p for p in piece.primitives if p.labels[0] != LABEL['floor mat']]
        low = np.min([p.bounds()[0] for p in solids], axis=0)
        high = np.max([p.bounds()[1] for p in solids], axis=0)
        half = np.array(piece.size[:2]) / 2 + 0.09
        assert np.all(np.abs([low[:2], high[:2]]) < half), (piece.name, low, high, piece.size)
        assert high[2] == pytest.approx(piece.height)
        assert -0.06 < low[2] < 0.5


@pytest.mark.parametrize('kind', KINDS)
def test_walks_are_smooth_and_keep_clear(kind):
    room = Room.random(7, kind)
    assert room.kind == kind
    poses = room.trajectory(seed=1, num_frames=240, rate_hz=30.0)
    assert poses.shape == (240, 4, 4)
    rotation, position = poses[:, :3, :3], poses[:, :3, 3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (240, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)
    # outside every solid, by the implicit surfaces, and with air around
    for solid in room.primitives:
        assert implicit(solid, position).min() > 0
    assert room.clearance(position).min() > CLEARANCE_M - 0.05
    assert position[:, 2].min() > 0.9 - 0.02
    assert position[:, 2].max() < 1.6 + 0.02
    speed = np.linalg.norm(np.diff(position, axis=0), axis=1) * 30
    acceleration = np.linalg.norm(np.diff(position, 2, axis=0), axis=1) * 900
    cosine = (np.einsum('nij,nij->n', rotation[1:], rotation[:-1]) - 1) / 2
    turning = np.rad2deg(np.arccos(np.clip(cosine, -1, 1))) * 30
    assert speed.max() < 0.7
    assert acceleration.max() < 2.0
    assert turning.max() < 70
    assert np.ptp(position[:, :2], axis=0).max() > 0.1 or turning.mean() > 5


def test_random_views_look_like_handheld_pictures(room):
    rng = np.random.default_rng(4)
    poses = np.array([room.random_pose(rng) for _ in range(30)])
    height, forward = poses[:, 2, 3], poses[:, :3, 2]
    down = np.rad2deg(np.arcsin(-forward[:, 2]))
    roll = np.rad2deg(np.arcsin(poses[:, 2, 0] / np.cos(np.deg2rad(down))))
    assert height.min() >= 0.8
    assert height.max() <= 1.7
    assert down.min() >= -5.01
    assert down.max() <= 35.01
    assert np.abs(roll).max() <= 5.01
    assert room.clearance(poses[:, :3, 3]).min() > 0.25
    assert np.ptp(np.arctan2(forward[:, 1], forward[:, 0])) > 3


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(InputError, match=r'bedroom.*office'):
        Room.random(0, 'garage')
    with pytest.raises(InputError, match='negative'):
        Room.random(-1)
