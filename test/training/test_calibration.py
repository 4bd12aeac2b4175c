from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('onnx', reason='making bundles needs onnx')

from bundles import tiny_card, tiny_network, write_bundle  # noqa: E402

from rgbd_fusion_seg.bundle import load_bundle  # noqa: E402
from rgbd_fusion_seg.engine import open_engine  # noqa: E402
from rgbd_fusion_seg.engine_building.fused_graph import fused_beside  # noqa: E402
from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.segmenter import Segmenter  # noqa: E402
from rgbd_fusion_seg.training.calibration import (  # noqa: E402
    Pixels,
    calibrate,
    calibration,
    calibration_error,
    drawn_pixels,
    joined,
    temperature_of,
)
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig  # noqa: E402
from rgbd_fusion_seg.training.datasets import open_dataset  # noqa: E402
from rgbd_fusion_seg.training.datasets.base import LabelledFrame  # noqa: E402
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40  # noqa: E402


def frames_of(temperature: float, count: int = 16, pixels: int = 4000) -> list[Pixels]:
    """Frames whose truth is drawn from the softmax of the logits over a temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, pixels, 6, generator=generator)
    probabilities = (logits / temperature).softmax(-1).view(-1, 6)
    truth = torch.multinomial(probabilities, 1, generator=generator).view(count, pixels)
    return [Pixels(*frame) for frame in zip(logits, truth, strict=True)]


@pytest.mark.parametrize('temperature', [0.6, 1.0, 1.7])
def test_the_temperature_that_the_truth_was_drawn_with_is_found(temperature):
    frames = frames_of(temperature)
    found = calibration(frames)
    assert found['temperature'] == pytest.approx(temperature, rel=0.02)
    assert found['error_after'] < 0.01
    assert (found['error_before'] > 0.05) == (temperature != 1)


def test_the_error_is_the_distance_of_confidence_and_accuracy():
    logits = torch.tensor([0.9, 0.1]).log().expand(1000, 2)
    truth = (torch.arange(1000) >= 700).long()  # right of 70 %, and 90 % sure
    assert calibration_error(Pixels(logits, truth)) == pytest.approx(0.2, abs=1e-5)
    # 7/10 = sigmoid(ln 9 / T)
    expected = np.log(9) / np.log(7 / 3)
    assert temperature_of(Pixels(logits, truth)) == pytest.approx(expected, rel=1e-3)


def test_the_error_after_is_of_frames_that_the_temperature_is_not_from():
    """Halves of opposite needs: what suits the one makes the other worse than it was."""
    sure, unsure = frames_of(0.5, 2), frames_of(3.0, 2)
    found = calibration([sure[0], unsure[0], sure[1], unsure[1]])
    assert found['temperature'] == pytest.approx(temperature_of(joined(sure + unsure)), rel=1e-3)
    errors = [calibration_error(joined(sure), 3.0), calibration_error(joined(unsure), 0.5)]
    assert found['error_after'] == pytest.approx(np.mean(errors), abs=0.01)
    assert found['error_after'] > found['error_before']


def test_halves_take_turns_by_runs_of_neighbours():
    """Sixteen frames are eight runs of two; a scene is as sure as its neighbours."""
    halves = [frames_of(temperature, 8, 1000) for temperature in (0.5, 1.5)]
    frames = [frame for i in range(0, 8, 2) for half in halves for frame in half[i : i + 2]]
    sure, unsure = (joined(half) for half in halves)
    errors = [
        calibration_error(sure, temperature_of(unsure)),
        calibration_error(unsure, temperature_of(sure)),
    ]
    assert abs(errors[0] - errors[1]) > 1e-3
    assert calibration(frames)['error_after'] == pytest.approx(np.mean(errors), abs=1e-6)


@pytest.mark.parametrize('temperature', [0.1, 8.0])
def test_temperatures_far_from_one_are_found(temperature):
    assert temperature_of(joined(frames_of(temperature))) == pytest.approx(temperature, rel=0.1)


def test_the_temperature_of_answers_all_right_or_all_wrong_is_the_last_that_is_tried():
    logits = torch.tensor([2.0, 0.0]).expand(50, 2)
    right, wrong = (Pixels(logits, torch.full((50,), k)) for k in (0, 1))
    assert temperature_of(right) < 0.2
    assert temperature_of(wrong) == pytest.approx(20, rel=1e-3)


def test_the_error_has_the_bins_of_the_paper():
    pixels = joined(frames_of(1.7, 1, 2000))
    shares = torch.softmax(pixels.logits.double(), 1).numpy()
    sure, right = shares.max(1), shares.argmax(1) == pixels.truth.numpy()
    bins = [np.flatnonzero(np.ceil(sure * 15) == k) for k in range(1, 16)]
    gaps = [abs(sure[b].sum() - right[b].sum()) for b in bins]
    assert calibration_error(pixels) == pytest.approx(sum(gaps) / len(sure), abs=1e-5)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    card = tiny_card()
    card['classes'] = [
        {'name': name, 'color': color.tolist()}
        for name, color in zip(NYU40.names, NYU40.colors, strict=True)
    ]
    return write_bundle(tmp_path / 'forty', card, tiny_network(num_classes=40))


def test_the_command_writes_what_the_runtime_divides_by(bundle, nyu_pack, capsys):
    data = DataConfig(DatasetConfig(folder=str(nyu_pack)), synthetic_test_frames=0)
    frame = open_dataset(data.dataset, 'test')[0].frame
    with Segmenter(bundle) as segmenter:
        before = segmenter.segment(frame)
    calibrate(bundle, data)
    assert 'confidence' not in load_bundle(bundle).card
    calibrate(bundle, data, write=True)
    written = load_bundle(bundle)
    assert written.card['confidence']['measured_with'].startswith('2 frames of nyudv2_test, 1000')
    assert f'{written.temperature:.3f}' in capsys.readouterr().out
    # The pack's labels have nothing to do with brightness: no class deserves confidence.
    assert written.temperature > 2
    with Segmenter(written) as segmenter:
        after = segmenter.segment(frame)
    assert np.array_equal(after.labels, before.labels)
    assert after.confidence.mean() < before.confidence.mean() - 20
    calibrate(bundle, data, pixels=50, write=True)
    first, again = (b.card['confidence'] for b in (written, load_bundle(bundle)))
    assert again['measured_with'].startswith('2 frames of nyudv2_test, 50 pixels')
    assert again['error_before'] != first['error_before']


def test_pixels_are_drawn_with_the_logits_of_their_place(bundle, nyu_pack):
    """Two planes that rise with the column and the row, for which bilinear logits are exact."""
    frame = open_dataset(DatasetConfig(folder=str(nyu_pack)), 'test')[0].frame
    rows, columns = np.mgrid[:480, :640]
    labels = (8 * (rows // 96) + columns // 80).astype(np.uint8)
    labels[:, 560:] = 255

    class Places:
        name, classes = 'places', NYU40

        def __len__(self):
            return 5

        def __getitem__(self, index):
            return LabelledFrame(frame, labels)

    class Planes:
        def infer(self, **inputs):
            centres = np.mgrid[:60, :80].astype(np.float32)[None, ::-1]
            return 8 * centres + 3.5  # of cells of 8 pixels

    first, second, _ = drawn_pixels(Planes(), load_bundle(bundle), Places(), 2, 2000)
    inside = (first.logits > 3.5) & (first.logits < torch.tensor([635.5, 475.5]))
    assert inside.float().mean() > 0.95
    torch.testing.assert_close(first.logits[inside], first.logits[inside].round())
    column, row = first.logits.round().long().T
    assert torch.equal(first.truth, 8 * (row // 96) + column // 80)
    assert set(first.truth.tolist()) == {k for k in range(40) if k % 8 < 7}
    assert not torch.equal(first.logits, second.logits)
    again = drawn_pixels(Planes(), load_bundle(bundle), Places(), 4, 2000)
    assert torch.equal(again[0].logits, first.logits)  # else figures could not be had again


def test_frames_without_a_label_are_left_out(bundle, nyu_pack):
    source = open_dataset(DatasetConfig(folder=str(nyu_pack)), 'test')

    class OneVoid:
        name, classes = source.name, source.classes

        def __len__(self):
            return 2

        def __getitem__(self, index):
            item = source[index]
            return item if index else LabelledFrame(item.frame, np.full_like(item.labels, 255))

    read = load_bundle(bundle)
    with closing(open_engine(read, 'onnxruntime')) as engine:
        (drawn,) = drawn_pixels(engine, read, OneVoid(), 1, 30)
        (alone,) = drawn_pixels(engine, read, source, 2, 30)[:1]
    assert drawn.logits.shape == alone.logits.shape == (30, 40)
    assert set(drawn.truth.tolist()) <= set(source[1].labels.ravel().tolist()) - {255}


def test_what_cannot_be_calibrated_on_is_refused(bundle, tiny_bundle, nyu_pack):
    data = DataConfig(DatasetConfig(folder=str(nyu_pack)), synthetic_test_frames=0)
    with pytest.raises(InputError, match=r'1 frames with labels .* 2 are the least'):
        calibrate(bundle, data, every=2)
    with pytest.raises(InputError, match='every and pixels must be 1 or more, not 1, 0'):
        calibrate(bundle, data, pixels=0)
    with pytest.raises(InputError, match=r'tells 4 classes apart and .* has 40'):
        calibrate(tiny_bundle, data)
    fused = fused_beside(load_bundle(bundle), (160, 120), False)
    with pytest.raises(InputError, match='is fused and returns no logits; calibrate tiny, then'):
        calibrate(fused.path, data)
