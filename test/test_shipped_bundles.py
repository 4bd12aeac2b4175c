"""The bundles in models/: whole, honest about their network, and right on real frames."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.locations import CARD_NAME
from rgbd_fusion_seg.palette import NYU40_CLASSES
from rgbd_fusion_seg.replay.evaluate import confusion_matrix, scores
from rgbd_fusion_seg.replay.folders import FolderFrames
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.synthetic.stereo import StereoRig, simulate_stereo

MODELS = Path(__file__).resolve().parent.parent / 'models'
FOLDERS = sorted(card.parent for card in MODELS.glob(f'*/{CARD_NAME}'))
NYU_CAMERA = Intrinsics(518.8579, 519.4696, 325.5824, 253.7362, 640, 480)


def test_the_default_bundle_is_shipped():
    assert MODELS / DEFAULT_BUNDLE in FOLDERS


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda f: f.name)
def test_card_and_weights_belong_together(folder):
    bundle = load_bundle(folder)
    assert bundle.name == folder.name
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    load_file = pytest.importorskip(
        'safetensors.numpy', reason='needs the extra [train]'
    ).load_file
    weights = load_file(folder / 'checkpoint.safetensors')
    parameters = sum(v.size for k, v in weights.items() if not k.endswith(statistics))
    assert bundle.card['network']['parameters'] == parameters
    assert bundle.card['training']['data']
    for name in ('nyudv2_test', 'synthetic_test', 'nyudv2_test_stereo'):
        metrics = bundle.metrics[name]
        assert 0 < metrics['mIoU'] < metrics['pixel_accuracy'] < 1
        known = [v for v in metrics['classes'].values() if v is not None]
        assert np.mean(known) == pytest.approx(metrics['mIoU'], abs=1e-3)


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda f: f.name)
def test_nothing_tells_of_the_machine_that_made_it(folder):
    for file in folder.iterdir():
        for words in (b'.py', b'/home', b'/tmp', b'site-packages'):
            assert words not in file.read_bytes(), file


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda f: f.name)
def test_a_shipped_network_goes_on_without_either_sensor(folder):
    bundle = load_bundle(folder)
    assert bundle.copes_without == ('rgb', 'depth')
    for sensor in ('rgb', 'depth'):
        alone = bundle.mean_iou_alone(sensor)
        assert alone.keys() == bundle.mean_iou.keys()
        assert all(0.1 < alone[name] < bundle.mean_iou[name] for name in alone)


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda f: f.name)
def test_weights_to_train_on_from_are_those_of_the_graph(folder):
    torch = pytest.importorskip('torch')
    from rgbd_fusion_seg.training.checkpoints import find_checkpoint, load_checkpoint

    checkpoint, bundle = load_checkpoint(find_checkpoint(folder.name)), load_bundle(folder)
    assert checkpoint.classes.names == bundle.class_names
    for name, tensor in bundle.inputs.items():
        assert checkpoint.info['statistics'][name] == [list(tensor.mean), list(tensor.std)]
    rng = np.random.default_rng(0)
    coarse = {
        n: rng.normal(size=(t.height // 8, t.width // 8, 3)) for n, t in bundle.inputs.items()
    }
    x = {
        n: cv2.resize(coarse[n].astype(np.float32), (t.width, t.height)).transpose(2, 0, 1)[None]
        for n, t in bundle.inputs.items()
    }
    with closing(open_engine(bundle, 'onnxruntime')) as engine, torch.no_grad():
        theirs = engine.infer(**{n: np.ascontiguousarray(v) for n, v in x.items()})
        ours = checkpoint.build()({n: torch.tensor(v) for n, v in x.items()}).numpy()
    # Both are kept in 16 bits, the graph's weights with the norms folded into them.
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda f: f.name)
def test_labels_of_real_frames_are_as_good_as_the_card_says(folder, data_dir):
    """Every 30th test frame of NYUDv2, read here without the training code."""
    pack = data_dir / 'nyudv2'
    ids = [int(line) for line in (pack / 'test.txt').read_text().split()]
    matrices = dict.fromkeys(('both', 'stereo', 'rgb', 'depth'), 0)
    with Segmenter(folder) as segmenter:
        for index in range(0, len(ids), 30):
            i = ids[index]
            rgb = cv2.cvtColor(cv2.imread(str(pack / f'rgb/{i:04d}.jpg')), cv2.COLOR_BGR2RGB)
            levels = cv2.imread(str(pack / f'depth8/{i:04d}.png'), cv2.IMREAD_UNCHANGED)
            truth = cv2.imread(str(pack / f'label40/{i:04d}.png'), cv2.IMREAD_UNCHANGED)
            depth, rng = (levels.astype(np.float32) + 0.5) / 25.5, np.random.default_rng(index)
            by_stereo = simulate_stereo(rgb, depth, NYU_CAMERA, StereoRig.random(rng), rng)
            for sees in matrices:
                frame = RgbdFrame(rgb, by_stereo if sees == 'stereo' else depth, NYU_CAMERA)
                only = sees if sees in ('rgb', 'depth') else ''
                labels = segmenter.segment(frame, only=only).labels
                matrices[sees] += confusion_matrix(labels, truth, len(NYU40_CLASSES))
        metrics = segmenter.bundle.metrics
    cards = {'both': metrics['nyudv2_test'], 'stereo': metrics['nyudv2_test_stereo']}
    cards |= metrics['nyudv2_test']['branches']
    found = {sees: scores(matrix).pixel_accuracy for sees, matrix in matrices.items()}
    for sees, card in cards.items():
        assert found[sees] == pytest.approx(card['pixel_accuracy'], abs=0.08)
    # So few frames tell no more, but what is missed in them costs as much as in all.
    for sees in ('stereo', 'rgb', 'depth'):
        lost = cards['both']['pixel_accuracy'] - cards[sees]['pixel_accuracy']
        assert found['both'] - found[sees] == pytest.approx(lost, rel=0.6)


def test_the_kinect_sequence_shows_a_kitchen(data_dir):
    """No ground truth, but a person sees floor, a table, chairs and cabinets in these frames."""
    names = {name: i for i, name in enumerate(NYU40_CLASSES)}
    shares = []
    with Segmenter(DEFAULT_BUNDLE) as segmenter:
        for k, frame in enumerate(FolderFrames(data_dir / 'kinect_sequence')):
            if k % 50 == 0:
                labels = segmenter.segment(frame).labels
                shares.append(np.bincount(labels.ravel(), minlength=256)[:40] / labels.size)
    mean = np.mean(shares, axis=0)
    kitchen = ('floor', 'table', 'chair', 'cabinet')
    assert all(mean[names[name]] > 0.04 for name in kitchen), dict(zip(names, mean, strict=True))
    assert sum(mean[names[name]] for name in kitchen) > 0.4
