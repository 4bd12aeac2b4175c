from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.bundle import load_bundle  # noqa: E402
from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame  # noqa: E402
from rgbd_fusion_seg.preprocess import hha_image, rgb_image  # noqa: E402
from rgbd_fusion_seg.training import evaluation  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import class_entries, save_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig  # noqa: E402
from rgbd_fusion_seg.training.datasets import open_dataset  # noqa: E402
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame  # noqa: E402
from rgbd_fusion_seg.training.datasets.cache import CachedFrames  # noqa: E402
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40  # noqa: E402
from rgbd_fusion_seg.training.evaluation import (  # noqa: E402
    check_classes,
    draw_frames,
    evaluate,
    evaluate_network,
    predicted_labels,
    score_source,
    scored_sources,
)
from rgbd_fusion_seg.training.inputs import Normaliser  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network  # noqa: E402
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork  # noqa: E402

CLASSES = ClassSet('six', tuple('abcdef'), np.arange(18, dtype=np.uint8).reshape(6, 3))
NORMALISE = Normaliser({'rgb': ([0.0] * 3, [1.0] * 3)})


@pytest.fixture
def frames() -> CachedFrames:
    """Five frames whose red is 40 times the label, which is void in a corner."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (5, 12, 16)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    rgb = np.zeros((*labels.shape, 3), np.uint8)
    rgb[..., 0] = 40 * labels
    labels[:, :7, :9] = 255
    hha = np.zeros((5, 24, 32, 3), np.uint8)
    return CachedFrames('toy', CLASSES, '', (rgb, rgb[:, ::2, ::2]), labels, (hha,), (1.0, 2.0))


class ReadsRed(SegmentationNetwork):
    """Tells the class from red: right on the frames above, or always ``constant``."""

    modalities, stride, size_multiple = ('rgb',), 1, 1

    def __init__(self, constant: int | None = None) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(6)
        self.constant = constant
        self.eval()

    def forward(self, inputs):
        kinds = torch.arange(6.0).view(1, 6, 1, 1)
        red = inputs['rgb'][:, :1] if self.constant is None else 40.0 * self.constant
        return self.norm(10 - (red / 40 - kinds) ** 2 + 0 * inputs['rgb'][:, :1])


def test_a_perfect_network_scores_one_and_absent_classes_do_not_count(frames):
    result = evaluate_network(ReadsRed(), NORMALISE, frames, (64, 48))
    assert result['mIoU'] == result['pixel_accuracy'] == result['frequency_weighted_iou'] == 1
    assert result['classes'] == dict.fromkeys('abcde', 1.0) | {'f': None}


def test_a_constant_network_scores_the_share_of_its_class(frames):
    result = evaluate_network(ReadsRed(3), NORMALISE, frames, (32, 24))
    counted = frames.labels[frames.labels != 255]
    share = (counted == 3).mean()
    assert result['pixel_accuracy'] == pytest.approx(share, abs=1e-5)
    assert result['mIoU'] == pytest.approx(share / 5, abs=1e-5)
    assert result['mean_accuracy'] == pytest.approx(1 / 5)
    result = evaluate_network(ReadsRed(5), NORMALISE, frames, (32, 24))
    assert result['classes']['f'] == 0


def test_predicted_labels_come_with_their_frames(frames):
    pictures = predicted_labels(ReadsRed(), NORMALISE, frames, (64, 48), range(3, 9))
    assert len(pictures) == 2
    for i, (rgb, truth, labels) in zip((3, 4), pictures, strict=True):
        np.testing.assert_array_equal(rgb, frames.rgb[0][i])
        np.testing.assert_array_equal(truth, frames.labels[i])
        np.testing.assert_array_equal(labels, rgb[..., 0] // 40)


SCRIPT = """
import json, sys
import numpy as np, torch
from lightning_fabric import Fabric
from rgbd_fusion_seg.training.datasets.base import ClassSet
from rgbd_fusion_seg.training.datasets.cache import CachedFrames
from rgbd_fusion_seg.training.evaluation import evaluate_network
from rgbd_fusion_seg.training.networks import build_network
from rgbd_fusion_seg.training.inputs import Normaliser

torch.set_num_threads(1)
processes = int(sys.argv[1])
fabric = Fabric(accelerator='cpu', devices=processes, strategy='ddp' if processes > 1 else 'auto')
fabric.launch()
rng = np.random.default_rng(1)
classes = ClassSet('six', tuple('abcdef'), np.zeros((6, 3), np.uint8))
rgb, hha = (rng.integers(0, 256, (5, h, w, 3), np.uint8) for h, w in ((48, 64), (24, 32)))
labels = rng.integers(0, 6, (5, 48, 64), np.uint8)
frames = CachedFrames('toy', classes, '', (rgb,), labels, (hha,), (1.0, 2.0))
torch.manual_seed(0)
network = build_network('rfbnet_erfnet', 6).eval()
scores = [120.0] * 3, [60.0] * 3
result = evaluate_network(
    network, Normaliser({'rgb': scores, 'hha': scores}), frames, (64, 48), fabric
)
with open(f'{sys.argv[2]}-{fabric.global_rank}.json', 'w') as file:
    json.dump(result, file)
if processes > 1:  # one that leaves while the other still talks to it is taken for a crash
    fabric.barrier()
    torch.distributed.destroy_process_group()
"""


def test_two_processes_return_what_one_does(tmp_path, monkeypatch):
    script = tmp_path / 'score.py'
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, 'argv', ['score.py', '1', str(tmp_path / 'scores1')])
    runpy.run_path(str(script))
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), '2', str(tmp_path / 'scores2')],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone, *both = (
        json.loads((tmp_path / f'scores{name}.json').read_text()) for name in ('1-0', '2-0', '2-1')
    )
    assert 0 < alone['mIoU'] < 1
    assert both == [alone, alone]


class Source:
    """Frames of 100x75 and one of 120x90 pixels: tall steps of red, 40 times the label."""

    name, classes, size, terms = 'toy-test', CLASSES, (64, 48), 'made by a test'

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> LabelledFrame:
        width, height = (120, 90) if index == 4 else (100, 75)
        labels = (np.arange(width) * 5 // width).astype(np.uint8)[None].repeat(height, 0)
        rgb = np.zeros((height, width, 3), np.uint8)
        rgb[..., 0] = 40 * labels
        truth = labels.copy()
        if index:
            truth[:, -10 * index :] = 5  # wrong on purpose
        truth[:3] = 255
        camera = Intrinsics(100.0, 100.0, width / 2, height / 2, width, height)
        depth = np.full((height, width), 2.0, np.float32)
        return LabelledFrame(RgbdFrame(rgb, depth, camera), truth)

    def describe(self) -> dict[str, object]:
        return {}


class RedPredictor:
    """Labels frames at their own size, right but where the source lies."""

    classes, model, measured_with, branches = CLASSES, {'path': 'red'}, 'nothing', ()

    def predict_all(self, frame: RgbdFrame) -> list[np.ndarray]:
        return [frame.rgb[..., 0] // 40]

    def predict(self, frame: RgbdFrame) -> np.ndarray:
        return self.predict_all(frame)[0]

    def close(self) -> None:
        """Nothing to free."""


@pytest.mark.parametrize('every', [1, 4])
def test_frames_are_scored_at_their_own_size_in_one_matrix(every):
    source = Source()
    result = score_source(RedPredictor(), source, 'toy', every, boundary=True)
    chosen = range(0, 6, every)
    counts, accuracy = np.zeros((6, 7), int), []
    for i in chosen:
        truth, labels = source[i].labels, source[i].frame.rgb[..., 0] // 40
        known = truth != 255
        np.add.at(counts, (truth[known], labels[known]), 1)
        accuracy.append((truth == labels)[known].mean())
    np.testing.assert_array_equal(result.matrix, counts)
    np.testing.assert_allclose(result.accuracy, accuracy)
    assert result.indices.tolist() == list(chosen)
    assert result.size is None  # one frame has another
    assert 'own size' in result.comparison
    assert result.boundary.by_class[0] == 1
    assert score_source(RedPredictor(), source, 'toy', 3).size == (100, 75)


def test_pictures_are_of_the_frames_that_are_named(tmp_path, monkeypatch):
    """The source is the worse the higher the index, and a branch that is always wrong is none."""

    class WithBranch(RedPredictor):
        branches = ('wrong',)

        def predict_all(self, frame):
            return [frame.rgb[..., 0] // 40, np.full(frame.depth.shape, 5, np.uint8)]

    drawn = {}
    monkeypatch.setattr(
        evaluation, 'write_frame', lambda path, item, *_: drawn.update({path: item.labels})
    )
    result = score_source(WithBranch(), Source(), 'toy', 2)
    draw_frames(WithBranch(), Source(), result, tmp_path, 2)
    expected = {'worst/01-frame00004': 4, 'worst/02-frame00002': 2, 'best/01-frame00000': 0}
    assert {str(path.relative_to(tmp_path).with_suffix('')) for path in drawn} == set(expected)
    for name, index in expected.items():
        np.testing.assert_array_equal(drawn[tmp_path / f'{name}.jpg'], Source()[index].labels)


def test_rooms_that_are_scored_are_not_those_of_training(data):
    scored = scored_sources(data)['synthetic_test'][0].frame
    rooms = DatasetConfig('synthetic')
    trained, held_out = (open_dataset(rooms, split)[0].frame for split in ('train', 'test'))
    assert not np.array_equal(scored.depth, trained.depth)
    np.testing.assert_array_equal(scored.depth, held_out.depth)


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained network for the classes of NYUDv2."""
    torch.manual_seed(0)
    info = {
        'network': 'rfbnet_erfnet', 'options': {}, 'classes': class_entries(NYU40),
        'statistics': {name: ([120.0] * 3, [60.0] * 3) for name in ('rgb', 'hha')},
        'width': 64, 'height': 48,
    }  # fmt: skip
    path = tmp_path / 'last.safetensors'
    save_checkpoint(path, build_network('rfbnet_erfnet', 40), info)
    return path


@pytest.fixture
def data(nyu_pack) -> DataConfig:
    return DataConfig(dataset=DatasetConfig(folder=str(nyu_pack)), synthetic_test_frames=1)


def test_the_command_leaves_a_report(checkpoint, data, tmp_path, capsys):
    output = tmp_path / 'report'
    evaluate(checkpoint, data, output, scales=(1.5,), flip=True, pictures=2, device='cpu')
    body = json.loads((output / 'scores.json').read_text())
    assert list(body['sets']) == ['nyudv2_test', 'synthetic_test']
    scores = body['sets']['nyudv2_test']
    assert scores['frames'] == 2
    matrix = np.array(scores['confusion'])
    assert scores['pixel_accuracy'] == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-5)
    truth = [cv2.imread(f'{data.dataset.folder}/label40/000{i}.png', -1) for i in (7, 8)]
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(np.ravel(truth), minlength=256)[:40])
    assert 'boundary_f' in scores
    assert body['model']['network'] == 'rfbnet_erfnet'
    for words in ('scale 1.5', 'mirrored', '64x48'):
        assert words in body['measured_with']
    pictures = sorted(str(p.relative_to(output)) for p in output.rglob('*.jpg'))
    worst = min(scores['frame_accuracy'], key=lambda i: scores['frame_accuracy'][i])
    assert f'nyudv2_test/worst/01-frame{int(worst):05d}.jpg' in pictures
    assert f'nyudv2_test/best/01-frame{1 - int(worst):05d}.jpg' in pictures
    assert len(pictures) == (2 + 1) + (1 + 1)
    shown = capsys.readouterr().out
    assert f'{100 * scores["mIoU"]:.1f}' in shown
    assert 'nyudv2_test' in (output / 'report.md').read_text()
    # A later one into the same folder shows its own pictures alone.
    (output / 'nyudv2_test' / 'worst' / 'mine.jpg').touch()
    evaluate(checkpoint, data, output, pictures=1, every=2, device='cpu')
    left = sorted(p.name for p in (output / 'nyudv2_test').rglob('*.jpg'))
    assert left == ['01-frame00000.jpg', 'mine.jpg']


def by_hand(logits: list[torch.Tensor], size: tuple[int, int]) -> list[np.ndarray]:
    """Labels (N, H, W) of logits that torch enlarges."""
    large = (torch.nn.functional.interpolate(x, size, mode='bilinear') for x in logits)
    return [x.argmax(1).numpy() for x in large]


def counted(labels: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix (K, K + 1); 255 is void."""
    known = truth != 255
    matrix = np.zeros((num_classes, num_classes + 1), int)
    np.add.at(matrix, (truth[known], labels[known]), 1)
    return matrix


def mean_iou(matrix: np.ndarray) -> float:
    both = np.diagonal(matrix)
    union = matrix.sum(0)[:-1] + matrix.sum(1) - both
    return (both[union > 0] / union[union > 0]).mean()


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('cen', {}),
        ('asymfusion', {'distillation': 1.0}),
        ('multimodal', {'ensemble': 'concat'}),
        ('stage_fusion', {'fusion': 'concat', 'stages': 'early'}),
        ('stage_fusion', {'encoders': 'individual'}),
        ('multimodal', {'modalities': ['rgb']}),
    ],
)
def test_each_branch_is_scored_in_training(frames, name, options):
    torch.manual_seed(0)
    small = {'backbone': 'resnet14', 'head_options': {'width': 8}}
    network = build_network(name, 6, **small, **options)
    statistics = {'rgb': ([80.0] * 3, [60.0] * 3), 'hha': ([100.0] * 3, [50.0] * 3)}
    (hha,) = frames.hha
    large = np.random.default_rng(2).integers(0, 256, (5, 48, 64, 3), np.uint8)
    frames = dataclasses.replace(frames, hha=(large, hha))
    normalise = Normaliser({m: statistics[m] for m in network.modalities})
    images = {'rgb': frames.rgb[0], 'hha': large}
    images = [
        (torch.tensor(images[m]).permute(0, 3, 1, 2) - statistics[m][0][0]) / statistics[m][1][0]
        for m in network.modalities
    ]
    with torch.no_grad():
        network.encode(images)  # norms that know the images, and no class that wins everywhere
        (bias,) = (x for name, x in network.head.named_parameters() if x.shape == (6,))
        bias -= torch.cat(network.eval().head(network.encode(images))).mean((0, 2, 3))
        scores = evaluate_network(network, normalise, frames, (64, 48))
        logits = network.eval().head(network.encode(images))
        joined = network(dict(zip(network.modalities, images, strict=True)))
    pictures = predicted_labels(network, normalise, frames, (64, 48), range(5))
    (whole,) = by_hand([joined], frames.labels.shape[1:])
    assert (np.stack([labels for *_, labels in pictures]) == whole).mean() > 0.999
    expected = [
        mean_iou(counted(x, frames.labels, 6)) for x in by_hand(logits, frames.labels.shape[1:])
    ]
    if len(expected) == 1:
        assert 'branches' not in scores
        assert scores['mIoU'] == pytest.approx(expected[0], abs=1e-3)
        return
    assert tuple(scores['branches']) == network.outputs
    assert [x['mIoU'] for x in scores['branches'].values()] == pytest.approx(expected, abs=2e-4)
    assert np.diff(np.sort(expected)).min() > 1e-3  # else which is whose would not be told


@pytest.mark.parametrize('name', ['cen', 'asymfusion', 'multimodal'])
def test_networks_of_branches_are_scored_at_several_scales_and_mirrored(data, tmp_path, name):
    """Against torch written out: probabilities of four views at the frame's size, averaged."""
    options = {'backbone': 'resnet14', 'head_options': {'width': 8}}
    torch.manual_seed(1)
    network = build_network(name, 40, **options).eval()
    info = {
        'network': name, 'options': options, 'classes': class_entries(NYU40),
        'statistics': {m: ([120.0] * 3, [60.0] * 3) for m in ('rgb', 'hha')},
        'width': 96, 'height': 64,
    }  # fmt: skip
    save_checkpoint(tmp_path / 'last.safetensors', network, info)
    data.synthetic_test_frames, folder = 0, tmp_path / 'report'
    evaluate(
        tmp_path / 'last.safetensors', data, folder, scales=(0.5, 1.0), flip=True, every=2,
        boundary=False, pictures=0, device='cpu',
    )  # fmt: skip
    scores = json.loads((folder / 'scores.json').read_text())['sets']['nyudv2_test']
    item = open_dataset(data.dataset, 'test')[0]
    totals = [0, 0, 0]
    for width, height in ((48, 32), (96, 64)):
        rgb = rgb_image(item.frame.rgb, width, height)
        hha = hha_image(item.frame.depth, item.frame.intrinsics, width, height)
        for flip in (False, True):
            view = {m: x[:, ::-1] if flip else x for m, x in (('rgb', rgb), ('hha', hha))}
            view = {
                m: (torch.tensor(x.copy()).permute(2, 0, 1)[None].float() - 120) / 60
                for m, x in view.items()
            }
            with torch.no_grad():
                branches = network.head(network.encode([view['rgb'], view['hha']]))
                logits = [network(view), *branches]
            for i, x in enumerate(logits):
                x = x.flip(3) if flip else x
                large = torch.nn.functional.interpolate(x, (480, 640), mode='bilinear')
                totals[i] = totals[i] + large.softmax(1)
    whole, *branches = (x.argmax(1)[0].numpy() for x in totals)
    assert len(np.unique(whole)) > 1
    expected = counted(whole, item.labels, 40)
    difference = np.abs(np.array(scores['confusion']) - expected).sum()
    assert difference <= 0.002 * expected.sum()  # ties
    page = (folder / 'report.md').read_text()
    for branch, labels in zip(('rgb', 'hha'), branches, strict=True):
        expected = mean_iou(counted(labels, item.labels, 40))
        assert scores['branches'][branch]['mIoU'] == pytest.approx(expected, abs=1e-3)
        assert f'mean IoU, {branch} [%]' in page


def test_a_quick_look_takes_every_nth_frame_and_no_report(checkpoint, data, capsys):
    data.synthetic_test_frames = 0
    evaluate(checkpoint, data, every=2, boundary=False, device='cpu')
    shown = capsys.readouterr().out
    assert 'boundary' not in shown
    assert 'synthetic' not in shown
    assert shown.split('frames')[1].split()[0] == '1'


def test_scores_are_written_into_the_card_of_a_bundle(tiny_bundle, tmp_path, monkeypatch):
    folder = tmp_path / 'tiny'
    shutil.copytree(tiny_bundle, folder)
    card = yaml.safe_load((folder / 'model.yaml').read_text())
    card['metrics'] = {'agreement': {'frames': 8}, 'toy_test': {'mIoU': 9.0}}
    (folder / 'model.yaml').write_text(yaml.safe_dump(card, sort_keys=False))

    class Rooms(Source):
        classes = ClassSet('tiny', load_bundle(folder).class_names, np.zeros((4, 3), np.uint8))

        def __getitem__(self, index):
            item = super().__getitem__(index)
            return LabelledFrame(item.frame, np.where(item.labels == 255, 255, 2).astype(np.uint8))

    monkeypatch.setattr(evaluation, 'scored_sources', lambda data: {'toy_test': Rooms()})
    evaluate(folder, DataConfig(), boundary=False, write=True)
    metrics = load_bundle(folder).metrics
    assert metrics['agreement'] == {'frames': 8}
    assert metrics['toy_test']['frames'] == 6
    assert 0 <= metrics['toy_test']['mIoU'] <= 1
    assert list(metrics['toy_test']['classes']) == list(Rooms.classes.names)
    for words in ('runtime pipeline', '64x48', 'own size', 'single scale'):
        assert words in metrics['toy_test']['measured_with']


def test_what_cannot_be_scored_is_one_sentence(checkpoint, tiny_bundle, data, tmp_path):
    with pytest.raises(InputError, match=r"4 classes .* has 40, and class 0 is 'dark low'"):
        evaluate(tiny_bundle, data)
    source = Source()
    with pytest.raises(InputError, match="class 0 is 'f' in one and 'a' in the other"):
        check_classes(CLASSES.names[::-1], source, tiny_bundle)
    for options in ({'every': 0}, {'pictures': -1}, {'write': True}):
        with pytest.raises(InputError):
            evaluate(checkpoint, data, **options)
    with pytest.raises(InputError, match='card'):
        evaluate(tiny_bundle, data, write=True, every=2)
    with pytest.raises(InputError, match=r'absent\.safetensors'):
        evaluate(tmp_path / 'absent.safetensors', data)
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(InputError, match='file'):
        evaluate(checkpoint, data, tmp_path / 'file', device='cpu')
