from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.bundle import TensorInput  # noqa: E402
from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame  # noqa: E402
from rgbd_fusion_seg.postprocess import labels_and_confidence  # noqa: E402
from rgbd_fusion_seg.preprocess import hha_image, hha_tensor, rgb_tensor  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import (  # noqa: E402
    class_entries,
    save_checkpoint,
)
from rgbd_fusion_seg.training.datasets.base import ClassSet  # noqa: E402
from rgbd_fusion_seg.training.inputs import Normaliser  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network  # noqa: E402
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork  # noqa: E402
from rgbd_fusion_seg.training.predictors import (  # noqa: E402
    NetworkPredictor,
    best_class,
    enlarged,
    labels_of,
    open_predictor,
    usable_device,
)

STATISTICS = {
    'rgb': ([120.0, 110.0, 100.0], [60.0, 70.0, 80.0]),
    'hha': ([130.0, 120.0, 110.0], [50.0, 60.0, 40.0]),
    'depth': ([2.0, 2.0, 2.0], [1.5, 1.5, 1.5]),
}
CLASSES = ClassSet('five', tuple('abcde'), np.arange(15, dtype=np.uint8).reshape(5, 3))


@pytest.fixture
def frame() -> RgbdFrame:
    """A tilted floor before a wall, all of it in random colours."""
    rng = np.random.default_rng(7)
    v, u = np.mgrid[0:96, 0:128].astype(np.float32)
    depth = np.minimum(1.2 * 110 / np.maximum(v - 30, 1e-3), 3.0 + 0.01 * u).astype(np.float32)
    rgb = rng.integers(0, 256, (96, 128, 3), np.uint8)
    return RgbdFrame(rgb, depth, Intrinsics(110.0, 110.0, 70.0, 50.0, 128, 96))


def mirrored(frame: RgbdFrame) -> RgbdFrame:
    k = frame.intrinsics
    camera = Intrinsics(k.fx, k.fy, k.width - 1 - k.cx, k.cy, k.width, k.height)
    rgb, depth = (np.ascontiguousarray(x[:, ::-1]) for x in (frame.rgb, frame.depth))
    return RgbdFrame(rgb, depth, camera)


class PixelNetwork(SegmentationNetwork):
    """Scores each 4x4 block of colour, plus a slope along the columns that mirroring reveals."""

    modalities, stride, size_multiple = ('rgb',), 4, 8

    def __init__(self, slope: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = torch.nn.Conv2d(3, 5, 1, bias=False)
        self.score.weight.data *= 20
        self.slope = slope
        self.seen = []

    def forward(self, inputs):
        self.seen.append({name: tuple(x.shape) for name, x in inputs.items()})
        scores = self.score(torch.nn.functional.avg_pool2d(inputs['rgb'], 4))
        ramp = torch.linspace(0, self.slope, scores.shape[-1]) * torch.arange(5.0)[:, None, None]
        return scores + ramp


def predictor(network, **options) -> NetworkPredictor:
    names = network.modalities
    normalise = Normaliser({name: STATISTICS[name] for name in names})
    return NetworkPredictor(network.eval(), normalise, CLASSES, (64, 48), {'path': 'p'}, **options)


def test_one_view_is_labelled_as_the_runtime_does(frame):
    torch.manual_seed(1)
    network = build_network('rfbnet_erfnet', 5).eval()
    rgb = TensorInput(48, 64, *(np.float32(x) for x in STATISTICS['rgb']))
    height, width = network.hha_size(48, 64)
    hha = TensorInput(height, width, *(np.float32(x) for x in STATISTICS['hha']))
    image = hha_image(frame.depth, frame.intrinsics, width, height)
    inputs = {'rgb': rgb_tensor(frame.rgb, rgb), 'hha': hha_tensor(image, hha)}
    with torch.inference_mode():
        logits = network({name: torch.from_numpy(x) for name, x in inputs.items()}).numpy()
    expected, _ = labels_and_confidence(logits, 96, 128)
    assert len(np.unique(expected)) > 1
    ours = predictor(network).predict(frame)
    assert ours.shape == (96, 128)
    assert (ours == expected).mean() > 0.999


@pytest.mark.parametrize('shrink_depth', [False, True])
def test_a_network_on_depth_sees_metres(frame, shrink_depth):
    torch.manual_seed(1)
    options = {'modality': 'depth', 'shrink_depth': shrink_depth}
    network = build_network('erfnet_encoder', 5, **options).eval()
    step = 4 if shrink_depth else 2
    metres = torch.from_numpy(frame.depth[step // 2 :: step, step // 2 :: step].copy())
    inputs = {'depth': ((metres - 2) / 1.5).expand(1, 3, -1, -1)}
    with torch.no_grad():
        network.head.bias -= network(inputs).mean((0, 2, 3))  # so that no class wins everywhere
        logits = network(inputs).numpy()
    expected, _ = labels_and_confidence(logits, 96, 128)
    assert len(np.unique(expected)) > 1
    assert (predictor(network).predict(frame) == expected).mean() > 0.999


def test_a_network_that_commutes_with_mirroring_gains_nothing_from_it(frame):
    network = PixelNetwork(slope=0.0)
    plain, both = predictor(network).predict(frame), predictor(network, flip=True).predict(frame)
    assert len(np.unique(plain)) > 1
    assert (plain == both).mean() > 0.999
    sloped = PixelNetwork(slope=8.0)
    plain, both = predictor(sloped).predict(frame), predictor(sloped, flip=True).predict(frame)
    assert (plain != both).mean() > 0.05


def test_with_flip_a_mirrored_frame_has_mirrored_labels(frame):
    network = PixelNetwork(slope=2.0)
    for flip, agrees in ((True, True), (False, False)):
        labels = predictor(network, flip=flip).predict(frame)
        other = predictor(network, flip=flip).predict(mirrored(frame))
        assert ((labels == other[:, ::-1]).mean() > 0.99) == agrees


def test_hha_of_a_mirrored_frame_is_the_mirrored_hha(data_dir):
    from rgbd_fusion_seg.training.datasets.nyudv2 import NyuDepthV2

    frame = NyuDepthV2(data_dir / 'nyudv2', 'test')[40].frame
    image = hha_image(frame.depth, frame.intrinsics, 160, 120).astype(int)
    other = mirrored(frame)
    twin = hha_image(other.depth, other.intrinsics, 160, 120)[:, ::-1].astype(int)
    assert np.quantile(np.abs(image - twin), 0.9, axis=(0, 1)).max() <= 4
    assert np.abs(image[:, ::-1] - twin).mean() > 10


def test_scales_set_the_inputs_sizes_and_hha_is_made_anew(frame):
    class Both(PixelNetwork):
        modalities, shrink_depth = ('rgb', 'hha'), True

    network = Both(slope=0.0)
    predictor(network, scales=(0.75, 1.0, 1.3), flip=True).predict(frame)
    sizes = [(36, 48), (48, 64), (62, 83)]
    rounded = [tuple(8 * round(x / 8) for x in size) for size in sizes]
    rounded[0] = (32, 48)  # 36 is half way: round to even
    expected = [
        {'rgb': (1, 3, h, w), 'hha': (1, 3, h // 2, w // 2)} for h, w in rounded for _ in range(2)
    ]
    assert network.seen == expected


def test_the_smallest_input_is_one_that_the_network_can_take(frame):
    network = PixelNetwork(slope=0.0)
    labels = predictor(network, scales=(0.01,)).predict(frame)
    assert labels.shape == frame.depth.shape
    assert network.seen == [{'rgb': (1, 3, 8, 8)}]


def test_views_are_averaged_as_probabilities(frame):
    class BySize(PixelNetwork):
        def forward(self, inputs):
            wide = inputs['rgb'].shape[-1] > 64
            # Mean of the logits: class 1 wins (6 against 5). Of probabilities: class 0.
            values = [10.0, 6.0, 0, 0, 0] if wide else [0.0, 6.0, 5.9, 5.9, 5.9]
            return torch.tensor(values).view(1, 5, 1, 1).expand(1, 5, 6, 8)

    labels = predictor(BySize(0.0), scales=(1.0, 2.0)).predict(frame)
    assert (labels == 0).all()
    assert (predictor(BySize(0.0), scales=(1.0,)).predict(frame) == 1).all()


def test_labels_of_torch_are_those_of_the_runtime():
    logits = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 7, 6, 8), np.float32))
    ours, theirs = best_class(enlarged(logits, 45, 61)), labels_of(logits, 45, 61)
    assert ours.dtype == theirs.dtype == torch.uint8
    assert (ours == theirs).float().mean() > 0.999
    logits[1, 2, 3, 4] = float('nan')
    broken = best_class(enlarged(logits, 45, 61))
    assert (broken[0] == ours[0]).all()
    assert (broken[1] == 255).any()
    assert ((broken == 255) == (labels_of(logits, 45, 61) == 255)).all()


def test_a_gpu_convolves_all_digits_of_float32_while_it_is_scored(frame, monkeypatch):
    class Recording(PixelNetwork):
        def forward(self, inputs):
            self.tf32 = torch.backends.cudnn.allow_tf32
            return super().forward(inputs)

    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    network = Recording(0.0)
    predictor(network).predict(frame)
    assert not network.tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize('scales', [(), (0.0,), (1.0, -1.0), (100.0,)])
def test_scales_that_are_none_are_refused(scales):
    with pytest.raises(InputError, match='scales'):
        predictor(PixelNetwork(0.0), scales=scales)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({}, 'single scale'),
        ({'flip': True}, 'single scale and mirrored, mean of probabilities'),
        ({'scales': (0.5,)}, 'scale 0.5 (32x24)'),
        ({'scales': (0.5, 1.0)}, 'scales 0.5, 1.0 (32x24, 64x48), mean of probabilities'),
    ],
)
def test_reports_tell_what_the_network_saw(options, words):
    told = predictor(PixelNetwork(0.0), **options).measured_with
    assert told == f'torch float32 on cpu, network input 64x48, {words}'


def test_a_bundle_is_scored_as_it_ships(tiny_bundle, frame):
    from rgbd_fusion_seg.segmenter import Segmenter

    for options in ({'flip': True}, {'scales': (1.0, 1.25)}, {'scales': (0.75,)}):
        with pytest.raises(InputError, match='as it ships'):
            open_predictor(tiny_bundle, **options)
    ours = open_predictor(tiny_bundle)
    with Segmenter(tiny_bundle) as segmenter:
        np.testing.assert_array_equal(ours.predict(frame), segmenter.segment(frame).labels)
        assert ours.model['sha256'] == segmenter.bundle.weights_sha256
        assert ours.model['input'] == '64x48'
        assert ours.classes.names == segmenter.bundle.class_names
    ours.close()


def test_a_bundle_that_copes_is_scored_with_each_sensor_lost(tmp_path, frame):
    from bundles import tiny_card, write_bundle

    from rgbd_fusion_seg.segmenter import Segmenter

    for without, branches in (['depth'], ('rgb',)), (['rgb', 'depth'], ('rgb', 'depth')):
        card = tiny_card() | {'copes_without': without}
        folder = write_bundle(tmp_path / f'{len(without)}', card)
        ours = open_predictor(folder)
        assert ours.branches == branches
        with Segmenter(folder) as segmenter:
            expected = [segmenter.segment(frame, only=only).labels for only in ('', *branches)]
        found = ours.predict_all(frame)
        np.testing.assert_array_equal(found, expected)
        assert (found[0] != found[1]).any()
        ours.close()


@pytest.mark.parametrize('device', ['tpu', 'cpu:abc', 'cuda:77', 'meta'])
def test_devices_that_are_not_there_are_named(device):
    with pytest.raises(InputError, match=f'the device {device} cannot be used'):
        usable_device(device)
    assert usable_device('cpu') == 'cpu'


def test_a_checkpoint_is_opened_with_its_classes_and_size(tmp_path, frame):
    torch.manual_seed(2)
    network = build_network('erfnet_encoder', 5).eval()
    info = {
        'network': 'erfnet_encoder', 'options': {'modality': 'rgb'},
        'classes': class_entries(CLASSES), 'statistics': {'rgb': STATISTICS['rgb']},
        'width': 64, 'height': 48,
    }  # fmt: skip
    path = tmp_path / 'last.safetensors'
    save_checkpoint(path, network, info)
    ours = open_predictor(path, device='cpu')
    assert ours.classes.names == CLASSES.names
    assert ours.model['input'] == '64x48'
    assert ours.model['path'] == str(path)
    assert ours.model['options'] == info['options']
    np.testing.assert_array_equal(ours.predict(frame), predictor(network).predict(frame))
    del info['width']
    save_checkpoint(path, network, info)
    with pytest.raises(InputError, match='does not tell its width'):
        open_predictor(path, device='cpu')


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_pixel_with_a_value_that_is_not_finite_is_unlabelled(value):
    values = torch.tensor([1.0, 3.0, 2.0]).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    values[0, 2, 1, 0] = value
    assert best_class(values).tolist() == [[[1, 1], [255, 1]]]
