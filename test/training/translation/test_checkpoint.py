from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import save_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.translation.checkpoint import (  # noqa: E402
    described,
    load_translator,
    make_translator,
)
from rgbd_fusion_seg.training.translation.config import (  # noqa: E402
    GeneratorConfig,
    ImagesConfig,
    TranslationConfig,
)


def saved(path: Path, change) -> TranslationConfig:
    """Write a translator of which ``change`` has altered what the file tells."""
    config = TranslationConfig(
        generator=GeneratorConfig(width=8, depth=5), images=ImagesConfig(side=32, load_side=32)
    )
    about = described(config)
    change(about)
    save_checkpoint(path, make_translator(config), {'translator': about, 'step': 0})
    return config


def test_a_translator_is_built_as_it_was_saved(tmp_path):
    path = tmp_path / 'last.safetensors'
    config = saved(path, lambda about: about['generator'].update(threshold=0.3))
    translator, info = load_translator(tmp_path)
    assert not translator.training
    assert translator.config == GeneratorConfig(width=8, depth=5, threshold=0.3)
    assert info['translator']['targets'] == config.targets


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda a: a['generator'].update(newer=1), "unexpected keyword argument 'newer'"),
        (lambda a: a['generator'].update(fusion='newer'), 'fusion one of'),
        (lambda a: a['generator'].pop('width'), 'size mismatch'),
        (lambda a: a['generator'].update(exchange_decoders=True), 'no input has two targets'),
        (lambda a: a.pop('generator'), 'does not tell its generator'),
        (lambda a: (a.pop('side'), a.pop('inputs')), 'does not tell its inputs, side'),
    ],
)
def test_a_translator_of_another_version_is_told(tmp_path, change, match):
    path = tmp_path / 'last.safetensors'
    saved(path, change)
    words = rf'the translator of {path} .*{match}.*it is of another version, train it anew$'
    with pytest.raises(InputError, match=words):
        load_translator(tmp_path)


def test_weights_to_start_from_must_tell_their_inputs_too(tmp_path):
    path = tmp_path / 'last.safetensors'
    config = saved(path, lambda about: about.pop('inputs'))
    config.init_from = str(path)
    with pytest.raises(InputError, match='does not tell its inputs; it is of another version'):
        make_translator(config)
