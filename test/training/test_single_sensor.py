"""Bundles inside an exported bundle: what they answer, and their scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')
pytest.importorskip('onnx')

from tiny_checkpoints import STATISTICS, tiny_checkpoint  # noqa: E402

from rgbd_fusion_seg.bundle import load_bundle  # noqa: E402
from rgbd_fusion_seg.segmenter import Segmenter  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import save_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig  # noqa: E402
from rgbd_fusion_seg.training.datasets import open_dataset  # noqa: E402
from rgbd_fusion_seg.training.datasets.cache import read_frame  # noqa: E402
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40  # noqa: E402
from rgbd_fusion_seg.training.evaluation import evaluate  # noqa: E402
from rgbd_fusion_seg.training.export import export  # noqa: E402
from rgbd_fusion_seg.training.networks import NETWORKS  # noqa: E402
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork  # noqa: E402
from rgbd_fusion_seg.training.predictors import NetworkPredictor  # noqa: E402
from rgbd_fusion_seg.training.single_sensor import unimodal_checkpoints  # noqa: E402


class Linear(SegmentationNetwork):
    """Classes by the mean of 8x8 pixels."""

    stride = size_multiple = 8

    def __init__(self, num_classes: int, modality: str) -> None:
        super().__init__()
        self.modalities = (modality,)
        self.head = torch.nn.Conv2d(3, num_classes, 1)

    def forward(self, inputs, auxiliary=False):
        logits = self.head(torch.nn.functional.avg_pool2d(inputs[self.modalities[0]], 8))
        return [logits] if auxiliary else logits


class LateAverage(SegmentationNetwork):
    """Two networks whose logits are averaged; each answers for itself."""

    stride = size_multiple = 8

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        branches = {m: Linear(num_classes, modality=m) for m in self.modalities}
        self.branches = torch.nn.ModuleDict(branches)

    def forward(self, inputs, auxiliary=False):
        logits = sum(branch(inputs) for branch in self.branches.values()) / 2
        return [logits] if auxiliary else logits

    def unimodal_form(self, modality):
        return 'linear', {'modality': modality}, self.branches[modality].state_dict()


@pytest.fixture(scope='module')
def exported(tmp_path_factory, nyu_pack):
    """The checkpoint, the bundle that was exported from it, and the data."""
    place = tmp_path_factory.mktemp('single')
    data = DataConfig(DatasetConfig(folder=str(nyu_pack)), synthetic_test_frames=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, 'late_average', LateAverage)
        patch.setitem(NETWORKS, 'linear', Linear)
        checkpoint = tiny_checkpoint('late_average', {}, NYU40, width=128, height=96)
        save_checkpoint(place / 'last.safetensors', checkpoint.build(), checkpoint.info)
        export(place / 'last.safetensors', place / 'both', data, storage='fp32', frames=1)
        yield checkpoint, place / 'both', data


def test_the_parts_are_the_branches_of_the_network(exported):
    checkpoint, folder, _ = exported
    bundle, network = load_bundle(folder), checkpoint.build()
    assert list(bundle.single_sensor) == ['rgb', 'hha']
    for modality, part in bundle.single_sensor.items():
        assert part.path == folder / f'{modality}_only'
        assert part.name == f'both_{modality}_only'
        assert part.class_names == bundle.class_names
        assert part.input_size == bundle.input_size
        np.testing.assert_allclose(part.inputs[modality].mean, STATISTICS[modality][0])
        assert part.card['training'] == bundle.card['training']
        own = unimodal_checkpoints(checkpoint)[modality].build()
        for name, value in network.branches[modality].state_dict().items():
            assert torch.equal(own.state_dict()[name], value)


def test_the_bundle_answers_from_one_modality_as_the_branch_in_torch_does(exported):
    checkpoint, folder, data = exported
    frame = read_frame(open_dataset(data.dataset, 'test'), 0).frame
    parts = unimodal_checkpoints(checkpoint)
    with Segmenter(folder, num_threads=1) as segmenter:
        for modality, sensor in (('rgb', 'rgb'), ('hha', 'depth')):
            labels = segmenter.segment(frame, only=sensor).labels
            expected = NetworkPredictor.of_checkpoint(parts[modality], {}).predict(frame)
            assert (labels == expected).mean() > 0.999
            assert (labels == segmenter.segment(frame).labels).mean() < 0.99


def test_each_is_checked_and_scored_and_the_card_of_the_whole_lists_the_scores(exported):
    _, folder, _ = exported
    bundle = load_bundle(folder)
    assert bundle.metrics['agreement']['labels_equal_to_torch'] >= 0.999
    listed = bundle.metrics['single_sensor']
    for modality, part in bundle.single_sensor.items():
        assert part.metrics['agreement']['labels_equal_to_torch'] >= 0.999
        own = part.metrics['nyudv2_test']
        headlines = ('frames', 'mIoU', 'pixel_accuracy', 'mean_accuracy')
        assert listed[modality] == {'nyudv2_test': {key: own[key] for key in headlines}}
        assert part.mean_iou == {'nyudv2_test': own['mIoU']}
    figures = [bundle, *bundle.single_sensor.values()]
    assert len({b.metrics['nyudv2_test']['pixel_accuracy'] for b in figures}) == 3


def test_a_part_is_evaluated_as_any_bundle_and_both_cards_are_kept(exported):
    _, folder, data = exported
    before = load_bundle(folder)
    path = folder / 'rgb_only' / 'model.yaml'
    card = yaml.safe_load(path.read_text())
    true_iou = card['metrics']['nyudv2_test']['mIoU']
    card['metrics']['nyudv2_test']['mIoU'] = 0.999
    path.write_text(yaml.safe_dump(card))
    evaluate(folder / 'rgb_only', data, boundary=False, pictures=0, write=True)
    after = load_bundle(folder)
    assert after.single_sensor['rgb'].mean_iou == {'nyudv2_test': true_iou}
    assert after.metrics['single_sensor'] == before.metrics['single_sensor']
    assert list(after.card) == list(before.card)


def test_one_modality_alone_is_left_out_by_choice_and_where_there_is_none(exported, tmp_path):
    _, folder, data = exported
    path = folder.parent / 'last.safetensors'
    export(path, tmp_path / 'b', data, frames=1, score=False, single_sensor=False)
    assert load_bundle(tmp_path / 'b').single_sensor == {}
    assert {p.name for p in Path(tmp_path / 'b').iterdir()} == {'model.onnx', 'model.yaml'}
    assert unimodal_checkpoints(tiny_checkpoint('erfnet_encoder', {})) == {}


@pytest.mark.parametrize(('scores', 'best'), [((0.1, 0.2), 'depth'), ((0.2, 0.1), 'hha')])
def test_the_better_encoding_of_depth_answers_where_colour_is_lost(exported, scores, best):
    _, folder, _ = exported
    whole = load_bundle(folder)
    part = whole.single_sensor['hha']
    parts = {'rgb': whole.single_sensor['rgb']}
    for modality, score in zip(('hha', 'depth'), scores, strict=True):
        metrics = {'nyudv2_test': {'mIoU': score}, 'rooms': {'mIoU': 0.9 - score}}
        parts[modality] = dataclasses.replace(part, name=modality, metrics=metrics)
    assert dataclasses.replace(whole, single_sensor=parts).alone('depth').name == best


@pytest.mark.parametrize('name', ['cen', 'asymfusion'])
def test_the_branches_of_fusion_networks_answer_alone(name):
    options = {'backbone': 'resnet14', 'head_options': {'width': 8}}
    parts = unimodal_checkpoints(tiny_checkpoint(name, options))
    assert list(parts) == ['rgb', 'hha']
    for modality, part in parts.items():
        network = part.build()
        assert network.modalities == (modality,)
        assert part.info['statistics'] == {modality: STATISTICS[modality]}
        assert network({modality: torch.zeros(1, 3, 64, 64)}).shape[:2] == (1, 3)
