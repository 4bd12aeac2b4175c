"""One tree for colcon (ament_python) and pip; all metadata is here, see docs/architecture.md."""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = 'rgbd_fusion_seg'
SHARE = f'share/{NAME}'

# Wheels of these are for x86-64 only; TensorRT and RTX come without their meta packages.
ON_X86 = '; sys_platform == "linux" and platform_machine == "x86_64"'
RTX = ['tensorrt-rtx-cu13-libs>=1.7', 'tensorrt-rtx-cu13-bindings>=1.7', 'cuda-bindings>=13']
LEAN = ['tensorrt-lean-cu13-libs>=11', 'tensorrt-lean-cu13-bindings>=11']
OPENVINO = ['openvino>=2025']
BUILDING = ['onnx>=1.18', 'onnx-ir>=0.1.14', 'onnxscript>=0.7']

EXTRAS = {
    'ros-wheels': [
        'ros-rclpy[fastrtps]',
        'ros-sensor-msgs',
        'ros-stereo-msgs',
        'ros-diagnostic-msgs',
    ],
    'tensorrt': ['tensorrt>=10.3', 'cuda-bindings>=12.9.1', *BUILDING],
    'tensorrt-rtx': [*RTX, *BUILDING],
    'openvino': OPENVINO,
    'train': [
        'torch>=2.6',
        'lightning-fabric>=2.5',
        'torchmetrics>=1.7',
        'tensorboard>=2.18',
        'matplotlib>=3.9',
        'scipy>=1.13',
        'h5py>=3.11',
        'jsonargparse>=4.40',
        'docstring-parser>=0.16',  # without it --help does not tell what options mean
        'safetensors>=0.5',
        *BUILDING,
    ],
    'test': [
        'pytest>=8',
        'hypothesis>=6',
        'kornia>=0.8',
        *BUILDING,
        *(name + ON_X86 for name in (*RTX, *LEAN, *OPENVINO)),
    ],
    'dev': ['ruff>=0.12', 'import-linter>=2.5'],
}


def data_files() -> list[tuple[str, list[str]]]:
    """Return what ROS and `ros2 run` expect under the installation prefix."""
    files = [
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (SHARE, ['package.xml']),
        (f'{SHARE}/launch', glob('launch/*.launch.py')),
        (f'lib/{NAME}', glob('scripts/*')),
    ]
    for folder in ('config', 'models'):
        paths = [p for p in Path(folder).rglob('*') if p.is_file()]
        for parent in sorted({p.parent for p in paths}):
            files.append((f'{SHARE}/{parent}', [str(p) for p in paths if p.parent == parent]))
    return files


setup(
    name=NAME,
    version='0.1.0',
    description='Real-time RGB-D semantic segmentation for ROS 2 with fusion networks',
    # Beside the real file: colcon --symlink-install runs a link to it elsewhere.
    long_description=(Path(__file__).resolve().parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    data_files=data_files(),
    python_requires='>=3.10',
    install_requires=[
        'setuptools',
        'numpy>=1.26',
        'opencv-python-headless>=4.8,<5',
        'numba>=0.60',
        'onnxruntime>=1.18',
        'pyyaml>=6',
        'rosbags>=0.10',
        'tqdm>=4.66',
    ],
    extras_require=EXTRAS,
    zip_safe=False,
    maintainer='rgbd_fusion_seg maintainers',
    maintainer_email='maintainers@users.noreply.github.com',
    entry_points={
        'console_scripts': [
            f'rgbd-fusion-seg = {NAME}.cli:main',
            f'segmentation_node = {NAME}.ros.commands:segmentation_node',
            f'synthetic_camera = {NAME}.ros.commands:synthetic_camera',
        ],
    },
)
