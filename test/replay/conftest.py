from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

HEIGHT, WIDTH = 24, 32
MATRIX = '30 0 15.5\n0 30 11.5\n0 0 1\n'


def frame_pixels(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return RGB uint8 and depth uint16 mm that differ from frame to frame, with holes."""
    rng = np.random.default_rng(index)
    rgb = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    depth = rng.integers(400, 9000, (HEIGHT, WIDTH), np.uint16)
    depth[rng.random(depth.shape) < 0.2] = 0
    return rgb, depth


def write_frame(folder: Path, color: str, depth: str, index: int) -> None:
    rgb, millimetres = frame_pixels(index)
    for name, image in ((color, rgb[..., ::-1]), (depth, millimetres)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), image)


@pytest.fixture
def kinect_folder(tmp_path: Path) -> Path:
    """Twelve frames as NAME.color.png beside NAME.depth.png, with a 3x3 matrix."""
    folder = tmp_path / 'kinect'
    for index in range(12):
        name = f'frame-{index}'
        write_frame(folder, f'{name}.color.png', f'{name}.depth.png', index)
    (folder / 'camera-intrinsics.txt').write_text(MATRIX)
    return folder
