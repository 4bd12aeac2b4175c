"""Depth packed by RVL, as ROS packs it, as its paper says it, and as a bad line leaves it."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rvl_packing import pack_rvl

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.rvl import unpack_rvl

# What the encoder of ROS's compressed_depth_image_transport made of these readings.
READINGS = np.array([0, 0, 1500, 1503, 1490, 0, 65535, 1] + [0] * 12, np.uint16)
PACKED = bytes.fromhex('69e58f23afb92a313cffff3b00000010')


def unpack(data: bytes, pixels: int) -> np.ndarray:
    """Unpack bytes."""
    return unpack_rvl(np.frombuffer(data, np.uint8), pixels)


def test_what_ros_packs():
    assert unpack(PACKED, len(READINGS)).tolist() == READINGS.tolist()
    assert pack_rvl(READINGS) == PACKED  # so that the next test is worth something


@given(arrays(np.uint16, st.integers(1, 300), elements=st.sampled_from([0, 0, 1, 900, 65535])))
def test_what_is_packed_comes_back(image):
    unpacked = unpack(pack_rvl(image), len(image))
    assert unpacked.dtype == np.uint16
    np.testing.assert_array_equal(unpacked, image)


@pytest.mark.parametrize('length', range(0, len(PACKED) - 1, 3))
def test_a_stream_cut_short_is_told(length):
    with pytest.raises(FrameError, match=f'after .* of {len(READINGS)} pixels'):
        unpack(PACKED[:length], len(READINGS))


def test_a_smaller_image_than_was_packed_is_told():
    with pytest.raises(FrameError, match='makes no sense'):
        unpack(PACKED, 4)


@given(st.binary(max_size=200), st.integers(0, 500))
def test_noise_is_read_or_refused(data, pixels):
    with contextlib.suppress(FrameError):
        assert unpack(data, pixels).shape == (pixels,)
