from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame

pytest.importorskip('h5py', reason='needs the extra [train]')

from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40, NyuDepthV2
from rgbd_fusion_seg.training.datasets.synthetic_rooms import SyntheticRooms
from rgbd_fusion_seg.training.translation import domains
from rgbd_fusion_seg.training.translation.domains import DOMAINS, domain_images

CAMERA = Intrinsics(520.0, 500.0, 310.0, 250.0, 640, 480)
SIDE = 256
INSIDE = (slice(12, -12), slice(12, -12))


def rays(camera: Intrinsics) -> np.ndarray:
    v, u = np.mgrid[0 : camera.height, 0 : camera.width].astype(float)
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def plane(normal: tuple[float, float, float], distance: float) -> np.ndarray:
    """Depth of the plane n . P = -distance in CAMERA, n unit and facing the camera."""
    with np.errstate(divide='ignore'):
        return (-distance / (rays(CAMERA) @ np.asarray(normal))).astype(np.float32)


def quadric(centre: tuple[float, float, float], radius: float, along: np.ndarray) -> np.ndarray:
    """Depth in CAMERA of what is `radius` from a centre in the plane of the axes `along`."""
    r, c = rays(CAMERA) * along, np.asarray(centre) * along
    a, b = (r * r).sum(-1), (r @ c)
    inside = b * b - a * (c @ c - radius * radius)
    return np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, 0).astype(np.float32)


def item(depth: np.ndarray, rgb: np.ndarray | None = None) -> LabelledFrame:
    rgb = np.zeros((480, 640, 3), np.uint8) if rgb is None else rgb
    return LabelledFrame(RgbdFrame(rgb, depth, CAMERA), np.zeros((480, 640), np.uint8))


def images(depth: np.ndarray, *names: str, rgb: np.ndarray | None = None) -> list[np.ndarray]:
    made = domain_images(item(depth, rgb), names, NYU40, SIDE)
    return [made[name].astype(int) for name in names]


def tilted(down_deg: float, left_deg: float) -> tuple[float, float, float]:
    a, b = math.radians(down_deg), math.radians(left_deg)
    return -math.sin(b), math.sin(a) * math.cos(b), -math.cos(a) * math.cos(b)


def test_every_domain_is_a_square_of_three_channels():
    made = domain_images(item(plane((0, 0, -1), 2.0)), list(DOMAINS), NYU40, 100)
    assert list(made) == [
        *('rgb', 'depth', 'normal', 'shade', 'texture', 'edge', 'curvature', 'labels')
    ]
    for image in made.values():
        assert (image.shape, image.dtype) == ((100, 100, 3), np.uint8)
        assert image.flags.c_contiguous


def test_an_unknown_domain_is_named_with_the_known_ones():
    with pytest.raises(InputError, match="no image domain 'hha'; RGB-D frames have rgb, depth, "):
        domain_images(item(plane((0, 0, -1), 2.0)), ['rgb', 'hha'], NYU40, SIDE)


@pytest.mark.parametrize(
    ('normal', 'colour'),
    [
        ((0, 0, -1), (128, 128, 0)),
        (tilted(0, 40), (46, 128, 30)),
        (tilted(0, -40), (209, 128, 30)),
        (tilted(-60, 0), (128, 17, 64)),
        (tilted(35, 20), (84, 196, 29)),
    ],
)
def test_a_plane_has_the_colour_of_its_normal(normal, colour):
    """So squeezing does not tilt it: across, the frame shrinks more than down."""
    (image,) = images(plane(normal, 2.0), 'normal')
    np.testing.assert_allclose(image[INSIDE].reshape(-1, 3).mean(0), colour, atol=0.6)
    assert np.abs(image[INSIDE] - colour).max() <= 1


@pytest.mark.parametrize('radius', [1, 4, 10])
def test_every_pixel_of_a_plane_has_its_normal(radius):
    """Those of even and odd columns come from two runs of a kernel."""
    normal = tilted(35, 20)
    found = domains.surface_normals(plane(normal, 2.0), CAMERA, radius)
    # Beside the 9 readings of the smallest window, round-off of depth is what is left.
    limit = 2e-3 if radius == 1 else 2e-4
    assert np.abs(found - normal).max() < limit


def test_a_floor_is_purple_and_a_ceiling_green():
    """As in Taskonomy's images."""
    for normal, colour in (((0, -1, 0), (128, 0, 128)), ((0, 1, 0), (128, 255, 128))):
        depth = plane(normal, 1.2)
        depth[(depth < 0) | (depth > 4)] = 0
        (image,) = images(depth, 'normal')
        below = image[-40:-12, 12:-12] if normal[1] < 0 else image[12:40, 12:-12]
        assert np.abs(below - colour).max() <= 2


def test_labels_are_those_at_the_centres_of_pixels():
    depth = np.ones((480, 640), np.float32)
    labels = np.random.default_rng(6).integers(0, 40, (480, 640), dtype=np.uint8)
    frame = LabelledFrame(item(depth).frame, labels)
    image = domain_images(frame, ['labels'], NYU40, 96)['labels']
    rows = ((np.arange(96) + 0.5) * 480 / 96).astype(int)
    columns = ((np.arange(96) + 0.5) * 640 / 96).astype(int)
    np.testing.assert_array_equal(image, NYU40.colors[labels[np.ix_(rows, columns)]])


@pytest.mark.parametrize('normal', [(0, 0, -1), tilted(-50, 0), tilted(20, 45)])
def test_shade_is_lamberts_with_the_lamps_falloff(normal):
    depth = plane(normal, 3.0)
    (image,) = images(depth, 'shade')
    r = rays(CAMERA.resized(SIDE, SIDE))
    points = r * (-3.0 / (r @ np.asarray(normal)))[..., None]
    distance = np.linalg.norm(points, axis=-1)
    light = 1.6 * (3.0 / distance) * 8 / (8 + distance**2)
    expected = np.rint(np.clip(light, 0, 1) * 255)
    assert np.abs(image - expected[..., None])[INSIDE].max() <= 2
    assert expected.min() < 200


@pytest.mark.parametrize('normal', [(0, 0, -1), tilted(-50, 0), tilted(20, 45)])
def test_a_plane_is_flat(normal):
    image = images(plane(normal, 2.0), 'curvature')[0]
    assert np.abs(image - (127, 127, 0)).max() <= 1


def bends(depth: np.ndarray) -> np.ndarray:
    """Principal curvatures in 1/m, at the size of the frame."""
    view = domains.View(item(depth), NYU40, SIDE)
    return domains.principal_curvatures(view.normals, view.depth, CAMERA, view.radius)


@pytest.mark.parametrize('radius', [0.4, 0.8])
def test_a_sphere_bends_by_one_over_its_radius_both_ways(radius):
    depth = quadric((0.1, -0.05, 2.0), radius, np.ones(3))
    near = (depth > 0) & (depth < 2.0 - 0.8 * radius)
    assert near.sum() > 2000
    found = bends(depth)[near] * radius
    assert np.abs(found - 1).max() < 0.07
    assert np.abs(np.median(found) - 1) < 0.03


def test_the_inside_of_a_sphere_bends_the_other_way():
    r = rays(CAMERA)
    depth = (2.0 / np.linalg.norm(r, axis=-1)).astype(np.float32)
    found = bends(depth)[30:-30, 30:-30] * 2.0
    assert np.abs(found + 1).max() < 0.05


@pytest.mark.parametrize('across', [True, False])
def test_a_cylinder_bends_one_way(across):
    """The larger magnitude comes first, whichever direction it has."""
    depth = quadric((0.0, 0.0, 2.0), 0.5, np.array([0.0, 1, 1] if across else [1.0, 0, 1]))
    found = bends(depth)
    middle = found[235:265, 40:-40] if across else found[40:-40, 295:325]
    assert np.abs(middle[..., 0] * 0.5 - 1).max() < 0.05
    assert np.abs(middle[..., 1] * 0.5).max() < 0.05
    image = images(depth, 'curvature')[0][128:138, 118:128]
    assert np.abs(image - (127 + 2 * 0.03 * 127, 127, 0)).max() <= 1


def test_the_larger_magnitude_comes_first_where_a_surface_is_concave():
    r = rays(CAMERA)
    depth = (1.5 / np.hypot(r[..., 0], 1)).astype(np.float32)
    found = bends(depth)[40:-40, 40:-40] * 1.5
    assert np.abs(found[..., 0] + 1).max() < 0.05
    assert np.abs(found[..., 1]).max() < 0.05


def test_curvature_saturates_at_three_centimetres():
    levels = np.array([-1e3, -1 / 0.03, 0, 1 / 0.03, 1e3])
    coded = np.rint((np.clip(levels * domains.MIN_CURVATURE_RADIUS_M, -1, 1) + 1) * 127)
    assert coded.tolist() == [0, 0, 127, 254, 254]


def step() -> np.ndarray:
    """2 m to the left of the middle of the frame, 3 m to the right."""
    depth = np.full((480, 640), 2.0, np.float32)
    depth[:, 320:] = 3.0
    return depth


def test_an_edge_is_where_depth_steps_and_nowhere_else():
    (image,) = images(step(), 'edge')
    assert (image[:, 126:130].max(axis=(1, 2)) > 5).all()
    assert image[:, :125].max() == image[:, 131:].max() == 0
    jump = (math.sqrt(3 / 128) - math.sqrt(2 / 128)) / math.sqrt(2)
    large = domain_images(item(step()), ['edge'], NYU40, 512)['edge']
    assert large.max() == pytest.approx(jump * 65535 * 255 / 11584, abs=1.5)


def test_colour_makes_no_edge_and_depth_no_texture():
    noise = np.random.default_rng(3).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    edge, texture = images(plane((0, 0, -1), 2.0), 'edge', 'texture', rgb=noise)
    assert edge.max() == 0
    assert texture.max() > 20
    assert images(step(), 'texture')[0].max() == 0


def test_a_step_of_depth_does_not_bend_the_surfaces_beside_it():
    normal, curvature = images(step(), 'normal', 'curvature')
    assert np.abs(curvature - (127, 127, 0)).max() <= 1
    wrong = np.abs(normal - (128, 128, 0)).max(axis=2) > 2
    assert wrong.sum(axis=1).max() <= 2


def test_two_walls_at_different_distances_are_flat_to_their_edge():
    depth = plane(tilted(0, 30), 2.0)
    depth[:, 320:] = plane(tilted(0, -30), 3.5)[:, 320:]
    found = np.abs(bends(depth)).max(axis=2)
    assert found[15:-15, 15:317].max() < 0.05
    assert found[15:-15, 323:-15].max() < 0.05


def test_texture_is_the_gradient_of_the_smoothed_grey_image():
    rgb = np.random.default_rng(4).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    rgb = cv2.GaussianBlur(rgb, (0, 0), 2)
    (image,) = images(plane((0, 0, -1), 2.0), 'texture', rgb=rgb)
    grey = cv2.cvtColor(cv2.resize(rgb, (512, 512), interpolation=cv2.INTER_AREA), 7) / 255.0
    smooth = cv2.GaussianBlur(grey, (0, 0), 3)
    across, down = cv2.Sobel(smooth, cv2.CV_64F, 1, 0), cv2.Sobel(smooth, cv2.CV_64F, 0, 1)
    edges = np.hypot(across, down) / 4 / math.sqrt(2) * 65535 * 255 / 11355
    expected = cv2.resize(edges, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert expected.max() > 20
    assert np.abs(image[..., 0] - expected).max() <= 1.6


def test_depth_is_the_logarithm_that_cen_takes():
    depth = np.full((480, 640), 0.5, np.float32)
    depth[:160], depth[160:320] = 2.0, 200.0
    (image,) = images(depth, 'depth')
    expected = [int(math.log(1 + v) * 255 / 11.1) for v in (1024, 51200, 256)]
    assert [image[40, 5, 0], image[128, 5, 0], image[-5, 5, 0]] == expected
    assert domains.depth_grey(np.array([0, 65535])).tolist() == [0, 254]


def test_pixels_without_a_normal_are_neutral_and_depth_is_filled():
    depth = plane((0, 0, -1), 2.0)
    depth[100:340, 200:440] = 0
    depth_, normal, shade, curvature = images(depth, 'depth', 'normal', 'shade', 'curvature')
    assert (normal[118, 128] == 128).all()
    assert (shade[118, 128] == 0).all()
    assert (curvature[118, 128] == (127, 127, 0)).all()
    assert np.unique(depth_).tolist() == [int(math.log(1025) * 255 / 11.1)]


def test_normals_reach_into_a_hole_as_far_as_a_window():
    depth = plane((0, 0, -1), 2.0)
    depth[100:340, 200:440] = 0
    known = domains.surface_normals(depth, CAMERA, 10).any(axis=2)
    assert known[:109].all()
    assert known[:, :209].all()
    assert not known[112:328, 212:428].any()


def test_a_frame_without_any_reading_has_all_its_images():
    made = domain_images(item(np.zeros((480, 640), np.float32)), list(DOMAINS), NYU40, 64)
    assert (made['normal'] == 128).all()
    assert (made['curvature'] == (127, 127, 0)).all()
    assert not any(made[name].any() for name in ('depth', 'shade', 'edge'))


def test_classes_have_their_colours_and_void_is_black():
    classes = ClassSet('two', ('a', 'b'), np.array([[9, 8, 7], [200, 100, 50]], np.uint8))
    depth = np.ones((480, 640), np.float32)
    labels = np.zeros((480, 640), np.uint8)
    labels[:, 320:], labels[240:] = 1, 255
    frame = LabelledFrame(item(depth).frame, labels)
    image = domain_images(frame, ['labels'], classes, 64)['labels']
    assert (image[:32, :32] == (9, 8, 7)).all()
    assert (image[:32, 32:] == (200, 100, 50)).all()
    assert not image[32:].any()


def test_normals_are_unit_and_face_the_camera(data_dir):
    frame = NyuDepthV2(data_dir / 'nyudv2', 'test')[40]
    view = domains.View(frame, NYU40, SIDE)
    length = np.linalg.norm(view.normals, axis=2)
    assert np.abs(length[length > 0] - 1).max() < 1e-4
    assert (length > 0).mean() > 0.99
    assert ((view.normals * view.rays).sum(-1) <= 1e-6).all()


def test_domains_of_a_real_frame_agree(data_dir):
    """What is labelled floor is seen from above, and lies beyond no edge of its own."""
    source = NyuDepthV2(data_dir / 'nyudv2', 'test')
    up, floors = [], 0
    for index in range(0, 60, 4):
        frame = source[index]
        made = domain_images(frame, ['normal', 'labels', 'curvature'], NYU40, SIDE)
        floor = (made['labels'] == NYU40.colors[1]).all(axis=2)
        floor = cv2.erode(floor.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        if floor.sum() > 500:
            floors += 1
            up.append(np.median(made['normal'][floor], axis=0))
            flat = np.abs(made['curvature'][floor].astype(int) - (127, 127, 0))
            assert np.median(flat) <= 6
    assert floors >= 3
    assert np.median(up, axis=0)[1] < 30


def test_synthetic_rooms_have_all_domains():
    made = domain_images(SyntheticRooms(4)[3], list(DOMAINS), NYU40, SIDE)
    assert all(image.std() > 1 for image in made.values())


def test_the_identity_tells_every_constant():
    assert all(isinstance(value, int | float) for value in domains.constants().values())
