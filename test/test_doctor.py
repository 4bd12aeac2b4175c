from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import stand_in_engine

from rgbd_fusion_seg import doctor, engine
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.cli import main
from rgbd_fusion_seg.engine import flavours
from rgbd_fusion_seg.engine.engine_files import (
    EngineCard,
    EngineTensor,
    writable_folder,
    write_engine,
)
from rgbd_fusion_seg.engine.flavours import Flavour, installed_flavours
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.ros_environment import PROFILE_VARIABLES
from rgbd_fusion_seg.segmenter import Segmenter


@pytest.fixture(autouse=True)
def empty_installation(monkeypatch, tmp_path):
    """Only bundles that a test puts there are found by name."""
    monkeypatch.setattr(doctor, 'bundle_folders', lambda: [tmp_path / 'models'])
    monkeypatch.setattr(
        doctor, 'list_bundles', lambda: sorted(p for p in tmp_path.glob('models/*') if p.is_dir())
    )


def found(report: doctor.Report, section: str, name: str) -> doctor.Finding:
    (finding,) = (f for f in report.sections[section] if f.name == name)
    return finding


def test_healthy(tiny_bundle, tmp_path, capsys):
    shutil.copytree(tiny_bundle, tmp_path / 'models/good')
    report = doctor.examine(str(tiny_bundle))
    assert report.healthy
    assert found(report, 'Python packages', 'numpy').text == np.__version__
    assert found(report, 'Inference engines', 'onnxruntime').mark == 'ok'
    assert found(report, 'Bundles', 'good').mark == 'ok'
    assert [f.mark for f in report.sections['Trial']] == ['ok'] * 3
    assert 'cores usable' in report.text()
    assert report.text().endswith('The pipeline can run here.')
    assert main(['doctor', '--bundle', str(tiny_bundle)]) == 0
    assert 'The pipeline can run here.' in capsys.readouterr().out


HERE = {'tensorrt': Flavour('tensorrt', ModuleType('trt'), '10.3.0')}


def card_of(bundle, gpu):
    tensors = tuple(
        EngineTensor(name, 'input', form.dtype, form.shape, ())
        for name, form in bundle.graph_inputs.items()
    )
    return EngineCard(
        bundle.name, bundle.weights_sha256, 'tensorrt', '10.3.0', 'fp16', ('8.7',), gpu, tensors
    )


def test_engines_and_why_a_better_one_is_not_used(tmp_path, monkeypatch):
    bundles = pytest.importorskip('bundles', reason='making bundles needs onnx')
    monkeypatch.setattr('rgbd_fusion_seg.engine.BACKENDS', dict(engine.BACKENDS))
    monkeypatch.setattr(stand_in_engine, 'BACKENDS', engine.BACKENDS)
    stand_in_engine.install()
    folder = bundles.write_bundle(tmp_path / 'models/tiny')
    trial = {finding.name: finding for finding in doctor._trial(str(folder))}
    assert [f.mark for f in trial.values()] == ['ok', 'ok', 'note', 'ok']
    assert 'has no engine for the stand-in' in trial['tensorrt'].text
    told = {finding.name: finding for finding in doctor._tensorrt(str(folder))}
    for name, flavour in installed_flavours().items():
        if isinstance(flavour, Flavour):
            assert told[name].text.startswith(flavour.version)
            assert ('to build' in told[name].text) == flavour.can_build
        else:
            assert (told[name].mark, told[name].text) == ('note', str(flavour))

    monkeypatch.setattr(flavours, 'installed_flavours', lambda: HERE)
    bundle = load_bundle(folder)
    card = card_of(bundle, 'Orin')
    engines = writable_folder(bundle)
    for name in ('good', 'lost', 'cut'):
        write_engine(engines, name, b'an engine', card)
    others = {
        'old': {'onnx_sha256': '0' * 64},
        'foreign': {'version': '10.4.0'},
        'half': {'tensors': tuple(dataclasses.replace(t, dtype='float16') for t in card.tensors)},
    }
    for name, change in others.items():
        write_engine(engines, name, b'an engine', dataclasses.replace(card, **change))
    next(engines.glob('lost-*.engine')).unlink()
    next(engines.glob('cut-*.engine')).write_bytes(b'an eng')
    (engines / 'bare.engine').write_bytes(b'an engine')
    (engines / 'bad.json').write_text('{')
    told = {finding.name: finding for finding in doctor._tensorrt(str(folder))}
    assert told['good'].text == 'of tiny, fp16, tensorrt 10.3.0, Orin'
    words = {
        'bad': ('bad', 'build the engine again'),
        'lost': ('bad', 'cannot be read (No such file or directory); build it again'),
        'cut': ('bad', 'it was damaged, cut short or replaced'),
        'old': ('note', 'was built from another ONNX file'),
        'foreign': ('note', 'was built by tensorrt 10.4.0, and here is 10.3.0; build it again'),
        'half': ('note', 'takes float16 for its input rgb, not float32; build it again'),
        'bare': ('note', 'for no card beside it names it'),
    }
    for name, (mark, text) in words.items():
        assert told[name].mark == mark, name
        assert text in told[name].text
    trial = {finding.name: finding for finding in doctor._trial(str(folder))}
    assert [f.mark for f in trial.values()] == ['ok'] * 3
    assert trial['engine'].text == 'tensorrt (stand-in)'


def test_engines_of_the_wanted_bundle_and_of_parts_are_checked_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr(flavours, 'installed_flavours', lambda: HERE)
    parts = pytest.importorskip('single_sensor_bundles', reason='making bundles needs onnx')
    outside = parts.write_with_parts(tmp_path / 'outside')
    by_name = parts.write_with_parts(tmp_path / 'models/named')
    for folder, prefix in ((outside, 'wanted'), (by_name, 'other')):
        whole = load_bundle(folder)
        for bundle in (whole, *whole.single_sensor.values()):
            name = f'{prefix}-{bundle.path.name}'
            write_engine(writable_folder(bundle), name, b'plan', card_of(bundle, ''))
    next((outside / 'engines').glob('*.engine')).write_bytes(b'pl')

    report = doctor.examine(str(outside))
    assert found(report, 'Bundles', 'named').text.endswith('; answers alone from rgb or depth')
    told = report.sections['TensorRT']
    engines = {f.name: f for f in told if f.name.startswith(('wanted', 'other'))}
    assert engines['wanted-outside'].mark == 'bad'
    assert 'cut short' in engines['wanted-outside'].text
    sound = {'wanted-rgb_only', 'wanted-hha_only', 'other-named'}
    sound |= {'other-rgb_only', 'other-hha_only'}
    assert {name for name, f in engines.items() if f.mark == 'ok'} == sound
    for wanted in (str(by_name), str(by_name / 'rgb_only')):
        names = [f.name for f in doctor._tensorrt(wanted)]
        assert names.count('other-rgb_only') == names.count('other-named') == 1


def test_a_section_that_fails_ends_no_examination(tiny_bundle, monkeypatch):
    def failing(_):
        yield doctor.Finding('ok', 'first', 'fine')
        raise AttributeError('unheard of')

    monkeypatch.setattr(doctor, '_tensorrt', failing)
    report = doctor.examine(str(tiny_bundle))
    assert [f.mark for f in report.sections['TensorRT']] == ['ok', 'bad']
    assert 'AttributeError: unheard of' in found(report, 'TensorRT', 'examination').text
    assert report.healthy  # for the trial went well


@pytest.fixture
def trial_alone(monkeypatch):
    """Leave the sections out that are no part of the trial, and take seconds."""
    for section in ('_machine', '_packages', '_ros', '_engines', '_bundles'):
        monkeypatch.setattr(doctor, section, lambda: iter(()))
    monkeypatch.setattr(doctor, '_tensorrt', lambda _: iter(()))


@pytest.mark.parametrize(
    ('marks', 'healthy'),
    [(('ok', 'ok'), True), (('ok', 'note', 'ok'), True), (('ok', 'bad', 'ok'), False)],
)
def test_every_step_of_the_trial_must_go_well(trial_alone, monkeypatch, marks, healthy):
    findings = [doctor.Finding(mark, 'step', 'how it went') for mark in marks]
    monkeypatch.setattr(doctor, '_trial', lambda _: iter(findings))
    report = doctor.examine('any')
    assert report.healthy is healthy
    lines = [line for line in report.text().splitlines() if line.endswith('step  how it went')]
    assert [line[1:7].strip().lower() for line in lines] == list(marks)


def test_the_second_frame_is_measured_in_milliseconds(trial_alone, tiny_bundle, monkeypatch):
    clock_s = iter((1.0, 1.25))
    monkeypatch.setattr(doctor, 'time', SimpleNamespace(perf_counter=clock_s.__next__))
    report = doctor.examine(str(tiny_bundle))
    assert found(report, 'Trial', 'one frame').text == 'segmented in 250.0 ms'


@pytest.mark.parametrize(
    ('error', 'told'),
    [(EngineError('no memory'), 'no memory'), (ValueError('x'), 'ValueError: x')],
)
def test_a_network_that_fails_is_told(trial_alone, tiny_bundle, monkeypatch, error, told):
    def fails(*_):
        raise error

    monkeypatch.setattr(Segmenter, 'segment', fails)
    report = doctor.examine(str(tiny_bundle))
    assert not report.healthy
    assert [f.mark for f in report.sections['Trial']] == ['ok', 'ok', 'bad']
    assert found(report, 'Trial', 'one frame').text == told


def test_shared_memory_is_told_in_megabytes(monkeypatch):
    for blocks, mark in ((2**16, 'ok'), (2**14, 'note')):
        space = SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_blocks=2**30, f_bfree=2**30)
        monkeypatch.setattr(doctor.os, 'statvfs', lambda _, space=space: space)
        shared = {finding.name: finding for finding in doctor._machine()}['shared memory']
        assert shared.mark == mark
        assert shared.text.startswith(f'{blocks // 256} MB free')
        assert ('--shm-size' in shared.text) == (mark == 'note')


def test_what_a_bundle_sees(tiny_bundle, tmp_path):
    bundles = pytest.importorskip('bundles')
    shutil.copytree(tiny_bundle, tmp_path / 'models/fusion')
    parts = bundles.tiny_card(modalities=('hha',)), bundles.tiny_network(modalities=('hha',))
    report = doctor.examine(str(bundles.write_bundle(tmp_path / 'models/hha', *parts)))
    assert report.healthy
    assert 'sees rgb and hha, 64x48' in found(report, 'Bundles', 'fusion').text
    assert 'sees hha, 32x24' in found(report, 'Bundles', 'hha').text
    assert 'alone' not in str(report.sections['Bundles'])


def test_no_bundle(capsys):
    report = doctor.examine('absent')
    assert not report.healthy
    assert found(report, 'Bundles', 'none found').mark == 'bad'
    assert "called 'absent'" in found(report, 'Trial', 'bundle').text
    assert main(['doctor', '--bundle', 'absent']) == 1
    assert 'can NOT' in capsys.readouterr().out


def test_damaged_bundles(tiny_bundle, tmp_path):
    wrong_hash, no_network = tmp_path / 'models/hash', tmp_path / 'models/network'
    for folder in (wrong_hash, no_network):
        shutil.copytree(tiny_bundle, folder)
    with (wrong_hash / 'model.onnx').open('ab') as file:
        file.write(b'more')
    (no_network / 'model.onnx').unlink()
    report = doctor.examine(str(wrong_hash))
    assert not report.healthy
    assert 'does not match its card' in found(report, 'Bundles', 'hash').text
    assert 'lacks its weights' in found(report, 'Bundles', 'network').text
    assert 'does not match its card' in found(report, 'Trial', 'bundle').text


def test_rclpy_is_told_apart(monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
    report = doctor.examine('absent')
    assert found(report, 'ROS 2', 'rclpy').mark == 'ok'
    assert found(report, 'ROS 2', 'sensor_msgs').mark == 'ok'
    monkeypatch.setattr(doctor, 'rclpy_path', lambda: None)
    report = doctor.examine('absent')
    absent = found(report, 'ROS 2', 'rclpy')
    assert absent.mark == 'note'
    assert '[ros-wheels]' in absent.text


@pytest.mark.parametrize(
    ('distro', 'wheel', 'told'), [('jazzy', '7.1', 1), ('jazzy', None, 0), ('', '7.1', 0)]
)
def test_a_sourced_ros_beside_wheels_is_told(monkeypatch, distro, wheel, told):
    pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
    monkeypatch.setenv('ROS_DISTRO', distro)
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/opt/ros/jazzy')
    monkeypatch.setattr(doctor, 'package_version', lambda _: wheel)
    names = [finding.name for finding in doctor.examine('absent').sections['ROS 2']]
    assert names.count('two of them') == told


@pytest.mark.parametrize(
    ('distro', 'name'),
    [
        ('jazzy', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
        ('kilted', 'FASTDDS_DEFAULT_PROFILES_FILE'),
    ],
)
def test_dds_profile(monkeypatch, tmp_path, distro, name):
    pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
    for variable in PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv('ROS_DISTRO', distro)
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/opt/ros/any')
    unset = found(doctor.examine('absent'), 'ROS 2', name)
    assert unset.mark == 'note'
    assert 'config/fastdds.xml' in unset.text
    monkeypatch.setenv(name, str(tmp_path / 'absent.xml'))
    assert found(doctor.examine('absent'), 'ROS 2', name).mark == 'bad'


def test_broken_modules_are_survived(monkeypatch, tmp_path):
    """A module built for another NumPy may raise, or take its interpreter down."""
    (tmp_path / 'raising_module.py').write_text('raise ImportError("built for NumPy 1")')
    (tmp_path / 'crashing_module.py').write_text('import os; print(1, flush=True); os.abort()')
    (tmp_path / 'good_module.py').write_text('__version__ = "7.1"')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    names = ('raising_module', 'crashing_module', 'good_module', 'absent_module')
    monkeypatch.setattr(doctor, '_PACKAGES', names)
    report = doctor.examine('absent')
    raising, crashing, good, absent = (found(report, 'Python packages', name) for name in names)
    assert [f.mark for f in (raising, crashing, good, absent)] == ['bad', 'bad', 'ok', 'bad']
    assert 'built for NumPy 1' in raising.text
    assert 'cannot be imported' in crashing.text
    assert good.text == '7.1'
    assert absent.text == 'not installed'


def test_what_only_the_nodes_need_is_told_apart(monkeypatch):
    modules = ('rclpy', 'sensor_msgs', 'vision_msgs', 'cv_bridge')
    monkeypatch.setattr(doctor, '_ROS_MODULES', modules[1:])
    monkeypatch.setattr(doctor, 'cv_bridge_fault', lambda: '')
    for lacking in modules[1:]:
        monkeypatch.setattr(
            doctor,
            '_imported',
            lambda names, lacking=lacking: {
                name: doctor.Finding('bad' if name == lacking else 'ok', name, 'so it is')
                for name in names
            },
        )
        findings = {finding.name: finding for finding in doctor._ros_packages(Path('rclpy'))}
        expected = dict.fromkeys(modules, 'ok')
        expected[lacking] = 'bad' if lacking == 'sensor_msgs' else 'note'
        assert {name: findings[name].mark for name in modules} == expected
        assert findings[lacking].text.startswith('so it is; ')


def test_the_time_of_a_frame_has_none_of_the_networks_of_single_sensors(monkeypatch):
    """Which warming up runs, too."""
    now_s = [0.0]

    class Segmenter:
        bundle = SimpleNamespace(frame_size=(8, 6))

        def warm_up(self):
            now_s[0] += 3

        def segment(self, frame):
            assert frame.depth.shape == (6, 8)
            now_s[0] += 1

    monkeypatch.setattr(doctor, 'time', SimpleNamespace(perf_counter=lambda: now_s[0]))
    assert doctor._segment_twice(Segmenter()) == 1000


def test_a_cv_bridge_that_is_imported_but_crashes_is_told(monkeypatch):
    def imported(names):
        return {name: doctor.Finding('ok', name, '4.1') for name in names}

    monkeypatch.setattr(doctor, '_imported', imported)
    monkeypatch.setattr(doctor, 'cv_bridge_fault', lambda: 'crashes here')
    findings = {finding.name: finding for finding in doctor._ros_packages(Path('rclpy'))}
    words = 'crashes here; the usual encodings are decoded without it'
    assert findings.pop('cv_bridge') == doctor.Finding('note', 'cv_bridge', words)
    assert {f.text for name, f in findings.items() if name in doctor._ROS_MODULES} == {'4.1'}


def test_engines_that_cannot_run_are_no_fault(monkeypatch):
    backends = [('one', True, '1.0'), ('other', False, 'there is no GPU')]
    monkeypatch.setattr(engine, 'available_backends', lambda: backends)
    findings = [(finding.mark, finding.text) for finding in doctor._engines()]
    assert findings == [('ok', '1.0'), ('note', 'cannot run: there is no GPU')]
