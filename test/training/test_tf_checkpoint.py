from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('tensorboard')

from tf_checkpoints import write_tf_checkpoint

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.tf_checkpoint import masked_crc32c, read_tf_checkpoint


@pytest.fixture
def variables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    kernels = {
        f'block{i % 4 + 1}/unit_{i}/conv{j}/weights': rng.standard_normal((3, 3, i, j))
        for i in range(1, 13)
        for j in range(1, 4)
    }
    return {name: value.astype(np.float32) for name, value in kernels.items()} | {
        'global_step': np.int64(15000),
        'flags': np.array([True, False, True]),
        'half': rng.standard_normal((2, 5)).astype(np.float16),
        'double': rng.standard_normal(7),
        'counts': np.arange(-3, 3, dtype=np.int32),
        'empty': np.zeros((0, 4), np.float32),
    }


@pytest.mark.parametrize(('shards', 'per_block'), [(1, 50), (3, 7), (1, 1)])
def test_all_variables_are_read(tmp_path, variables, shards, per_block):
    prefix = write_tf_checkpoint(tmp_path / 'model.ckpt-15000', variables, shards, per_block)
    read = read_tf_checkpoint(prefix)
    assert set(read) == set(variables)
    for name, value in variables.items():
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        np.testing.assert_array_equal(read[name], value)


def test_strings_are_left_out(tmp_path, variables):
    text = {'_CHECKPOINTABLE_OBJECT_GRAPH': np.array(b'graph')}
    prefix = write_tf_checkpoint(tmp_path / 'model', variables | text)
    assert set(read_tf_checkpoint(prefix)) == set(variables)


def test_checksum_of_the_standard_vectors():
    # RFC 3720, appendix B.4, masked as LevelDB does it.
    for data, crc in ((b'\0' * 32, 0x8A9136AA), (b'\xff' * 32, 0x62A8AB43), (b'', 0)):
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        assert masked_crc32c(np.frombuffer(data, np.uint8)) == masked


@pytest.mark.parametrize('suffix', ['.index', '.data-00000-of-00001'])
def test_a_missing_file_is_named(tmp_path, variables, suffix):
    prefix = write_tf_checkpoint(tmp_path / 'model', variables)
    (tmp_path / f'model{suffix}').unlink()
    with pytest.raises(InputError, match=f'lacks .*model{suffix}'):
        read_tf_checkpoint(prefix)


@pytest.mark.parametrize('suffix', ['.index', '.data-00000-of-00001'])
@pytest.mark.parametrize('keep', [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path, variables, suffix, keep):
    prefix = write_tf_checkpoint(tmp_path / 'model', variables)
    path = tmp_path / f'model{suffix}'
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(InputError, match=f'model{suffix} is no whole TensorFlow'):
        read_tf_checkpoint(prefix)


@pytest.mark.parametrize('suffix', ['.index', '.data-00000-of-00001'])
def test_a_flipped_bit_is_noticed(tmp_path, variables, suffix):
    prefix = write_tf_checkpoint(tmp_path / 'model', variables, per_block=20)
    path = tmp_path / f'model{suffix}'
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    # Of an index, what lies behind the data blocks has padding and unused parts.
    end = len(whole) - 200 if suffix == '.index' else len(whole)
    for position in rng.integers(0, end, 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=path.name):
            read_tf_checkpoint(prefix)


def test_compressed_and_big_endian_files_are_refused(tmp_path, variables):
    prefix = write_tf_checkpoint(tmp_path / 'snappy', variables, compression=1)
    with pytest.raises(InputError, match='compressed blocks'):
        read_tf_checkpoint(prefix)
    prefix = write_tf_checkpoint(tmp_path / 'big', variables, endianness=1)
    with pytest.raises(InputError, match='big-endian'):
        read_tf_checkpoint(prefix)
