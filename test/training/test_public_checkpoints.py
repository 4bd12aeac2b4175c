from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('tensorboard')

import reference_adapnetpp as reference
import torch
from goldens import fill
from safetensors.torch import save_file
from tf_checkpoints import write_tf_checkpoint

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.palette import NYU40_CLASSES
from rgbd_fusion_seg.training.__main__ import main
from rgbd_fusion_seg.training.checkpoints import from_public, load_checkpoint
from rgbd_fusion_seg.training.datasets.cityscapes_classes import CITYSCAPES19
from rgbd_fusion_seg.training.evaluation import check_classes
from rgbd_fusion_seg.training.networks import build_network
from rgbd_fusion_seg.training.predictors import open_predictor
from rgbd_fusion_seg.training.public_checkpoints import import_weights
from rgbd_fusion_seg.training.public_names import SYSTEMS
from rgbd_fusion_seg.training.public_weights import translate
from rgbd_fusion_seg.training.tf_checkpoint import masked_crc32c

NORM = {'gamma': 'weight', 'moving_mean': 'running_mean', 'moving_variance': 'running_var'}


def tf_variable(name: str, shape: list[int]) -> np.ndarray:
    """The golden fill, which is stated for PyTorch's names and layout."""
    if len(shape) == 4:
        return fill(name, (shape[3], shape[2], *shape[:2])).transpose(2, 3, 1, 0)
    scope, _, leaf = name.rpartition('/')
    return fill(f'{scope}.{NORM.get(leaf, "bias")}', tuple(shape))


def read_shapes(path: Path) -> dict[str, list[int]]:
    return json.loads(path.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def adapnetpp_variables(goldens_dir):
    shapes = read_shapes(goldens_dir / 'adap_vars.json')
    return {name: tf_variable(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope='module')
def ssma_variables(goldens_dir):
    shapes = read_shapes(goldens_dir / 'ssma_vars.json')
    variables = {name: tf_variable(name, shape) for name, shape in shapes.items()}
    for number in (512, 514, 519):  # no attention is to be quite 0 or 1
        variables[f'conv{number}/weights/kernel'] *= 0.005
    return variables


@pytest.fixture(scope='module')
def erfnet(goldens_dir):
    return np.load(goldens_dir / 'erfnet.npz')


@pytest.fixture(scope='module')
def erfnet_weights(erfnet) -> dict[str, torch.Tensor]:
    shapes = json.loads(str(erfnet['state_keys']))
    return {k: torch.from_numpy(fill(k, tuple(shape))) for k, shape in shapes.items()}


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Float (1, H, W, 3), R, G, B from 0 to 255, smooth enough for maxima to differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (1, height // 4, width // 4, 3))
    return coarse.repeat(4, 1).repeat(4, 2).astype(np.float32)


def to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(0, 3, 1, 2)


def assert_same(name: str, ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Compare (N, C, H, W) with the reference's (N, H, W, C)."""
    difference = np.abs(ours.permute(0, 2, 3, 1).numpy() - theirs).max()
    assert difference <= 1e-4 * np.abs(theirs).max(), name


def check_total(system: str, weights: dict[str, torch.Tensor], variables) -> None:
    """Every public variable is used once, and every tensor of ours is filled."""
    variant = SYSTEMS[system]().variants[0]
    public = {name.removesuffix('/kernel') for name in variables}
    assert set(variant.names) == public
    counters = {name for name in weights if name.endswith('num_batches_tracked')}
    assert sorted(variant.names.values()) == sorted(set(weights) - counters)


# AdapNet++


def test_adapnetpp_computes_what_the_public_network_does(adapnetpp_variables):
    # Not square, and large enough for the widest dilation, 12 at 1/16.
    image = picture(208, 224, 1)
    theirs: dict[str, np.ndarray] = {}
    outputs, used = reference.adapnetpp(adapnetpp_variables, image[..., ::-1], theirs.__setitem__)
    assert used == set(adapnetpp_variables)
    weights = from_public('adapnetpp', adapnetpp_variables)
    check_total('adapnetpp', weights, adapnetpp_variables)
    with torch.device('meta'):
        network = build_network('adapnetpp', 12).eval()
    network.load_state_dict(weights, assign=True)
    encoder, ours = network.encoder, {}
    for i, block in enumerate(encoder.blocks, 1):
        for j, unit in enumerate(block):
            unit.register_forward_hook(
                lambda _m, _i, out, key=f'block{i}.{j}': ours.__setitem__(key, out.active)
            )
    encoder.easpp.register_forward_hook(lambda _m, _i, out: ours.__setitem__('easpp', out))
    with torch.no_grad():
        logits = network({'rgb': to_torch(image)}, auxiliary=True)
        ours['stem'] = encoder.stem(to_torch(image)).active
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert_same(name, ours[name], value)
    for name, mine, value in zip(('logits', '1/4', '1/8'), logits, outputs, strict=True):
        assert_same(name, mine, value)


def crc(data: bytes) -> int:
    """The reader's own checksum: test_tf_checkpoint.py has an independent one, for small files."""
    return masked_crc32c(np.frombuffer(data, np.uint8))


def test_a_tensorflow_checkpoint_becomes_one_of_ours(tmp_path, adapnetpp_variables):
    # As TensorFlow names them, with what training adds; without the auxiliary heads.
    variables = {
        name.removesuffix('/kernel'): value
        for name, value in adapnetpp_variables.items()
        if '/conv911/' not in name and '/conv912/' not in name
    }
    kernel = 'resnet_v2_50/conv1/weights'
    training = {
        f'{kernel}/Adam': variables[kernel],
        f'{kernel}/Adam_1': variables[kernel],
        'beta1_power': np.float32(0.5),
        'global_step': np.int64(1500),
    }
    prefix, output = tmp_path / 'model.ckpt-1500', tmp_path / 'c.safetensors'
    write_tf_checkpoint(prefix, variables | training, checksum=crc)
    options = {'modality': 'hha', 'easpp_rates': [6, 12, 18]}
    import_weights('adapnetpp', tmp_path / 'model.ckpt-1500.index', output, options=options)
    checkpoint = load_checkpoint(output)
    network = checkpoint.build()
    assert network.modalities == ('hha',)
    assert network.auxiliary_weights == ()
    assert checkpoint.info['statistics'] == {'hha': [[0.0] * 3, [1.0] * 3]}
    assert checkpoint.classes.names == tuple(f'class {i}' for i in range(1, 12))
    blue = torch.from_numpy(variables[kernel][:, :, 0].copy()).permute(2, 0, 1)
    torch.testing.assert_close(network.encoder.conv1.weight[:, 2], blue)

    data = tmp_path / 'model.ckpt-1500.data-00000-of-00001'
    with data.open('r+b') as file:
        file.truncate(data.stat().st_size - 1)
    with pytest.raises(InputError, match='it ends before the last byte'):
        import_weights('adapnetpp', prefix, output)
    name = 'resnet_v2_50/block3/unit_5/bottleneck_v1/conv2/weights'
    del variables[name]
    write_tf_checkpoint(prefix, variables, checksum=crc)
    with pytest.raises(InputError, match=rf'model\.ckpt-1500: 1 of .* missing, first {name}'):
        import_weights('adapnetpp', prefix, output)


# SSMA


def test_ssma_computes_what_the_public_network_does(ssma_variables):
    rgb, hha = picture(80, 96, 1), picture(80, 96, 2)
    theirs: dict[str, np.ndarray] = {}
    outputs, used = reference.ssma(
        ssma_variables, rgb[..., ::-1], hha[..., ::-1], theirs.__setitem__
    )
    assert used == set(ssma_variables)
    weights = from_public('ssma', ssma_variables)
    check_total('ssma', weights, ssma_variables)
    with torch.device('meta'):
        network = build_network('ssma_adapnetpp', 12).eval()
    network.load_state_dict(weights, assign=True)
    ours: dict[str, torch.Tensor] = {}
    for name in ('combine', 'combine8', 'combine4'):
        getattr(network, name).register_forward_hook(
            lambda _m, _i, out, key=name: ours.__setitem__(key, out)
        )
    with torch.no_grad():
        logits = network({'rgb': to_torch(rgb), 'hha': to_torch(hha)})
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert_same(name, ours[name], value)
    assert_same('logits', logits, outputs)


def test_ssma_reads_both_inputs_as_they_are(tmp_path, ssma_variables):
    source, output = tmp_path / 'ssma.safetensors', tmp_path / 'c.safetensors'
    arrays = {k: np.ascontiguousarray(value) for k, value in ssma_variables.items()}
    save_file({k: torch.from_numpy(value) for k, value in arrays.items()}, source)
    import_weights('ssma', source, output, width=640, height=480)
    info = load_checkpoint(output).info
    assert info['network'] == 'ssma_adapnetpp'
    assert info['statistics'] == {name: [[0.0] * 3, [1.0] * 3] for name in ('rgb', 'hha')}
    assert (info['width'], info['height']) == (640, 480)


# ERFNet


def test_erfnet_gives_the_public_outputs(tmp_path, erfnet, erfnet_weights):
    """A file as its authors save one: wrapped, with the training's state around it."""
    wrapped = {f'module.{name}': value for name, value in erfnet_weights.items()}
    content = {'epoch': 150, 'arch': 'ERFNet', 'state_dict': wrapped, 'best_acc': 0.7}
    torch.save(content, tmp_path / 'model_best.pth.tar')
    source = tmp_path / 'model_best.pth.tar'
    import_weights('erfnet', source, tmp_path / 'c.safetensors', keep_void=True)
    checkpoint = load_checkpoint(tmp_path / 'c.safetensors')
    network = checkpoint.build()
    assert checkpoint.classes.names[-2:] == ('class 18', 'void')
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in checkpoint.info['statistics']['rgb'])
    photo = to_torch(erfnet['img_u8'][None].astype(np.float32))
    with torch.no_grad():
        logits, early = network({'rgb': torch.from_numpy(erfnet['x'])}, auxiliary=True)
        of_photo = network({'rgb': (photo - mean) / std})
    for ours, theirs in (
        (logits[..., ::2, ::2], erfnet['out']),
        (early, erfnet['enc_only_logits']),
        (of_photo[..., ::8, ::8], erfnet['img_logits_sub8']),
    ):
        assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert (of_photo.argmax(1).numpy() == erfnet['img_argmax']).mean() > 0.9999


@pytest.mark.parametrize('suffix', ['.pth', '.npz', '.safetensors'])
def test_erfnets_encoder_alone(tmp_path, erfnet, erfnet_weights, suffix):
    # Files of old PyTorch lack the counters of batches.
    encoder = {
        name: value
        for name, value in erfnet_weights.items()
        if name.startswith('encoder.') and value.ndim
    }
    source = tmp_path / f'encoder{suffix}'
    if suffix == '.npz':
        np.savez(source, **{name: value.numpy() for name, value in encoder.items()})
    elif suffix == '.pth':
        torch.save(encoder, source)
    else:
        save_file(encoder, source)
    import_weights('erfnet', source, tmp_path / 'c.safetensors', num_classes=20, keep_void=True)
    network = load_checkpoint(tmp_path / 'c.safetensors').build()
    with torch.no_grad():
        logits = network({'rgb': torch.from_numpy(erfnet['x'])}).numpy()
    theirs = erfnet['enc_only_logits']
    assert np.abs(logits - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_the_command_leaves_void_out_of_erfnet(tmp_path, erfnet, erfnet_weights, monkeypatch):
    """So that it is scored and exported on the data that its authors trained on."""
    torch.save(erfnet_weights, tmp_path / 'a.pth')
    arguments = ['import-weights', '--system', 'erfnet', '--source', str(tmp_path / 'a.pth')]
    output = tmp_path / 'c.safetensors'
    monkeypatch.setattr(sys, 'argv', ['training', *arguments, '--output', str(output)])
    assert main() == 0
    network = load_checkpoint(output).build()
    with torch.no_grad():
        outputs = network({'rgb': torch.from_numpy(erfnet['x'])}, auxiliary=True)
    logits, early = outputs[0][..., ::2, ::2], outputs[1]
    for ours, theirs in ((logits, erfnet['out']), (early, erfnet['enc_only_logits'])):
        assert theirs.shape[1] == 20
        assert np.abs(ours.numpy() - theirs[:, :19]).max() <= 1e-4 * np.abs(theirs).max()
    with contextlib.closing(open_predictor(output, device='cpu')) as predictor:
        source = types.SimpleNamespace(name='cityscapes-val', classes=CITYSCAPES19)
        check_classes(predictor.classes.names, source, output)


@pytest.mark.parametrize('system', ['adapnetpp', 'ssma'])
def test_logits_of_classes_are_the_same_without_that_of_void(
    tmp_path, system, adapnetpp_variables, ssma_variables
):
    variables = {'adapnetpp': adapnetpp_variables, 'ssma': ssma_variables}[system]
    np.savez(tmp_path / 'a.npz', **variables)
    images = {name: to_torch(picture(64, 96, i)) for i, name in enumerate(('rgb', 'hha'))}
    made = {}
    for keep in (True, False):
        output = tmp_path / f'{keep}.safetensors'
        import_weights(system, tmp_path / 'a.npz', output, keep_void=keep)
        checkpoint = load_checkpoint(output)
        assert checkpoint.num_classes == 11 + keep
        with torch.no_grad():
            made[keep] = checkpoint.build()(images, auxiliary=True)
    assert len(made[True]) == (3 if system == 'adapnetpp' else 1)
    for whole, ours in zip(made[True], made[False], strict=True):
        assert_same(system, ours, whole[:, 1:].permute(0, 2, 3, 1).numpy())


def test_erfnets_encoder_from_imagenet(tmp_path, erfnet, erfnet_weights):
    """It has no head, and a classifier of ImageNet instead."""
    names = [n for n in erfnet_weights if n.startswith('encoder.') and 'output_conv' not in n]
    encoder = {f'module.features.{name}': erfnet_weights[name] for name in names}
    encoder['module.classifier.weight'] = torch.zeros(1000, 128)
    torch.save({'state_dict': encoder}, tmp_path / 'erfnet_encoder_pretrained.pth.tar')
    source, output = tmp_path / 'erfnet_encoder_pretrained.pth.tar', tmp_path / 'c.safetensors'
    with pytest.raises(InputError, match='give num_classes'):
        import_weights('erfnet', source, output)
    for number in (-3, 0, 1, 256):
        with pytest.raises(InputError, match=f'num_classes must be 2 to 255, not {number}'):
            import_weights('erfnet', source, output, num_classes=number)
    (tmp_path / 'classes.yaml').write_text('names: [wall, floor, door]\n')
    import_weights('erfnet', source, output, classes=tmp_path / 'classes.yaml')
    checkpoint = load_checkpoint(output)
    assert checkpoint.classes.names == ('wall', 'floor', 'door')
    network = checkpoint.build()
    with torch.no_grad():
        features = network.encoder(torch.from_numpy(erfnet['x'])).numpy()
        assert network({'rgb': torch.from_numpy(erfnet['x'])}).shape[1] == 3
    assert np.abs(features - erfnet['enc_feat']).max() <= 1e-4 * erfnet['enc_feat'].max()


# CEN and AsymFusion


BLOCKS = {'resnet50': (3, 4, 6, 3), 'resnet101': (3, 4, 23, 3), 'resnet152': (3, 8, 36, 3)}


def refinenet_file(goldens_dir, backbone: str, branches: int) -> dict[str, torch.Tensor]:
    """A file of the size of one number: the names of the golden one, which is ResNet-50 of two
    branches, for other depths and branches."""
    with np.load(goldens_dir / 'cen_refinenet50.npz') as golden:
        shapes = {k: tuple(shape) for k, shape in json.loads(str(golden['state_keys'])).items()}
    for stage, (count, known) in enumerate(zip(BLOCKS[backbone], BLOCKS['resnet50'], strict=True)):
        last = f'layer{stage + 1}.{known - 1}.'
        names = [name for name in shapes if name.startswith(last)]
        for block, name in itertools.product(range(known, count), names):
            shapes[name.replace(last, f'layer{stage + 1}.{block}.')] = shapes[name]
    for name in [name for name in shapes if '.bn_1.' in name]:
        shape = shapes.pop(name)
        for branch in range(1, branches):
            shapes[name.replace('.bn_1.', f'.bn_{branch}.')] = shape
    shapes['alpha'] = (branches,)
    return {name: torch.full((), 0.5).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ('backbone', 'branches', 'network', 'modalities'),
    [
        ('resnet50', 2, 'asymfusion', ['rgb', 'depth']),
        ('resnet101', 2, 'cen', ['rgb', 'depth']),
        ('resnet152', 1, 'multimodal', ['rgb']),
        ('resnet50', 3, 'cen', ['rgb', 'hha', 'depth']),
    ],
)
def test_backbone_and_branches_are_told_by_the_tensors(
    goldens_dir, backbone, branches, network, modalities
):
    """The file as the authors' trainings save it. What the golden files hold is tested beside
    the networks."""
    tensors = refinenet_file(goldens_dir, backbone, branches)
    counts = json.loads((goldens_dir / 'cen_param_counts.json').read_text())
    parameters = [v for k, v in tensors.items() if 'running' not in k and v.ndim]
    if (known := f'R{backbone[6:]}_P{branches}_C40') in counts:
        assert sum(p.numel() for p in parameters) == counts[known]['total']
    saved = {'segmenter': {f'module.{k}': v for k, v in tensors.items()}, 'epoch_start': 300}
    system = network if network != 'multimodal' else 'cen'
    variant, count, weights = translate(system, saved)
    assert (variant.network, count) == (network, 40)
    assert variant.options.items() >= {'backbone': backbone, 'modalities': modalities}.items()
    with torch.device('meta'):
        ours = build_network(network, 40, **variant.options)
    ours.load_state_dict(weights, assign=True)
    unused = {'alpha'} if branches == 1 else set()
    used = {k for k, v in tensors.items() if v.ndim} - unused
    assert set(variant.names) == used
    assert len(set(variant.names.values())) == len(used)


def test_a_file_of_cen_becomes_a_checkpoint(tmp_path, goldens_dir):
    source, output = tmp_path / 'checkpoint.pth.tar', tmp_path / 'c.safetensors'
    tensors = refinenet_file(goldens_dir, 'resnet50', 2)
    torch.save({'segmenter': tensors, 'epoch_start': 1}, source)
    with pytest.raises(InputError, match=r'branches of 2 modalities, .* tell 3: rgb, hha, depth'):
        import_weights('cen', source, output, {'modalities': ['rgb', 'hha', 'depth']})
    with pytest.raises(InputError, match='has 40 classes, but num_classes tells 37'):
        import_weights('cen', source, output, num_classes=37)
    with pytest.raises(InputError, match='resnet14'):
        import_weights('cen', source, output, {'backbone': 'resnet14'})
    assert not output.exists()
    import_weights('cen', source, output, {'freeze_norms': True}, width=320, height=240)
    checkpoint = load_checkpoint(output)
    assert checkpoint.classes.names == NYU40_CLASSES
    info = checkpoint.info
    assert info['network'] == 'cen'
    assert info['options'] == {
        'backbone': 'resnet50', 'modalities': ['rgb', 'depth'], 'freeze_norms': True
    }  # fmt: skip
    mean, std = np.array(info['statistics']['rgb']) / 255
    np.testing.assert_allclose(mean, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(std, [0.229, 0.224, 0.225])
    assert info['statistics']['depth'] == [[0.0] * 3, [1.0] * 3]
    assert checkpoint.weights.keys() == from_public('cen', tensors).keys()


def test_files_of_other_branches_and_parts_are_named(goldens_dir):
    tensors = refinenet_file(goldens_dir, 'resnet50', 2)
    four = refinenet_file(goldens_dir, 'resnet50', 4)
    with pytest.raises(InputError, match=r'3 modalities, the most .* no tensor .*\.bn_3\.'):
        from_public('cen', four)
    name = 'layer3.5.bn2.bn_1.bias'
    partial = {k: v for k, v in tensors.items() if k != name}
    words = rf'1 of the \d+ tensors of asymfusion on resnet50 with 2 modalities are .* {name}'
    with pytest.raises(InputError, match=words):
        from_public('asymfusion', partial)
    with pytest.raises(InputError, match=r'alpha has the shape \(3,\) where \(2,\)'):
        from_public('cen', tensors | {'alpha': torch.ones(3)})
    with pytest.raises(InputError, match='weights of cen, not of erfnet'):
        from_public('erfnet', tensors)


# What is refused


def test_an_unknown_system_is_told_the_known_ones():
    with pytest.raises(InputError, match=f"'segnet'; choose one of {', '.join(sorted(SYSTEMS))}"):
        from_public('segnet', {})


def test_weights_of_another_system_are_told_apart(adapnetpp_variables, erfnet_weights):
    with pytest.raises(InputError, match='weights of adapnetpp, not of erfnet'):
        from_public('erfnet', adapnetpp_variables)
    with pytest.raises(InputError, match='weights of erfnet, not of adapnetpp'):
        from_public('adapnetpp', erfnet_weights)


def test_missing_unknown_and_misshapen_tensors_are_named(erfnet_weights):
    name = 'decoder.layers.1.conv3x1_2.weight'
    partial = {k: v for k, v in erfnet_weights.items() if k != name}
    with pytest.raises(InputError, match=f'1 of the .* missing, first {name}'):
        from_public('erfnet', partial)
    with pytest.raises(InputError, match=r'erfnet has no tensor decoder\.extra'):
        from_public('erfnet', erfnet_weights | {'decoder.extra': torch.zeros(3)})
    for shape in ((64, 64, 1, 3), (65, 64, 3, 1), (64,)):
        with pytest.raises(InputError, match=name):
            from_public('erfnet', erfnet_weights | {name: torch.zeros(shape)})


def test_other_class_counts_are_refused(tmp_path, erfnet_weights):
    source, output = tmp_path / 'a.pth', tmp_path / 'c.safetensors'
    torch.save(erfnet_weights, source)
    with pytest.raises(InputError, match=r'a\.pth has 19 classes without void, but num_c.* 20'):
        import_weights('erfnet', source, output, num_classes=20)
    with pytest.raises(InputError, match=r'a\.pth has 20 classes, but num_classes tells 19'):
        import_weights('erfnet', source, output, num_classes=19, keep_void=True)
    (tmp_path / 'k.yaml').write_text('names: [a, b]\ncolors: [[1, 2, 3], [4, 5, 6]]\n')
    with pytest.raises(InputError, match=r'19 classes without void, but .*k\.yaml tells 2'):
        import_weights('erfnet', source, output, classes=tmp_path / 'k.yaml')
    for text in ('names: 3', '[a, b]', 'names: [a\n', 'names: [a]\ncolors: [[1, 2]]'):
        (tmp_path / 'k.yaml').write_text(text)
        with pytest.raises(InputError, match=r'k\.yaml'):
            import_weights('erfnet', source, output, classes=tmp_path / 'k.yaml')
    with pytest.raises(InputError, match='lidar'):
        import_weights('erfnet', source, output, options={'modality': 'lidar'})
    with pytest.raises(InputError, match='do not fit its options'):
        import_weights('erfnet', source, output, options={'multi_level': True})
    with pytest.raises(InputError, match='dropout'):
        import_weights('erfnet', source, output, options={'dropout': [0.1]})
    with pytest.raises(InputError, match=r'erfnet was trained on rgb and hha, so how depth is'):
        import_weights('erfnet', source, output, options={'modality': 'depth'})
    assert not output.exists()


def test_outputs_that_could_not_be_used_are_refused(tmp_path, erfnet_weights):
    source, file = tmp_path / 'a.pth', tmp_path / 'tiny.yaml'
    torch.save(erfnet_weights, source)
    file.write_text('')
    for name in ('c.pth', 'c', ''):
        with pytest.raises(InputError, match=r'give a name that ends with \.safetensors'):
            import_weights('erfnet', source, tmp_path / name)
    with pytest.raises(InputError, match=r'tiny\.yaml cannot be a folder'):
        import_weights('erfnet', source, file / 'c.safetensors')
    with pytest.raises(InputError, match=r'/proc.* choose another output'):
        import_weights('erfnet', source, Path('/proc/w/c.safetensors'))


@pytest.mark.parametrize('size', [(0, 512), (1024, -8), (1020, 512), (4, 512)])
def test_sizes_that_the_network_cannot_take_are_refused(tmp_path, erfnet_weights, size):
    source, output = tmp_path / 'a.pth', tmp_path / 'c.safetensors'
    torch.save(erfnet_weights, source)
    with pytest.raises(InputError, match='erfnet needs width and height to be multiples of 8'):
        import_weights('erfnet', source, output, width=size[0], height=size[1])
    assert not output.exists()
    import_weights('erfnet', source, output, width=640, height=480)
    assert load_checkpoint(output).info['width'] == 640


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, erfnet_weights, value):
    name = 'encoder.layers.0.conv.bias'
    spoilt = {**erfnet_weights, name: erfnet_weights[name].clone()}
    spoilt[name][3] = value
    torch.save(spoilt, tmp_path / 'a.pth')
    with pytest.raises(InputError, match=r'a\.pth has values in \S+bias .* not finite'):
        import_weights('erfnet', tmp_path / 'a.pth', tmp_path / 'c.safetensors')
    assert not (tmp_path / 'c.safetensors').exists()


@pytest.mark.parametrize('name', ['a.pth', 'old.pth', 'a.npz', 'a.safetensors'])
def test_truncated_files_are_refused(tmp_path, erfnet_weights, name):
    path = tmp_path / name
    if name == 'a.npz':
        np.savez(path, **{k: v.numpy() for k, v in erfnet_weights.items()})
    elif name == 'a.safetensors':
        save_file(erfnet_weights, path)
    else:  # the authors' own files are in PyTorch's old form
        new = name == 'a.pth'
        torch.save(erfnet_weights, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    output = tmp_path / 'c.safetensors'
    import_weights('erfnet', path, output)
    before = output.read_bytes()
    for share in (0.0, 0.001, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=name):
            import_weights('erfnet', path, output)
    assert output.read_bytes() == before


def test_files_that_cannot_be_read_are_named(tmp_path):
    output = tmp_path / 'c.safetensors'
    for name in ('absent.pth', 'absent.ckpt', 'absent.index', 'absent.npz'):
        with pytest.raises(InputError, match='absent'):
            import_weights('erfnet', tmp_path / name, output)
    torch.save({'state_dict': Path('code')}, tmp_path / 'code.pth')
    with pytest.raises(InputError, match=r'code\.pth cannot be read .*save its state dict alone'):
        import_weights('erfnet', tmp_path / 'code.pth', output)
    torch.save({'state_dict': 3}, tmp_path / 'number.pth')
    with pytest.raises(InputError, match='no tensors by name'):
        import_weights('erfnet', tmp_path / 'number.pth', output)
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(InputError, match=r'list\.pth'):
        import_weights('erfnet', tmp_path / 'list.pth', output)
