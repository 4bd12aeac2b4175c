from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')
kornia = pytest.importorskip('kornia')

from prepared_frames import (  # noqa: E402
    HEIGHT,
    WIDTH,
    frames_of,
    ramp_frames,
    ramps,
    random_frames,
)

from rgbd_fusion_seg import hha, preprocess  # noqa: E402
from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.frame import Intrinsics  # noqa: E402
from rgbd_fusion_seg.training import augment  # noqa: E402
from rgbd_fusion_seg.training.augment import AugmentConfig, draw_view  # noqa: E402
from rgbd_fusion_seg.training.config import DataConfig, TrainConfig  # noqa: E402
from rgbd_fusion_seg.training.inputs import channel_statistics  # noqa: E402
from rgbd_fusion_seg.training.view_reader import window  # noqa: E402
from rgbd_fusion_seg.training.views import TrainingViews  # noqa: E402

STILL = {
    'brightness': 0, 'contrast': 0, 'saturation': 0, 'hue': 0, 'noise': 0, 'hha_shift': 0,
    'depth_noise': 0,
}  # fmt: skip
WILD = {'min_zoom': 0.6, 'max_zoom': 2.5, 'max_rotation_deg': 30.0, 'whole': 0.1}
WALL_M = 9.0
CAMERA = Intrinsics(260.0, 260.0, 159.5, 119.5, 320, 240)


def batch_and_views(count: int = 24, **options) -> tuple[dict[str, torch.Tensor], list]:
    """A batch of views of `ramp_frames` at 160x120, and the numbers they were drawn with."""
    config = TrainConfig(
        batch_size=count,
        augment=AugmentConfig(**{**STILL, **options}),
        data=DataConfig(width=160, height=120, workers=0),
    )
    views = TrainingViews(
        {'train': ramp_frames()}, config, {'rgb': (120, 160), 'hha': (60, 80)}, 'cpu'
    )
    drawn = [views.reader.choose(draw)[2] for draw in range(count)]
    return next(views.batches(0, 1)), drawn


def warp(image: np.ndarray, view: augment.View) -> np.ndarray:
    """Show a view of one uint8 (H, W, 3) image at its own size: float (H, W, 3)."""
    size = image.shape[:2]
    _, rows, columns, pixel_map = window([image[None]], view, size)
    return sample(image[rows, columns], pixel_map, size)


def sample(image: np.ndarray, pixel_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample one uint8 (h, w, 3) image: float (height, width, 3)."""
    maps = torch.tensor(pixel_map, dtype=torch.float)[None]
    images = torch.from_numpy(image.copy())[None]
    extents = torch.tensor([[image.shape[1], image.shape[0]]]).float()
    return augment.sample_images(images, extents, maps, size)[0].permute(1, 2, 0).numpy()


def test_colour_lies_where_the_view_says():
    batch, drawn = batch_and_views(**WILD)
    places = ramps(120, 160)
    for rgb, view in zip(batch['rgb'], drawn, strict=True):
        expected = places @ view.to_frame[:, :2].T + view.to_frame[:, 2]
        # Pixels at the border of the frame have one neighbour only.
        inner = (np.abs(expected - 0.5) < 0.49).all(-1)
        assert inner.mean() > 0.2
        error = (rgb[:2].permute(1, 2, 0).numpy() - 200 * expected)[inner]
        assert np.abs(error).max() < 1.01  # ramps are rounded at each level of the pyramid
        assert np.abs(error.mean(0)).max() < 0.08  # an eighth of a pixel of the frame


def test_labels_have_exactly_the_geometry_of_colour():
    batch, drawn = batch_and_views(**WILD)
    assert any(np.linalg.det(v.to_frame[:, :2]) < 0 for v in drawn), 'none is mirrored'
    compared = 0
    for rgb, labels in zip(batch['rgb'].numpy(), batch['labels'].numpy(), strict=True):
        x, y = rgb[0] / 50, rgb[1] / 50
        inside = labels != 255
        # Away from the borders of labels by a pixel of the finest level: 200 / 320 grey levels.
        sure = inside & (np.abs(x - x.round()) > 0.02) & (np.abs(y - y.round()) > 0.02)
        assert (labels == 4 * np.floor(y) + np.floor(x))[sure].all()
        compared += sure.sum()
    assert compared > 0.5 * batch['labels'].numel()


def test_places_outside_the_frame_are_void_in_all_three():
    batch, drawn = batch_and_views(**WILD)
    places = ramps(120, 160)
    mean = torch.tensor(channel_statistics(ramp_frames())['rgb'][0])
    assert float((mean - torch.tensor([100.0, 100.0, 77.0])).abs().max()) < 2
    missing = torch.tensor(augment.MISSING_HHA)
    outside = 0
    for k, view in enumerate(drawn):
        expected = places @ view.to_frame[:, :2].T + view.to_frame[:, 2]
        void = (np.abs(expected - 0.5) > 0.5).any(-1)
        np.testing.assert_array_equal(batch['labels'][k].numpy() == 255, void)
        image = batch['rgb'][k].permute(1, 2, 0)
        assert (image == mean)[torch.from_numpy(void)].all()
        blocks = torch.from_numpy(void.reshape(60, 2, 80, 2).all((1, 3)))
        assert (batch['hha'][k].permute(1, 2, 0) == missing)[blocks].all()
        outside += void.sum()
    assert outside > 0.1 * batch['labels'].numel()


def test_hha_has_the_geometry_of_colour():
    batch, _ = batch_and_views(**WILD)
    for rgb, ours, labels in zip(batch['rgb'], batch['hha'], batch['labels'], strict=True):
        smaller = torch.nn.functional.avg_pool2d(rgb, 2)
        inside = torch.nn.functional.avg_pool2d((labels != 255).float()[None], 7, 2, 3)[0] == 1
        assert (smaller - ours).abs().amax(0)[inside].max() < 1.2


def test_the_draws_keep_to_the_config():
    config = AugmentConfig(max_zoom=3.0, whole=0.25, aspect=1.3)
    views = [draw_view(config, (240, 320), np.random.default_rng(i)) for i in range(400)]
    shown = np.array([np.abs(np.diag(v.to_frame[:, :2])) for v in views])
    whole = (shown == 1).all(1)
    assert 0.17 < whole.mean() < 0.33
    assert 0.4 < np.mean([v.to_frame[0, 0] < 0 for v in views]) < 0.6
    assert shown.max() == 1
    assert 1 / 3.6 < shown.min() < 1 / 2.5
    ratio = shown[:, 0] / shown[:, 1]
    assert 1.2 < ratio.max() <= 1.3 + 1e-9
    corners = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    reach = np.array([v.to_frame @ corners for v in views])
    assert reach.min() > -1e-9
    assert reach.max() < 1 + 1e-9
    assert np.ptp(reach.mean(2), axis=0).min() > 0.5, 'windows do not move about'


def test_a_view_zoomed_out_holds_the_whole_frame():
    config = AugmentConfig(min_zoom=0.5, max_zoom=0.5, whole=0, aspect=1, flip=0)
    for seed in range(20):
        linear, origin = np.split(
            draw_view(config, (240, 320), np.random.default_rng(seed)).to_frame, [2], axis=1
        )
        np.testing.assert_allclose(linear, 2 * np.eye(2), atol=1e-12)
        assert (origin <= 0).all()
        assert (origin >= -1).all()


def test_rotation_keeps_right_angles_of_pixels():
    config = AugmentConfig(max_rotation_deg=40, whole=0, aspect=1, flip=0, max_zoom=1)
    angles = []
    for seed in range(50):
        view = draw_view(config, (200, 500), np.random.default_rng(seed))
        columns = view.to_frame[:, :2] * np.array([[500], [200]]) / np.array([500, 200])
        np.testing.assert_allclose(columns.T @ columns, np.eye(2), atol=1e-12)
        angles.append(math.degrees(math.atan2(columns[1, 0], columns[0, 0])))
    assert -40 <= min(angles) < -25
    assert 25 < max(angles) <= 40


def test_corners_that_a_rotation_brings_in_are_void():
    """Without any zoom out, too."""
    batch, drawn = batch_and_views(min_zoom=1, max_zoom=1, whole=0, max_rotation_deg=30)
    places = ramps(120, 160)
    for labels, view in zip(batch['labels'].numpy(), drawn, strict=True):
        shown = places @ view.to_frame[:, :2].T + view.to_frame[:, 2]
        wrong = (labels == 255) != (np.abs(shown - 0.5) > 0.5).any(-1)
        assert wrong.mean() < 1e-3  # where a rim runs through the centre of a pixel
    assert (batch['labels'] == 255).float().mean() > 0.02


def test_views_of_the_whole_frame_are_not_rotated():
    config = AugmentConfig(whole=1, flip=0, max_rotation_deg=30, min_zoom=0.5)
    for seed in range(5):
        view = draw_view(config, (240, 320), np.random.default_rng(seed))
        np.testing.assert_allclose(view.to_frame, np.eye(2, 3), rtol=0, atol=1e-12)


def test_the_far_edges_of_a_frame_are_outside_and_the_near_ones_inside():
    to_frame = torch.tensor([[[2.0, 0, -0.5], [0, 2.0, -0.5]]])  # centres fall on 0 and 1
    inside = augment.inside_frame(to_frame, (2, 2))
    assert inside.tolist() == [[[True, False], [False, False]]]


def test_options_leave_the_other_numbers_of_a_view_alone():
    plain = draw_view(AugmentConfig(), (240, 320), np.random.default_rng(3))
    options = AugmentConfig(depth_scaling=True, drop_rgb=0.5, drop_hha=0.5, noise=0, hue=0)
    other = draw_view(options, (240, 320), np.random.default_rng(3))
    np.testing.assert_array_equal(plain.to_frame, other.to_frame)
    np.testing.assert_array_equal(plain.hha_shift, other.hha_shift)
    assert plain.noise_offset == other.noise_offset


def test_gain_and_contrast_are_kornias():
    image = 255 * torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    gain, contrast = torch.tensor([1.0, 0.7, 1.2]), torch.tensor([1.3, 1.0, 0.6])
    matrix = gain.view(-1, 1, 1) * torch.eye(3)
    ours = augment.jitter_rgb(image, matrix, contrast, torch.ones_like(image), torch.zeros(3))
    bright = gain.view(-1, 1, 1, 1) * image
    pivot = bright.mean((1, 2, 3), keepdim=True)
    # Kornia works on 0..1 and takes the mean of a luma; around 0, its contrast is a factor.
    expected = kornia.enhance.adjust_contrast((bright - pivot) / 255, contrast, clip_output=False)
    torch.testing.assert_close(ours, (255 * expected + pivot).clamp(0, 255), rtol=0, atol=1e-3)


def test_hue_turns_and_saturation_stretches_about_grey():
    third = augment.chroma_matrix(2 * math.pi / 3, 1.0)
    np.testing.assert_allclose(third @ [10, 20, 30], [30, 10, 20])  # red goes to green
    hsv = kornia.color.rgb_to_hsv(torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1))
    turned = augment.chroma_matrix(math.radians(60), 1.0) @ [0.6, 0.3, 0.3]
    other = kornia.color.rgb_to_hsv(torch.tensor(turned).view(1, 3, 1, 1))
    assert float(other[0, 0] - hsv[0, 0]) == pytest.approx(math.radians(60), abs=1e-5)
    np.testing.assert_allclose(
        augment.chroma_matrix(0.0, 1.5) @ [90, 120, 150], [75, 120, 165], atol=1e-9
    )
    np.testing.assert_allclose(augment.chroma_matrix(0.7, 0.4) @ [50, 50, 50], [50, 50, 50])


def test_noise_is_gaussian_of_the_view_s_strength():
    batch, drawn = batch_and_views(8, noise=12.0, whole=1.0, flip=0.0)
    still, _ = batch_and_views(8, whole=1.0, flip=0.0)
    noise = (batch['rgb'] - still['rgb'])[:, 2]  # the third channel is far from 0 and 255
    spread = noise.std((1, 2)).numpy()
    np.testing.assert_allclose(spread, [view.noise for view in drawn], rtol=0.03)
    assert np.ptp(spread) > 2
    assert noise.mean((1, 2)).abs().max() < 0.5
    correlation = np.corrcoef(noise.flatten(1).numpy()) - np.eye(8)
    assert np.abs(correlation).max() < 0.05


def test_jitter_leaves_labels_and_angles_alone():
    still, _ = batch_and_views(6)
    config = AugmentConfig()
    loud, drawn = batch_and_views(6, **{name: getattr(config, name) for name in STILL})
    torch.testing.assert_close(loud['labels'], still['labels'], rtol=0, atol=0)
    torch.testing.assert_close(loud['hha'][:, 2], still['hha'][:, 2], rtol=0, atol=0)
    shift = torch.tensor(np.array([v.hha_shift for v in drawn]), dtype=torch.float)
    moved = (still['hha'] + shift.view(-1, 3, 1, 1)).clamp(0, 255)
    torch.testing.assert_close(loud['hha'], moved, rtol=0, atol=1e-4)
    assert (loud['rgb'] - still['rgb']).abs().mean() > 1


def squares(height: int, width: int, side: int) -> np.ndarray:
    """A chessboard of 0 and 240, uint8 (height, width, 3)."""
    v, u = np.mgrid[:height, :width] // side
    return np.repeat((240 * ((u + v) % 2)).astype(np.uint8)[..., None], 3, 2)


def test_small_images_average_what_they_cover():
    board = torch.from_numpy(squares(96, 128, 2))[None]
    maps = torch.tensor([[[8.0, 0, 0], [0, 8, 0]]])
    extents = torch.tensor([[128.0, 96]])
    small = augment.sample_images(board, extents, maps, (12, 16), taps=4)
    torch.testing.assert_close(small, torch.full_like(small, 120.0))


def test_views_much_smaller_than_their_frames_have_no_aliasing():
    frames = random_frames(1)
    height, width = frames.labels.shape[1:]
    board = frames_of(squares(height, width, 4)[None], frames.labels, frames.hha)
    data = DataConfig(width=width // 8, height=height // 8, workers=0)
    config = TrainConfig(batch_size=2, augment=AugmentConfig(**STILL, whole=1), data=data)
    sizes = {'rgb': (height // 8, width // 8)}
    batch = next(TrainingViews({'train': board}, config, sizes, 'cpu').batches(0, 1))
    torch.testing.assert_close(batch['rgb'], torch.full_like(batch['rgb'], 120.0))


def test_windows_hold_all_that_a_view_shows():
    image = random_frames(1).rgb[0]
    size, config = (HEIGHT, WIDTH), AugmentConfig(**WILD)
    for seed in range(40):
        view = draw_view(config, size, np.random.default_rng(seed))
        _, rows, columns, _ = window([image], view, size)
        pixel_map = view.to_frame * [[WIDTH], [HEIGHT]] / (WIDTH, HEIGHT, 1)
        whole = sample(image[0], pixel_map, size)
        np.testing.assert_allclose(warp(image[0], view), whole, atol=0.1)
        shown = np.abs(view.to_frame[:, :2]).sum(1)[::-1] * size
        cut = (rows.stop - rows.start, columns.stop - columns.start)
        assert (cut <= np.minimum(shown + 3, size)).all()


def floor_and_wall(roll_deg: float = 0.0) -> np.ndarray:
    """Depth in metres of a floor 1.2 m below a camera that is turned about its optical axis, and
    of a wall `WALL_M` before it."""
    v, u = np.mgrid[:240, :320]
    # Where encode_hha sees a pixel's ray, so that its channels are those of true planes.
    x = (u - CAMERA.cx + hha.FIRST_PIXEL) / CAMERA.fx
    y = (v - CAMERA.cy + hha.FIRST_PIXEL) / CAMERA.fy
    roll = math.radians(roll_deg)
    down = y * math.cos(roll) - x * math.sin(roll)
    with np.errstate(divide='ignore'):
        return np.minimum(np.where(down > 0, 1.2 / down, np.inf), WALL_M).astype(np.float32)


def view_of(linear: np.ndarray, scale: float = 1.0) -> augment.View:
    """A view about the principal ray of `encode_hha`."""
    centre = np.array([(CAMERA.cx - 0.5) / 320, (CAMERA.cy - 0.5) / 240])
    to_frame = np.column_stack([linear, centre - linear @ centre])
    return augment.View(to_frame, np.eye(3), 1.0, 0.0, 0, np.array([scale, 1, 1]), np.zeros(3), '')


def away_from_edges(expected: np.ndarray) -> np.ndarray:
    """Where 9x9 pixels hold one surface: neither window of normals mixes floor and wall."""
    angle = expected[..., 2].astype(float)
    pad = np.pad(angle, 6, mode='edge')
    tiles = np.lib.stride_tricks.sliding_window_view(pad, (13, 13))
    return np.ptp(tiles, axis=(2, 3)) <= 2


@pytest.mark.parametrize('zoom', [1.5, 2.0, 0.75])
def test_depth_scaling_is_hha_of_the_scene_brought_nearer(zoom):
    depth = floor_and_wall()
    source = hha.encode_hha(depth, CAMERA)
    view = view_of(np.eye(2) / zoom, zoom)
    shown = warp(source, view) * view.hha_scale
    # The same lens sees the scene at 1/zoom of its depth: what it sees at a pixel is what the
    # frame shows at the pixel 1/zoom as far from the principal point.
    v, u = np.mgrid[:240, :320]
    cx, cy = CAMERA.cx - hha.FIRST_PIXEL, CAMERA.cy - hha.FIRST_PIXEL
    x, y = (u - cx) / zoom / CAMERA.fx, (v - cy) / zoom / CAMERA.fy
    with np.errstate(divide='ignore'):
        nearer = np.minimum(np.where(y > 0, 1.2 / y, np.inf), WALL_M) / zoom
    expected = hha.encode_hha(nearer.astype(np.float32), CAMERA, gravity=np.array([0, 1.0, 0]))
    sure = away_from_edges(expected) & away_from_edges(warp(source, view))
    if zoom < 1:  # places outside the frame are void
        sure &= (np.abs(x) < 150 / CAMERA.fx) & (np.abs(y) < 110 / CAMERA.fy)
    assert sure.mean() > 0.3
    assert (expected[..., 2][sure] < 45).mean() > 0.1, 'no floor'
    assert (expected[..., 2][sure] > 120).mean() > 0.1, 'no wall'
    error = np.abs(np.minimum(shown, 255) - expected)[sure]
    saturated = zoom < 1 and (warp(source, view)[..., 0] >= 254)[sure]
    assert error[..., 1:].max() <= 2
    assert error[~saturated if zoom < 1 else slice(None), 0].max() <= 1 + zoom


def test_disparity_grows_with_the_zoom_of_the_view():
    shown, drawn = batch_and_views(depth_scaling=True)
    plain, _ = batch_and_views()
    for a, b, view in zip(shown['hha'], plain['hha'], drawn, strict=True):
        zoom = abs(np.linalg.det(view.to_frame[:, :2])) ** -0.5
        torch.testing.assert_close(a[0], (b[0] * zoom).clamp(max=255), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(a[1:], b[1:], rtol=0, atol=0)
    zooms = [view.hha_scale[0] for view in drawn]
    assert min(zooms) == 1  # the whole frame
    assert max(zooms) > 1.5


def depth_batch(depth: np.ndarray, count: int, **options) -> tuple[np.ndarray, list]:
    """Metres (count, 120, 160) of views of one frame 320x240, and their numbers."""
    frames = dataclasses.replace(ramp_frames(), depth=(depth[None].astype(np.float16),))
    config = TrainConfig(
        batch_size=count,
        augment=AugmentConfig(**{**STILL, **options}),
        data=DataConfig(width=160, height=120, workers=0),
    )
    views = TrainingViews({'train': frames}, config, {'depth': (120, 160)}, 'cpu')
    drawn = [views.reader.choose(draw)[2] for draw in range(count)]
    return next(views.batches(0, 1))['depth'][:, 0].numpy(), drawn


@pytest.mark.parametrize('depth_scaling', [True, False])
def test_a_zoom_moves_the_camera_or_lengthens_the_lens(depth_scaling):
    # A wall that stands askew and a floor, whose depth along any ray a formula tells.
    def scene(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with np.errstate(divide='ignore'):
            return np.minimum(4 / (1 + 0.3 * x), np.where(y > 0, 1.2 / y, np.inf))

    def rays(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (320 * u - 160) / CAMERA.fx, (240 * v - 120) / CAMERA.fy

    options = {'min_zoom': 0.8, 'max_zoom': 2.0, 'whole': 0.1, 'depth_scaling': depth_scaling}
    image = scene(*rays(*np.moveaxis(ramps(240, 320), -1, 0)))
    shown, drawn = depth_batch(image, 24, aspect=1.0, **options)
    zooms = []
    for metres, view in zip(shown, drawn, strict=True):
        places = ramps(120, 160) @ view.to_frame[:, :2].T + view.to_frame[:, 2]
        inside = (np.abs(places - 0.5) < 0.5).all(-1)
        assert (metres[~inside] == 0).all()
        # The camera has moved to where the scene is a zoom as large: all of it that much nearer.
        zoom = np.linalg.norm(view.to_frame[:, 0]) ** -1
        zooms.append(zoom)
        expected = scene(*rays(*np.moveaxis(places, -1, 0))) / (zoom if depth_scaling else 1)
        error = np.abs(metres - expected)[inside] / expected[inside]
        # Half a pixel of the frame beside the ray: 2 % of the depth of the floor far away.
        assert np.quantile(error, 0.99) < 0.03
        assert error.mean() < 0.005
    assert min(zooms) < 0.9
    assert max(zooms) > 1.6


def test_views_show_depths_that_were_measured():
    board = np.where(squares(240, 320, 7)[..., 0] > 0, 1.0, 6.0)
    shown, _ = depth_batch(board, 12, **{**WILD, 'min_zoom': 1.0, 'max_rotation_deg': 0.0})
    assert set(np.unique(shown)) == {1.0, 6.0}


def test_noise_on_depth_grows_with_its_square():
    board = np.where(squares(240, 320, 80)[..., 0] > 0, 1.0, 4.0)
    options = {'whole': 1.0, 'flip': 0.0}
    shown, drawn = depth_batch(board, 8, depth_noise=0.01, **options)
    still, _ = depth_batch(board, 8, **options)
    noise = shown - still
    for one, depth, view in zip(noise, still, drawn, strict=True):
        for metres in (1.0, 4.0):
            spread = one[depth == metres].std()
            assert spread == pytest.approx(view.depth_noise * metres**2, rel=0.05)
    assert np.ptp([view.depth_noise for view in drawn]) > 0.003
    correlation = np.corrcoef(noise.reshape(8, -1)) - np.eye(8)
    assert np.abs(correlation).max() < 0.05


def test_noise_on_depth_is_that_of_a_scene_brought_nearer():
    options = {'whole': 0.0, 'flip': 0.0, 'aspect': 1.0, 'min_zoom': 2.0, 'max_zoom': 2.0}
    board = np.full((240, 320), 4.0)
    shown, drawn = depth_batch(board, 6, depth_noise=0.01, depth_scaling=True, **options)
    for metres, view in zip(shown, drawn, strict=True):
        assert metres.mean() == pytest.approx(2, abs=0.01)
        assert metres.std() == pytest.approx(view.depth_noise * 2**2, rel=0.05)


def test_depth_ends_where_that_of_the_runtime_does():
    options = {'whole': 0.0, 'aspect': 1.0, 'min_zoom': 0.5, 'max_zoom': 0.5}
    shown, _ = depth_batch(np.full((240, 320), 90.0), 3, depth_scaling=True, **options)
    assert set(np.unique(shown)) == {0.0, preprocess.FARTHEST_INPUT_M}


def test_without_depth_scaling_a_zoom_is_a_longer_lens():
    source = hha.encode_hha(floor_and_wall(), CAMERA)
    shown = warp(source, view_of(np.eye(2) / 2))
    wall = away_from_edges(shown) & (shown[..., 2] > 120)
    assert wall.mean() > 0.1
    assert np.abs(shown[..., 0][wall] - 310 / WALL_M).max() < 1


@pytest.mark.parametrize('roll', [-12.0, 25.0])
def test_hha_of_a_rolled_camera_is_the_rolled_hha(roll):
    turn = math.radians(roll)
    rolled = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    pixels = np.array([320, 240])
    linear = rolled * pixels / pixels[:, None]
    shown = warp(hha.encode_hha(floor_and_wall(), CAMERA), view_of(linear))
    expected = hha.encode_hha(floor_and_wall(roll), CAMERA)
    v, u = np.mgrid[:240, :320]
    sure = away_from_edges(expected) & away_from_edges(shown)
    sure &= np.hypot(u - CAMERA.cx, v - CAMERA.cy) < 105  # within the frame at every roll
    assert (expected[..., 2][sure] < 45).mean() > 0.1
    assert (expected[..., 2][sure] > 120).mean() > 0.1
    # Gravity is estimated, to a quarter of a degree here; at 9 m that is 4 cm of height.
    assert (np.abs(shown - expected)[sure].max(0) <= [1, 4, 1]).all()


def test_missing_hha_is_what_the_runtime_makes_of_no_reading():
    image = preprocess.hha_image(np.zeros((240, 320), np.float32), CAMERA, 32, 24)
    assert (image == np.array(augment.MISSING_HHA)).all()


@pytest.mark.parametrize(
    'wrong',
    [
        {'min_zoom': 0}, {'min_zoom': 3}, {'aspect': 0.9}, {'whole': 1.5}, {'contrast': 1},
        {'max_rotation_deg': 60}, {'max_rotation_deg': 45}, {'drop_rgb': 0.6, 'drop_hha': 0.6},
        {'noise': -1}, {'depth_noise': -0.1},
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        AugmentConfig(**wrong)


def test_only_an_image_counts_not_what_pads_it_nor_how_much():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (20, 27, 3), np.uint8))
    labels = image[..., 0]
    maps = torch.tensor([[[-0.83, 0.21, 25.0], [0.17, 0.94, -3.0]]])
    extents = torch.tensor([[27.0, 20.0]])
    alone, found = [], []
    for height, width, fill in ((32, 32, 0), (64, 32, 255), (32, 512, 9)):
        canvas = torch.full((1, height, width, 3), fill, dtype=torch.uint8)
        canvas[0, :20, :27] = image
        alone.append(augment.sample_images(canvas, extents, maps, (24, 40)))
        found.append(augment.sample_nearest(canvas[..., 0], extents, maps, (24, 40)))
    for sampled, taken in zip(alone, found, strict=True):
        torch.testing.assert_close(sampled, alone[0], rtol=0, atol=0)
        torch.testing.assert_close(taken, found[0], rtol=0, atol=0)
    places = augment.positions(maps, 24, 40)
    grid = places * torch.tensor([2 / 27, 2 / 20]) - 1
    planes = image.permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.grid_sample(planes, grid, 'bilinear', 'border', False)
    torch.testing.assert_close(alone[0], expected, rtol=0, atol=0.1)
    x, y = places[0].floor().long().unbind(-1)
    torch.testing.assert_close(found[0][0], labels[y.clamp(0, 19), x.clamp(0, 26)])


def test_jitter_keeps_to_each_limit():
    """As the colour matrix does to grey and to a pure chroma."""
    grey, red = np.ones(3) / math.sqrt(3), np.array([2.0, -1.0, -1.0]) / math.sqrt(6)
    across = np.cross(grey, red)

    def read(view):
        along, aside = view.rgb_matrix @ red @ red, view.rgb_matrix @ red @ across
        return {
            'brightness': grey @ view.rgb_matrix @ grey - 1,
            'contrast': view.contrast - 1,
            'saturation': math.hypot(along, aside) - 1,
            'hue': math.degrees(math.atan2(aside, along)),
        }

    limits = {'brightness': 0.1, 'contrast': 0.2, 'saturation': 0.3, 'hue': 20.0}
    for name, limit in limits.items():
        config = AugmentConfig(**dict.fromkeys(limits, 0) | {name: limit})
        seen = [read(draw_view(config, (240, 320), np.random.default_rng(i))) for i in range(300)]
        largest = {other: max(abs(values[other]) for values in seen) for other in limits}
        assert 0.95 * limit < largest.pop(name) <= limit + 1e-9
        if name == 'brightness':
            del largest['saturation']  # a gain scales chroma too
        assert max(largest.values()) < 1e-9


def test_in_poor_light_colours_are_dark_or_noisy():
    """What amplification makes good for in brightness it adds in noise, and light has a least."""
    config = AugmentConfig(**STILL, dark=0.4, darkest=0.1)
    drawn = [draw_view(config, (120, 160), np.random.default_rng(i)) for i in range(3000)]
    brightness = np.array([view.rgb_matrix[0, 0] for view in drawn])
    noise = np.array([view.noise for view in drawn])
    dark = brightness < 1
    assert 0.37 < dark.mean() < 0.43
    assert (noise[~dark] == 0).all()
    assert brightness.min() > 0.1
    # Half of the exponents' range is left to light, half of that is made good for.
    assert np.log(brightness[dark]).mean() == pytest.approx(math.log(0.1) / 4, rel=0.1)
    # Of the dark views, those as bright as before stood in any light: noise grows by 1 / light.
    assert (noise <= brightness / 0.1).all()
    assert noise[dark & (brightness > 0.9)].max() > 4
    assert noise[dark & (brightness < 0.2)].max() < 2


def test_poor_light_changes_colour_alone():
    options = {'dark': 1.0, 'darkest': 0.05}
    lit, drawn = batch_and_views()
    dark, changed = batch_and_views(**options)
    compared = 0
    for name in ('hha', 'labels'):
        torch.testing.assert_close(dark[name], lit[name], rtol=0, atol=0)
    for i, view in enumerate(changed):
        np.testing.assert_array_equal(view.to_frame, drawn[i].to_frame)
        inner = (lit['rgb'][i] > 0) & (view.rgb_matrix[0, 0] * lit['rgb'][i] > 4 * view.noise)
        if inner.sum() < 9000:
            continue
        compared += 1
        error = (dark['rgb'][i] - view.rgb_matrix[0, 0] * lit['rgb'][i])[inner]
        assert float(error.mean()) == pytest.approx(0, abs=0.05 * view.noise + 0.01)
        assert float(error.std()) == pytest.approx(view.noise, rel=0.05, abs=0.01)
    assert compared > 5
