"""Which engines fit a machine, from cards alone."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest
from bundles import tiny_card, tiny_network, with_open_sizes, write_bundle

from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.engine.cuda import Device
from rgbd_fusion_seg.engine.engine_choice import fitting_engines, runs_engine
from rgbd_fusion_seg.engine.engine_files import EngineCard, EngineTensor
from rgbd_fusion_seg.errors import EngineError

ORIN = Device(0, 'Orin', '8.7', 62841)
ADA = Device(0, 'NVIDIA RTX 4070', '8.9', 12282)
HERE = f'{platform.system().lower()} {platform.machine()}'
TENSORS = (
    EngineTensor('rgb', 'input', 'float32', (1, 3, 48, 64)),
    EngineTensor('hha', 'input', 'float32', (1, 3, 24, 32)),
    EngineTensor('logits', 'output', 'float32', (1, 4, 6, 8)),
)


@pytest.fixture(scope='module')
def bundle(tiny_bundle: Path) -> ModelBundle:
    return load_bundle(tiny_bundle)


def card(bundle: ModelBundle, **entries) -> EngineCard:
    return EngineCard(
        **{
            'bundle': bundle.name,
            'onnx_sha256': bundle.weights_sha256,
            'flavour': 'tensorrt',
            'version': '10.3.0',
            'precision': 'fp16',
            'compute_capabilities': ('8.7',),
            'gpu': 'Orin',
            'tensors': TENSORS,
            'platform': HERE,
            'memory_mib': 62841,
        }
        | entries
    )


def choose(bundle, cards, device=ORIN, runtimes=None, precision=''):
    runtimes = {'tensorrt': '10.3.0'} if runtimes is None else runtimes
    paths = {Path(f'{name}.json'): entry for name, entry in cards.items()}
    found = fitting_engines(paths, bundle, device, runtimes, precision)
    return [(candidate.path.stem, candidate.flavour) for candidate in found]


@pytest.mark.parametrize(
    ('entries', 'words'),
    [
        ({'onnx_sha256': '0' * 64}, ['another ONNX file', 'model.onnx']),
        ({'compute_capabilities': ('8.9', '12.0')}, ['8.9, 12.0', 'this GPU has 8.7']),
        ({'version': '10.16.1'}, ['by tensorrt 10.16.1', 'here is 10.3.0']),
        ({'flavour': 'tensorrt_rtx', 'version': '1.7.1'}, ['tensorrt_rtx 1.7.1', 'tensorrt 10.3']),
        ({'platform': 'linux riscv'}, ['built for linux riscv', HERE]),
        ({'gpu': 'Thor'}, ['was built on Thor of 62841 MiB, and this GPU is Orin of 62841 MiB']),
        ({'tensors': TENSORS[1:]}, ['has the inputs hha', 'the bundle has rgb, hha']),
        (
            {'tensors': (dataclasses.replace(TENSORS[0], shape=(1, 3, 96, 64)), *TENSORS[1:])},
            ['takes 1x3x96x64 for its input rgb, not 1x3x48x64'],
        ),
        (
            {'tensors': (dataclasses.replace(TENSORS[0], dtype='uint8'), *TENSORS[1:])},
            ['takes uint8 for its input rgb, not float32'],
        ),
    ],
)
def test_the_reason_why_an_engine_does_not_fit_is_told(bundle, entries, words):
    assert choose(bundle, {'fits': card(bundle), 'not': card(bundle, **entries)}) == [
        ('fits', 'tensorrt')
    ]
    with pytest.raises(EngineError) as caught:
        choose(bundle, {'not': card(bundle, **entries)})
    text = str(caught.value)
    assert all(word in text for word in ['not.json', *words]), text
    assert 'Orin, compute capability 8.7' in text
    assert f'rgbd-fusion-seg build-engine {bundle.path}' in text
    assert '\n' not in text


def test_every_engine_has_its_reason(bundle):
    cards = {
        'a': card(bundle, version='8.6.1'),
        'b': EngineError('the card b.json cannot be used'),
        'c': card(bundle, precision='fp32'),
    }
    with pytest.raises(EngineError) as caught:
        choose(bundle, cards, precision='fp16')
    words = ['a.json was built by tensorrt 8.6.1', 'b.json has an unusable', 'computes in fp32']
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(EngineError, match='here is no TensorRT'):
        choose(bundle, cards, runtimes={'tensorrt': EngineError('absent')})
    with pytest.raises(EngineError, match=r"no precision 'int8'; choose one of: fp16"):
        choose(bundle, cards, precision='int8')


def test_a_shipped_bundle_is_built_by_its_name(bundle, monkeypatch):
    monkeypatch.setenv('RGBD_FUSION_SEG_MODELS', str(bundle.path.parent))
    with pytest.raises(EngineError, match='there is no TensorRT engine') as caught:
        choose(bundle, {})
    assert str(caught.value).endswith('rgbd-fusion-seg build-engine tiny')
    assert str(bundle.path / 'engines') in str(caught.value)


def test_the_best_engine_comes_first(bundle):
    ranged = (
        dataclasses.replace(
            TENSORS[0],
            shape=(1, 3, -1, -1),
            profile=((1, 3, 16, 16), (1, 3, 48, 64), (1, 3, 96, 96)),
        ),
        *TENSORS[1:],
    )
    compatible = {'version_compatible': True}
    rtx = {'flavour': 'tensorrt_rtx', 'version': '1.7.1'}
    cards = {
        'full': card(bundle, precision='fp32'),
        'brain': card(bundle, precision='bf16'),
        'rtx': card(bundle, **rtx),
        'ranged': card(bundle, tensors=ranged),
        'compatible': card(bundle, options=compatible),
        'half': card(bundle),
    }
    runtimes = {'tensorrt': '10.3.0', 'tensorrt_rtx': '1.7.1'}
    order = ['half', 'ranged', 'compatible', 'rtx', 'brain', 'full']
    assert [name for name, _ in choose(bundle, cards, runtimes=runtimes)] == order
    assert choose(bundle, cards, precision='bf16') == [('brain', 'tensorrt')]


def test_ranged_sizes_hold_those_within(tmp_path):
    settings = tiny_card() | {'dynamic': {'batch': False, 'size': True, 'multiple': 16}}
    folder = write_bundle(tmp_path / 'open', settings, with_open_sizes(tiny_network()))
    bundle = load_bundle(folder)
    sizes = {'rgb': ((48, 64), (96, 128)), 'hha': ((24, 32), (48, 64))}
    tensors = tuple(
        EngineTensor(
            name,
            'input',
            'float32',
            (1, 3, -1, -1),
            tuple((1, 3, *size) for size in (low, low, high)),
        )
        for name, (low, high) in sizes.items()
    )
    cards = {'ranged': card(bundle, tensors=(*tensors, TENSORS[2]))}
    for size in [(64, 48), (96, 64), (128, 96)]:
        assert choose(bundle.resized(*size), cards)
    for size in [(144, 96), (48, 48)]:
        with pytest.raises(EngineError, match='takes 1x3x48x64 to 1x3x96x128 for its input rgb'):
            choose(bundle.resized(*size), cards)


@pytest.mark.parametrize(
    ('flavour', 'version', 'built', 'compatible', 'runs'),
    [
        ('tensorrt', '10.3.0', '10.3.0', False, True),
        ('tensorrt', '10.3.1', '10.3.0', False, False),
        ('tensorrt', '10.16.1.11', '10.16.1.11', True, True),
        ('tensorrt', '10.16.1', '10.3.0', True, True),  # 16 is more than 3
        ('tensorrt', '10.3.0', '10.16.1', True, False),
        ('tensorrt', '11.4.0', '10.3.0', True, True),
        ('tensorrt', '11.4.0', '8.6.1', True, False),
        ('tensorrt', '10.3.0', '11.0.0', True, False),
        ('tensorrt_lean', '11.4.0', '11.4.0', True, True),
        ('tensorrt_lean', '11.4.0.106', '11.4.0', True, True),
        ('tensorrt_lean', '11.4.0', '11.0.0', True, True),
        ('tensorrt_lean', '11.4.0', '11.4.0', False, False),
        ('tensorrt_rtx', '10.3.0', '10.3.0', True, False),
    ],
)
def test_versions_that_run_an_engine_of_tensorrt(
    bundle, flavour, version, built, compatible, runs
):
    entry = card(bundle, version=built, options={'version_compatible': compatible})
    assert runs_engine(flavour, version, entry) == runs


def test_rtx_engines_run_on_their_very_version_alone(bundle):
    entry = card(
        bundle, flavour='tensorrt_rtx', version='1.7.1', options={'version_compatible': True}
    )
    assert runs_engine('tensorrt_rtx', '1.7.1', entry)
    assert not runs_engine('tensorrt_rtx', '1.7.2', entry)
    assert not runs_engine('tensorrt', '1.7.1', entry)


@pytest.mark.parametrize(
    ('capability', 'fits'),
    [
        ('8.9', True),
        ('12.0', True),
        ('12.1', True),
        ('9.0', False),
        ('8.7', False),
        ('7.5', False),
    ],
)
def test_rtx_engines_also_run_on_gpus_after_the_newest_they_name(bundle, capability, fits):
    cards = {
        'rtx': card(
            bundle,
            flavour='tensorrt_rtx',
            version='1.7.1',
            compute_capabilities=('8.0', '8.6', '8.9', '12.0'),
            platform='windows AMD64',  # they are portable
        )
    }
    device = ADA._replace(compute_capability=capability)
    runtimes = {'tensorrt_rtx': '1.7.1'}
    if fits:
        assert choose(bundle, cards, device, runtimes) == [('rtx', 'tensorrt_rtx')]
    else:
        with pytest.raises(EngineError, match=f'this GPU has {capability}'):
            choose(bundle, cards, device, runtimes)


@pytest.mark.parametrize('flavour', ['tensorrt', 'tensorrt_rtx'])
def test_an_engine_for_older_gpus_alone_does_not_run_on_newer_ones(bundle, flavour):
    older = card(bundle, flavour=flavour, compute_capabilities=('7.5', '8.6'))
    with pytest.raises(EngineError, match=r'7\.5, 8\.6, and this GPU has 8\.9'):
        choose(bundle, {'older': older}, ADA, {flavour: '10.3.0'})


@pytest.mark.parametrize(
    ('built', 'here', 'fits'),
    [
        (('Orin', 62841), ('Orin', 62841), True),
        (('Orin', 62841), ('Orin', 61200), True),  # another JetPack
        (('Orin', 62841), ('Orin', 7620), False),
        (('NVIDIA GeForce RTX 3080', 10239), ('NVIDIA GeForce RTX 3080', 12287), False),
        (('NVIDIA GeForce RTX 4050', 6141), ('NVIDIA GeForce RTX 2060', 6140), False),
    ],
)
def test_engines_of_tensorrt_belong_to_a_model_of_gpu(bundle, built, here, fits):
    """RTX makes its kernels where the engine is opened."""
    entries = {'gpu': built[0], 'memory_mib': built[1]}
    device = Device(0, here[0], '8.7', here[1])
    rtx = card(bundle, flavour='tensorrt_rtx', **entries)
    assert choose(bundle, {'rtx': rtx}, device, {'tensorrt_rtx': '10.3.0'})
    if fits:
        assert choose(bundle, {'plain': card(bundle, **entries)}, device)
        return
    with pytest.raises(EngineError) as caught:
        choose(bundle, {'plain': card(bundle, **entries)}, device)
    words = [f'was built on {built[0]}', f'and this GPU is {here[0]} of {here[1]} MiB']
    assert all(word in str(caught.value) for word in [*words, 'rgbd-fusion-seg build-engine'])
