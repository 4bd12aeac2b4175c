from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip('torch')

from jsonargparse import CLI, capture_parser  # noqa: E402

from rgbd_fusion_seg.bundle import load_bundle  # noqa: E402
from rgbd_fusion_seg.training.__main__ import Parser, functions, main  # noqa: E402
from rgbd_fusion_seg.training.config import DatasetConfig, GroupConfig, OptimiserConfig  # noqa: E402
from rgbd_fusion_seg.training.datasets import DATASETS, cache  # noqa: E402
from rgbd_fusion_seg.training.networks import NETWORKS, build_network  # noqa: E402
from rgbd_fusion_seg.training.networks.refinenet import ResidualUnit  # noqa: E402
from rgbd_fusion_seg.training.optimiser import (  # noqa: E402
    build_optimiser,
    parameter_groups,
    set_learning_rates,
)
from rgbd_fusion_seg.training.translation.config import GeneratorConfig  # noqa: E402
from rgbd_fusion_seg.training.translation.domains import DOMAINS  # noqa: E402
from rgbd_fusion_seg.training.translation.generator import Translator  # noqa: E402
from rgbd_fusion_seg.training.translation.sources import TASKONOMY  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TRANSLATION_CONFIGS = sorted((ROOT / 'config' / 'training').glob('*transl*.yaml'))
CONFIGS = sorted({*(ROOT / 'config' / 'training').glob('*.yaml')} - {*TRANSLATION_CONFIGS})
STUDY = ROOT / 'config' / 'training' / 'study_cen_nyudv2.yaml'
CONFIG = ROOT / 'config' / 'training' / 'rfbnet_erfnet_nyu40_320x240.yaml'


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def training(monkeypatch, tmp_path, capfd):
    """Run a command in this process, which spares loading torch; the folder is the test's own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr('sys.argv', ['training', *map(str, arguments)])
        capfd.readouterr()
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        return Done(code, *capfd.readouterr())

    return run


def test_a_first_training_goes_as_the_guide_says(training, nyu_pack, tmp_path):
    data = ['--data.dataset.folder', nyu_pack, '--data.cache', tmp_path / 'cache']
    data += ['--data.synthetic_test_frames', 0, '--data.synthetic_frames', 0]
    checked = training('prepare', '--check', 'true', *data)
    assert checked.returncode == 0, checked.stderr
    run = [str(x).replace('--data', '--run.data') for x in data]
    # After fewer epochs classes are so near each other that weights in 16 bits change labels.
    run += ['--run.epochs', 6, '--run.batch_size', 2, '--run.data.width', 64]
    run += ['--run.data.height', 48, '--run.output', 'mine', '--run.precision', '32-true']
    # The smallest network; larger ones take nothing but longer.
    run += ['--run.network', '{name: erfnet_encoder, options: {}}']
    trained = training('train', '--config', CONFIG, *run)
    assert trained.returncode == 0, trained.stderr
    scored = training('evaluate', '--model', 'mine', '--output', 'scored', *data)
    assert scored.returncode == 0, scored.stderr
    assert 'mean IoU' in scored.stdout
    assert 'mine/last.safetensors on ' in scored.stdout
    inspected = training('inspect', '--model', 'mine', '--output', 'inspected', *data)
    assert inspected.returncode == 0, inspected.stderr
    assert (tmp_path / 'inspected' / 'gammas.png').is_file()
    bundle = tmp_path / 'bundle'
    arguments = ['--checkpoint', 'mine', '--bundle', bundle, '--size', '64x48']
    exported = training('export', *arguments, *data)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith('exporting mine/last.safetensors\n')
    assert load_bundle(bundle).input_size == (64, 48)
    card = (bundle / 'model.yaml').read_text()
    assert 'python -m rgbd_fusion_seg.training train --config' in ' '.join(card.split())


def settings_of(training, config: Path) -> dict:
    """Return what a command makes of a shipped file, as it prints it: run, and networks."""
    command = 'study' if config.stem.startswith('study') else 'train'
    shown = training(command, '--config', config, '--print_config')
    assert not shown.returncode, shown.stderr
    settings = yaml.safe_load(shown.stdout)
    if command == 'train':
        return {**settings['run'], 'networks': [settings['run']['network']]}
    study = settings['study']
    return {**study['run'], 'networks': [row['network'] for row in study['rows']]}


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_understood(training, config):
    run = settings_of(training, config)
    comment = config.read_text().partition('\n\n')[0]
    assert f'--config config/training/{config.name}' in comment
    sides = run['data']['width'], run['data']['height']
    groups = [GroupConfig(**group) for group in run['optimiser'].pop('groups')]
    optimiser = OptimiserConfig(**run['optimiser'], groups=groups)
    for entry in run['networks']:
        with torch.device('meta'):
            network = build_network(entry['name'], 40, **entry['options'])
        assert not any(side % network.size_multiple for side in sides)
        assert len(parameter_groups(network, optimiser)) >= 1 + len(groups)


@pytest.mark.parametrize('config', TRANSLATION_CONFIGS, ids=lambda path: path.stem)
def test_shipped_translations_are_understood(training, config):
    comment = config.read_text().partition('\nrun:')[0].partition('\nstudy:')[0]
    assert f'--config config/training/{config.name}' in comment
    command = 'study-translation' if config.stem.startswith('study') else 'train-translation'
    shown = training(command, '--config', config, '--print_config')
    assert not shown.returncode, shown.stderr
    settings = yaml.safe_load(shown.stdout)
    run = settings.get('study', settings)['run']
    rows = settings['study']['rows'] if 'study' in settings else [{**run, 'generator': {}}]
    for row in rows:
        with torch.device('meta'):
            network = Translator(
                row['inputs'],
                row['targets'],
                GeneratorConfig(**{**run['generator'], **row['generator']}),
            )
        assert {name for stream in network.streams for name in stream} <= {*DOMAINS}
        assert not set(row.get('paper', {})) - {*row['targets']}


@pytest.mark.parametrize('name', ['cen', 'asymfusion'])
def test_the_papers_recipe_has_the_rates_of_the_public_code(training, name):
    """Learning rates by the public code's table; weight decay 1e-5 on everything."""
    config = ROOT / 'config' / 'training' / f'{name}_refinenet101_nyu40.yaml'
    run = settings_of(training, config)
    assert (run['network']['name'], run['batch_size'], run['epochs']) == (name, 6, 300)
    with torch.device('meta'):
        network = build_network(name, 40, **run['network']['options'])
    groups = [GroupConfig(**group) for group in run['optimiser'].pop('groups')]
    config = OptimiserConfig(**run['optimiser'], groups=groups)
    optimiser = build_optimiser(network, config)
    for epoch, encoder, rest in ((0, 5e-4, 3e-3), (99.9, 5e-4, 3e-3), (100, 2.5e-4, 1.5e-3),
                                 (199.9, 2.5e-4, 1.5e-3), (200, 1e-4, 7e-4)):  # fmt: skip
        set_learning_rates(optimiser, epoch / 300, config)
        of = {id(p): group for group in optimiser.param_groups for p in group['params']}
        for key, parameter in network.named_parameters():
            group = of[id(parameter)]
            expected = encoder if key.startswith('encoder.') else rest
            assert group['lr'] == pytest.approx(expected), (key, epoch)
            assert (group['weight_decay'], group['momentum']) == (1e-5, 0.9)


def test_the_recipe_of_cens_text_has_its_rates_and_its_loss(training):
    """NeurIPS §4.1: 5e-4 and 3e-3, "reduced to their halves every 100 epochs"; Eq. 4."""
    config = ROOT / 'config' / 'training' / 'cen_refinenet101_nyu40_paper.yaml'
    run = settings_of(training, config)
    options = run['network']['options']
    with torch.device('meta'):
        network = build_network('cen', 40, **options)
    assert sum(p.numel() for p in network.parameters()) == 118_201_578
    units = [module for module in network.modules() if isinstance(module, ResidualUnit)]
    assert units
    assert all(unit.plain_shortcut for unit in units)
    assert (network.sparsity, network.threshold, run['batch_size']) == (5e-3, 2e-2, 6)
    assert (run['loss']['auxiliary'], options['detach_branches']) == (0, False)
    groups = [GroupConfig(**group) for group in run['optimiser'].pop('groups')]
    config = OptimiserConfig(**run['optimiser'], groups=groups)
    optimiser = build_optimiser(network, config)
    for epoch, factor in ((99.9, 1), (100, 0.5), (199.9, 0.5), (200, 0.25), (299, 0.25)):
        set_learning_rates(optimiser, epoch / run['epochs'], config)
        rates = {group['lr'] for group in optimiser.param_groups}
        assert sorted(rates) == pytest.approx([5e-4 * factor, 3e-3 * factor]), epoch


def test_numbers_in_the_papers_notation_are_numbers(training, tmp_path):
    """PyYAML alone reads 2e-4 as text."""
    path = tmp_path / 'run.yaml'
    path.write_text('run:\n  network:\n    name: cen\n    options: {sparsity: 2e-4}\n')
    (network,) = settings_of(training, path)['networks']
    assert network['options'] == {'sparsity': 0.0002}


@pytest.mark.parametrize('form', ['', '_paper'])
@pytest.mark.parametrize('row', ['ResNet-152', 'PSPNet', 'SUN RGB-D'])
def test_settings_told_for_other_figures_of_cen_make_their_networks(training, row, form):
    """Parameters by the papers and the public code; stages of 150 and 20 epochs, NeurIPS §4.1."""
    table = (ROOT / 'docs' / 'networks.md').read_text().partition('| figures for |')[2]
    told = next(line for line in table.splitlines() if line.startswith(f'| {row}'))
    changes = told.split('`')[1].split()
    config = ROOT / 'config' / 'training' / f'cen_refinenet101_nyu40{form}.yaml'
    shown = training('train', '--config', config, *changes, '--print_config')
    run = yaml.safe_load(shown.stdout)['run']
    network, epochs = run['network'], run['epochs']
    stage = {'ResNet-152': 150, 'PSPNet': 150, 'SUN RGB-D': 20}[row]
    drops = [epochs * x for x in run['optimiser']['milestones']]
    assert [*drops, epochs] == pytest.approx([stage, 2 * stage, 3 * stage], abs=1e-3)
    with torch.device('meta'):
        built = build_network(network['name'], 40, **network['options'])
    if row == 'ResNet-152':
        assert sum(p.numel() for p in built.parameters()) == 133_891_306
    assert type(built.head).__name__ == ('PspNet' if row == 'PSPNet' else 'RefineNet')


@pytest.mark.parametrize(
    ('name', 'frames', 'batch', 'iterations'),
    [
        ('erfnetenc_scannet', 19_466, 12, 100_000),
        ('rfbnet_erfnet_scannet', 19_466, 9, 25_000),
        ('erfnetenc_cityscapes', 2975, 12, 100_000),
        ('rfbnet_erfnet_cityscapes', 2975, 9, 25_000),
        ('adapnetpp_scannet', 19_466, 7, 100_000),
        ('rfbnet_adapnetpp_scannet', 19_466, 6, 25_000),
    ],
)
def test_recipes_of_the_rfbnet_paper_have_its_settings(training, name, frames, batch, iterations):
    """§IV-A and -B; on AdapNet++ rate and iterations are open."""
    run = settings_of(training, ROOT / 'config' / 'training' / f'{name}.yaml')
    assert run['batch_size'] == batch
    steps = run['epochs'] * (frames // run['batch_size'])
    assert abs(steps - iterations) <= max(frames / run['batch_size'] / 2, 0.002 * iterations)
    optimiser, loss = run['optimiser'], run['loss']
    rates = (1e-3, 5e-4) if 'adapnetpp' in name else (5e-4, 1e-4)
    assert (optimiser['name'], optimiser['lr'], optimiser['weight_decay']) == ('adam', *rates)
    added = ('warmup', 'clip_norm', 'ema', 'groups')  # what the paper does not have
    assert not any(optimiser[key] for key in added)
    auxiliary = 1 if 'adapnetpp' in name else 0  # AdapNet++'s own
    assert (loss['class_weight'], loss['auxiliary']) == (0, auxiliary)
    assert optimiser['schedule'] == 'poly'
    assert (run['augment']['aspect'], run['augment']['hha_shift']) == (1, 0)  # not listed there


def test_ctrl_c_is_no_traceback(training, nyu_pack, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, 'read_frame', interrupted)
    ended = training('prepare', '--data.dataset.folder', nyu_pack, '--data.cache', tmp_path / 'c')
    assert ended.returncode == 130
    assert 'Traceback' not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith('stopped')
    assert not list((tmp_path / 'c').glob('nyudv2*'))


def test_unknown_keys_are_refused(training, tmp_path):
    wrong = training('train', '--config', CONFIG, '--run.batchsize', 4)
    assert wrong.returncode == 2
    assert 'batchsize' in wrong.stderr
    file = tmp_path / 'wrong.yaml'
    file.write_text('run:\n  optimiser:\n    learning_rate: 0.1\n')
    wrong = training('train', '--config', file)
    assert wrong.returncode == 2
    assert 'learning_rate' in wrong.stderr


@pytest.mark.parametrize(
    ('command', 'words'),
    [
        (['evaluate'], 'the following arguments are required: --model (see '),
        (['export'], 'the following arguments are required: --checkpoint, --bundle (see '),
        (['study', '--config', CONFIG], '; it is of a file for train or train-translation (see '),
        (['train', '--config', STUDY], '; it is of a file for study or study-translation (see '),
        (['train', '--run.epoqs', '1'], 'epoqs'),
    ],
)
def test_wrong_usage_names_options_and_commands(training, command, words):
    wrong = training(*command)
    assert wrong.returncode == 2
    (line,) = wrong.stderr.splitlines()
    assert words in line
    assert ('file for' in line) == ('file for' in words)


@pytest.mark.parametrize(
    'row', ['{nam: a}', '{name: a, network: {optons: {modality: hha}}}', '{name: a, epochs: x}']
)
def test_a_typo_in_a_study_names_the_command(training, tmp_path, row):
    file = tmp_path / 'study.yaml'
    file.write_text(f'study:\n  rows:\n    - {row}\n')
    wrong = training('study', '--config', file)
    assert wrong.returncode == 2
    assert wrong.stderr.endswith('(see python -m rgbd_fusion_seg.training study --help)\n')
    assert len(wrong.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ('size', 'form'), [('640x480', True), ('[640, 480]', True), ('640', False)]
)
@pytest.mark.parametrize('option', ['size', 'fuse_postprocess'])
def test_sizes_are_given_as_the_runtimes_command_line_takes_them(training, option, size, form):
    command = 'export', '--checkpoint', 'absent', '--bundle', 'bundle', f'--{option}', size
    told = training(*command)
    assert told.returncode == 1
    wrong = f'error: {option} {size!r} is no size; give width and height as 640x480\n'
    assert (told.stderr == wrong) != form
    assert ('there is no checkpoint absent' in told.stderr) == form  # which is looked at next


def test_data_are_looked_for_where_the_environment_says(training, nyu_pack, tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'nyudv2').symlink_to(nyu_pack)
    monkeypatch.setenv('RGBD_FUSION_SEG_DATA', str(tmp_path / 'data'))
    checked = training('prepare', '--check', 'true')
    assert checked.returncode == 0, checked.stderr
    assert 'nyudv2-train:' in checked.stdout
    monkeypatch.delenv('RGBD_FUSION_SEG_DATA')
    assert DatasetConfig().folder == '../shared/data/nyudv2'


@pytest.mark.parametrize('missing', ['onnxscript', 'rgbd_fusion_seg.training.export'])
def test_a_library_that_is_not_installed_is_one_sentence(training, monkeypatch, missing):
    def import_module(name):
        raise ModuleNotFoundError(f'No module named {missing!r}', name=missing)

    monkeypatch.setattr('rgbd_fusion_seg.training.__main__.import_module', import_module)
    if missing.startswith('rgbd_fusion_seg'):  # a fault of ours, not of the installation
        with pytest.raises(ModuleNotFoundError):
            training('export')
        return
    ended = training('export')
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        'error: export needs a library that is not installed (No module'
    )
    assert ended.stderr.endswith("pip install '.[train]'\n")


def test_data_that_is_not_there_is_one_sentence(tmp_path):
    """As a user runs it, and without what only other commands need."""
    nowhere = tmp_path / 'nowhere'
    script = (
        'import runpy, sys\n'
        f"sys.argv = ['-m', 'prepare', '--data.dataset.folder', {str(nowhere)!r}]\n"
        'try:\n'
        "    runpy.run_module('rgbd_fusion_seg.training', run_name='__main__', alter_sys=True)\n"
        'finally:\n'
        "    print(sorted({'onnx', 'lightning_fabric', 'matplotlib'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert 'nowhere' in last
    assert 'Traceback' not in result.stderr
    assert result.stdout.strip().splitlines()[-1] == '[]'


@pytest.fixture
def options(monkeypatch):
    """Option of a command -> what its help says, of all commands."""
    monkeypatch.setattr('sys.argv', ['training'])
    commands = functions()
    parser = capture_parser(lambda: CLI(commands, as_positional=False, parser_class=Parser))
    (chosen,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert chosen.choices.keys() == commands.keys()
    return {
        f'{name} --{action.dest}': action.help or ''
        for name, command in chosen.choices.items()
        for action in command._actions
        if action.option_strings
    }


def test_every_option_of_every_command_is_explained(options):
    assert len(options) > 300
    assert [option for option, text in options.items() if len(text) < 5] == []
    # Names of Python objects tell a user of the command line nothing.
    modules = re.compile(r'`\w+\.\w+|`[A-Z]{2}')
    assert [option for option, text in options.items() if modules.search(text)] == []


def test_help_names_all_networks_and_data_sets(options):
    for option, known in (
        ('train --run.network.name', NETWORKS),
        ('prepare --data.dataset.name', {*DATASETS, TASKONOMY}),
    ):
        assert {*re.findall(r'\w+', options[option])} >= {*known}


def test_help_tells_what_options_mean(training):
    """What jsonargparse reads from docstrings, where the library for it is installed."""
    shown = training('train', '--help').stdout
    assert 'peak learning rate' in shown
    shown = training('--help').stdout
    assert 'Score a checkpoint or a bundle' in shown
    assert '<function' not in shown
