from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training.translation.config import (  # noqa: E402
    GeneratorConfig,
    ImagesConfig,
    TranslationConfig,
)
from rgbd_fusion_seg.training.translation.prepared import (  # noqa: E402
    PreparedImages,
    network_image,
)
from rgbd_fusion_seg.training.translation.scores import as_bytes  # noqa: E402
from rgbd_fusion_seg.training.translation.views import TranslationViews, mirror  # noqa: E402
from rgbd_fusion_seg.training.view_reader import shuffled  # noqa: E402

SIDE, LOAD_SIDE, COUNT = 16, 20, 5


def prepared() -> PreparedImages:
    """Images whose pixels tell which image, row and column they are."""
    n, y, x = np.meshgrid(*map(np.arange, (COUNT, LOAD_SIDE, LOAD_SIDE)), indexing='ij')
    image = np.stack([x, y, n], -1).astype(np.uint8)
    return PreparedImages('numbers', '', {'rgb': image, 'normal': image + np.uint8(100)})


def views(rank: int = 0, world_size: int = 1, **changes) -> TranslationViews:
    config = TranslationConfig(
        batch_size=changes.pop('batch_size', 2),
        seed=changes.pop('seed', 0),
        adversarial=0.0,
        generator=GeneratorConfig(depth=4),
        images=ImagesConfig(**{'side': SIDE, 'load_side': LOAD_SIDE, 'workers': 0, **changes}),
    )
    return TranslationViews(prepared(), config, rank, world_size)


def shown(batch: dict, name: str) -> np.ndarray:
    assert batch[name].dtype == torch.uint8
    return batch[name].numpy().astype(int)


def test_networks_see_values_from_minus_1_to_1_and_back():
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    seen = network_image(image)
    assert seen.dtype == torch.float32
    assert seen.shape == (1, 3, 16, 16)
    assert (seen.min(), seen.max()) == (-1, 1)
    assert float(seen[0, 0, 3, 3]) == pytest.approx(-0.6)  # of 51
    assert torch.equal(as_bytes(seen).permute(0, 2, 3, 1), image)


def test_a_view_is_one_window_of_one_image_in_every_domain():
    corners, steps, numbers = set(), [], []
    for batch in views().batches(0, 100):
        rgb, normal = shown(batch, 'rgb'), shown(batch, 'normal')
        for ours, directions in zip(rgb, normal, strict=True):
            columns, rows, image = ours[0, :, 0], ours[:, 0, 1], ours[..., 2]
            step = columns[1] - columns[0]
            assert abs(step) == 1
            np.testing.assert_array_equal(np.diff(columns), step)
            np.testing.assert_array_equal(np.diff(rows), 1)
            assert len(np.unique(image)) == 1
            numbers.append(int(image[0, 0]))
            corners.add((int(rows[0]), int(columns.min())))
            steps.append(int(step))
            # The same window; where a mirror shows it, what points to the right points left.
            towards = 255 - directions[..., 0] if step < 0 else directions[..., 0]
            np.testing.assert_array_equal(towards, ours[..., 0] + 100)
            np.testing.assert_array_equal(directions[..., 1:], ours[..., 1:] + 100)
    assert 80 < steps.count(-1) < 120 < len(steps) == 200  # half of them are mirrored
    # Offsets 0..4 both ways; the public code's 286 - 256 + 1 lets a black row in.
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(5))
    # Every image once an epoch, in another order each time.
    epochs = np.array(numbers).reshape(-1, COUNT)
    assert (np.sort(epochs, axis=1) == np.arange(COUNT)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 20


def test_a_batch_depends_on_seed_and_step_alone():
    batches = list(views().batches(0, 6))
    for later in (views().batches(3, 3), views(workers=2).batches(3, 3)):
        for ours, theirs in zip(later, batches[3:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    other = next(views(seed=1).batches(0, 1))
    assert not torch.equal(other['rgb'], batches[0]['rgb'])


def test_the_order_of_images_is_that_of_every_version_and_drawn_once_an_epoch():
    drawn = shuffled.cache_info().misses
    batches = views(seed=4711).batches(0, 10)
    numbers = np.concatenate([shown(batch, 'rgb')[:, 0, 0, 2] for batch in batches])
    orders = [np.random.default_rng((4711, 0, epoch)).permutation(COUNT) for epoch in range(4)]
    np.testing.assert_array_equal(numbers, np.concatenate(orders))
    assert shuffled.cache_info().misses - drawn == 4


def test_processes_share_a_batch():
    whole = next(views(batch_size=4).batches(7, 1))
    parts = [next(views(rank, 2, batch_size=4).batches(7, 1)) for rank in range(2)]
    for name, images in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), images)


def test_nothing_is_mirrored_where_that_is_not_wanted():
    for batch in views(flip=False).batches(0, 20):
        assert (np.diff(shown(batch, 'rgb')[..., 0], axis=2) == 1).all()


def test_a_mirrored_normal_points_the_other_way():
    left, up = np.array([[[0, 128, 128]]], np.uint8), np.array([[[128, 0, 128]]], np.uint8)
    np.testing.assert_array_equal(mirror('normal', left), [[[255, 128, 128]]])
    np.testing.assert_array_equal(mirror('normal', up)[..., 1:], [[[0, 128]]])
    np.testing.assert_array_equal(mirror('shade', left), left)
