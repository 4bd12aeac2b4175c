"""What is installed, what can run here, and why the rest cannot."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, load_bundle
from rgbd_fusion_seg.errors import RgbdFusionSegError
from rgbd_fusion_seg.frame import blank_frame
from rgbd_fusion_seg.hardware import cpu_model_and_flags, package_version, usable_cores
from rgbd_fusion_seg.locations import bundle_folders, find_bundle, list_bundles
from rgbd_fusion_seg.ros_environment import (
    cv_bridge_fault,
    fastdds_profile,
    profile_variable,
    rclpy_path,
    ros_is_sourced,
)

_MARKS = {'ok': '  ok  ', 'note': ' note ', 'bad': ' BAD  '}
_PACKAGES = ('numpy', 'numba', 'cv2', 'onnxruntime', 'yaml', 'rosbags', 'tqdm')
_ROS_MODULES = (
    *('sensor_msgs', 'diagnostic_msgs', 'message_filters', 'cv_bridge', 'stereo_msgs'),
    'vision_msgs',
)
_OPTIONAL_ROS = {
    'message_filters': 'the built-in matcher pairs the images',
    'cv_bridge': 'the usual encodings are decoded without it',
    'stereo_msgs': 'disparity of stereo cameras is not read',
    'vision_msgs': 'label info goes out as JSON alone',
}
_CPU_FLAGS = ('avx2', 'fma', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_tile', 'asimd', 'i8mm')
_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``mark`` is ``ok``, ``note`` (works without) or ``bad``."""

    mark: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """All findings by section; ``healthy`` when the wanted bundle runs here."""

    sections: dict[str, list[Finding]]
    healthy: bool

    def text(self) -> str:
        """Return the report for a terminal."""
        lines = []
        for title, findings in self.sections.items():
            width = max((len(f.name) for f in findings), default=0)
            lines.append(title)
            lines += [f'[{_MARKS[f.mark]}] {f.name:<{width}}  {f.text}' for f in findings]
            lines.append('')
        verdict = 'can' if self.healthy else 'can NOT'
        return '\n'.join([*lines, f'The pipeline {verdict} run here.'])


def examine(bundle: str = DEFAULT_BUNDLE) -> Report:
    """Examine this installation, and segment an empty frame with a bundle.

    Args:
        bundle: name or folder of the bundle to try.
    """
    trial = _survived(_trial(bundle))
    sections = {
        'Machine': _survived(_machine()),
        'Python packages': _survived(_packages()),
        'ROS 2': _survived(_ros()),
        'Inference engines': _survived(_engines()),
        'TensorRT': _survived(_tensorrt(bundle)),
        'Bundles': _survived(_bundles()),
        'Trial': trial,
    }
    return Report(sections, healthy=all(finding.mark != 'bad' for finding in trial))


def _survived(section: Iterator[Finding]) -> list[Finding]:
    """Return the findings of a section; an error ends it, and is the last of them."""
    findings: list[Finding] = []
    try:
        findings.extend(section)
    except Exception as error:  # whatever it is, the user came here to be told
        text = f'{type(error).__name__}: {error}; please report this'
        findings.append(Finding('bad', 'examination', text))
    return findings


def _machine() -> Iterator[Finding]:
    yield Finding('ok', 'system', f'{platform.system()} {platform.release()}, {_system_name()}')
    model, flags = cpu_model_and_flags()
    text = f'{model or platform.machine()}, {usable_cores()} cores usable'
    yield Finding('ok', 'processor', text)
    known = [flag for flag in _CPU_FLAGS if flag in flags]
    yield Finding('ok', 'features', ', '.join(known) or 'not known')
    free = Path('/dev/shm')
    if free.is_dir():
        space = os.statvfs(free)
        megabytes = space.f_bavail * space.f_frsize >> 20
        enough = megabytes >= 256
        text = f'{megabytes} MB free for images between processes'
        text += '' if enough else '; give a container --shm-size=512m'
        yield Finding('ok' if enough else 'note', 'shared memory', text)


def _packages() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding('ok', 'python', f'{version} in {sys.prefix}')
    yield from _imported(_PACKAGES).values()


def _ros() -> Iterator[Finding]:
    installed = sorted(path.name for path in Path('/opt/ros').glob('*') if path.is_dir())
    if ros_is_sourced():
        yield Finding('ok', 'installation', f'{os.environ["ROS_DISTRO"]} is sourced')
    elif installed:
        text = f'/opt/ros has {", ".join(installed)}, but none is sourced: '
        yield Finding('note', 'installation', f'{text}source /opt/ros/{installed[-1]}/setup.bash')
    else:
        yield Finding('note', 'installation', 'no ROS under /opt/ros')
    path = rclpy_path()
    if path is None:
        text = 'absent: source a ROS installation or install the extra [ros-wheels]; '
        yield Finding('note', 'rclpy', f'{text}everything but the nodes works without')
        return
    yield from _ros_packages(path)
    yield Finding('ok', 'RMW_IMPLEMENTATION', os.environ.get('RMW_IMPLEMENTATION', 'default'))
    variable = profile_variable()
    profile = os.environ.get(variable)
    if not profile:
        text = f'unset, so Fast DDS drops images: export it as {fastdds_profile()}'
        yield Finding('note', variable, f'{text} (demo and launch files do)')
    else:
        mark, text = (
            ('ok', profile) if Path(profile).is_file() else ('bad', f'{profile} is absent')
        )
        yield Finding(mark, variable, text)


def _ros_packages(rclpy: Path) -> Iterator[Finding]:
    answers = _imported(('rclpy', *_ROS_MODULES))
    wheel = package_version('ros-rclpy')
    origin = f'PyPI wheel {wheel}' if wheel else 'ROS installation'
    if wheel and ros_is_sourced():
        text = 'ROS is sourced and its wheels are installed too; use an environment without them'
        yield Finding('note', 'two of them', text)
    rclpy_works = answers['rclpy'].mark == 'ok'
    yield Finding('ok', 'rclpy', f'{origin}, {rclpy}') if rclpy_works else answers['rclpy']
    for name in _ROS_MODULES:
        finding = answers[name]
        if name == 'cv_bridge' and finding.mark == 'ok' and (fault := cv_bridge_fault()):
            finding = Finding('bad', name, fault)
        if finding.mark == 'ok':
            yield finding
        elif name in _OPTIONAL_ROS:
            yield Finding('note', name, f'{finding.text}; {_OPTIONAL_ROS[name]}')
        else:
            yield Finding('bad', name, f'{finding.text}; the nodes need it')


def _engines() -> Iterator[Finding]:
    from rgbd_fusion_seg.engine import available_backends

    for name, usable, detail in available_backends():
        yield Finding(
            'ok' if usable else 'note', name, detail if usable else f'cannot run: {detail}'
        )


def _tensorrt(wanted: str) -> Iterator[Finding]:
    """Tell of TensorRT, and of the engines of a bundle and of all that are found by name."""
    from rgbd_fusion_seg.engine.flavours import Flavour, installed_flavours

    flavours = installed_flavours()
    runtimes = {n: f.version if isinstance(f, Flavour) else f for n, f in flavours.items()}
    for name, found in flavours.items():
        if isinstance(found, Flavour):
            can = 'to build and run engines' if found.can_build else 'to run engines'
            yield Finding('ok', name, f'{found.version}, {can}')
        else:
            yield Finding('note', name, str(found))
    for bundle in _all_bundles(wanted):
        yield from _engines_of(bundle, runtimes)


def _all_bundles(wanted: str) -> Iterator[ModelBundle]:
    """Yield the bundles found by name and the wanted one, each with its parts, each once."""
    folders, seen = list_bundles(), set()
    with suppress(RgbdFusionSegError):  # the trial tells
        folders.append(find_bundle(wanted))
    for folder in folders:
        try:
            bundle = load_bundle(folder)
        except RgbdFusionSegError:
            continue  # told among the bundles, or by the trial
        for part in (bundle, *bundle.single_sensor.values()):
            # The wanted one may be one of the others, or a part of one.
            if (place := part.path.resolve()) not in seen:
                seen.add(place)
                yield part


def _engines_of(bundle: ModelBundle, runtimes: Mapping[str, Any]) -> Iterator[Finding]:
    from rgbd_fusion_seg.engine.cuda import find_device
    from rgbd_fusion_seg.engine.engine_choice import misfit_here
    from rgbd_fusion_seg.engine.engine_files import list_engines, list_without_card, read_plan

    device = None
    with suppress(RgbdFusionSegError):  # told among the engines
        device = find_device()
    for path, card in list_engines(bundle).items():
        try:
            if isinstance(card, RgbdFusionSegError):
                raise card
            read_plan(path, card)
        except RgbdFusionSegError as error:
            yield Finding('bad', path.stem, str(error))
            continue
        if reason := misfit_here(card, bundle, runtimes, device):
            yield Finding('note', path.stem, f'of {bundle.path}: {reason}; build it again')
            continue
        runs_on = card.gpu or f'compute capability {", ".join(card.compute_capabilities)}'
        text = f'of {card.bundle}, {card.precision}, {card.flavour} {card.version}, {runs_on}'
        yield Finding('ok', path.stem, text)
    for path in list_without_card(bundle):
        text = f'{path} is not used, for no card beside it names it; copy both files, or build'
        yield Finding('note', path.stem, text)


def _bundles() -> Iterator[Finding]:
    for folder in list_bundles():
        try:
            bundle = load_bundle(folder)
        except RgbdFusionSegError as error:
            yield Finding('bad', folder.name, str(error))
            continue
        size, sees = '{}x{}'.format(*bundle.input_size), ' and '.join(bundle.inputs)
        text = (
            f'{bundle.num_classes} classes, sees {sees}, {size}, weights match the card, {folder}'
        )
        if alone := [s for s in bundle.sensors if bundle.alone(s) and not bundle.sole_sensor]:
            text += f'; answers alone from {" or ".join(alone)}'
        yield Finding('ok', folder.name, text)
    if not list_bundles():
        searched = ', '.join(str(folder) for folder in bundle_folders()) or 'no folder exists'
        yield Finding('bad', 'none found', f'searched: {searched}')


def _trial(name: str) -> Iterator[Finding]:
    """Run the pipeline once; every error becomes a finding, for that is what a doctor is for."""
    bundle = yield from _attempt(
        'bundle', lambda: load_bundle(name), lambda b: f'{b.name} is valid'
    )
    if bundle is None:
        return
    from rgbd_fusion_seg.segmenter import Segmenter

    segmenter = yield from _attempt(
        'engine',
        lambda: Segmenter(bundle, on_step_down=lambda _: None),
        lambda s: s.engine_name,
    )
    if segmenter is None:
        return
    for step_down in segmenter.step_downs:
        if step_down.unexpected:  # the others are among the inference engines
            yield Finding('note', step_down.backend, f'not used: {step_down.reason}')
    with segmenter:
        yield from _attempt(
            'one frame', lambda: _segment_twice(segmenter), lambda ms: f'segmented in {ms:.1f} ms'
        )


def _attempt(
    name: str, action: Callable[[], Any], describe: Callable[[Any], str]
) -> Generator[Finding, None, Any]:
    """Yield how an action went; return its value, or None where it failed."""
    try:
        value = action()
    except Exception as error:  # whatever it is, the user came here to be told
        kind = '' if isinstance(error, RgbdFusionSegError) else f'{type(error).__name__}: '
        yield Finding('bad', name, f'{kind}{error}')
        return None
    yield Finding('ok', name, describe(value))
    return value


def _segment_twice(segmenter: Any) -> float:
    """Segment an empty frame twice; return how long the second took, in milliseconds."""
    segmenter.warm_up()
    frame = blank_frame(*segmenter.bundle.frame_size)
    began_s = time.perf_counter()
    segmenter.segment(frame)
    return (time.perf_counter() - began_s) * 1e3


def _imported(names: Sequence[str]) -> dict[str, Finding]:
    """Import modules in another process, for one compiled for another NumPy may crash it.

    Returns:
        Module name -> ``ok`` with its version or ``bad`` with the reason.
    """
    try:
        done = subprocess.run(
            [sys.executable, '-c', _IMPORTER, *names],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        reason = f'its import takes more than {_PATIENCE_S} s'
    else:
        if done.returncode == 0:
            answers = json.loads(done.stdout.splitlines()[-1])
            return {name: Finding(mark, name, text) for name, mark, text in answers}
        reason = f'cannot be imported: its interpreter crashed with exit code {done.returncode}'
    if len(names) == 1:
        return {names[0]: Finding('bad', names[0], reason)}
    return {name: finding for one in names for name, finding in _imported([one]).items()}


_IMPORTER = """
import importlib, importlib.metadata as metadata, importlib.util, json, sys
answers, distributions = [], metadata.packages_distributions()
for name in sys.argv[1:]:
    try:
        if importlib.util.find_spec(name) is None:
            answers.append((name, 'bad', 'not installed'))
            continue
        module = importlib.import_module(name)
        text = getattr(module, '__version__', '')
        if not text and name in distributions:
            text = metadata.version(distributions[name][0])
        answers.append((name, 'ok', text or str(module.__file__)))
    except Exception as error:
        answers.append((name, 'bad', f'cannot be imported: {type(error).__name__}: {error}'))
print()
print(json.dumps(answers))
"""


def _system_name() -> str:
    try:
        return platform.freedesktop_os_release()['PRETTY_NAME']
    except (OSError, KeyError):
        return 'unknown distribution'
