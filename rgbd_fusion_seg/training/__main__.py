"""python -m rgbd_fusion_seg.training prepare | train | evaluate | export."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from jsonargparse import CLI

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.errors import RgbdFusionSegError
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.training import trainer
from rgbd_fusion_seg.training.checkpoints import load_checkpoint
from rgbd_fusion_seg.training.config import DataConfig, TrainConfig
from rgbd_fusion_seg.training.datasets.nyudv2 import NyuDepthV2
from rgbd_fusion_seg.training.datasets.synthetic_rooms import HELD_OUT_SEED, SyntheticRooms
from rgbd_fusion_seg.training.evaluation import evaluate_segmenter
from rgbd_fusion_seg.training.export import export_bundle, write_card

SUMMARY = (
    'RFBNet on ERFNet encoders, depth at half size, SSMA combination; NYU40 classes, trained '
    'from scratch'
)


def prepare(data: DataConfig) -> None:
    """Prepare the frames that training reads; later runs find them ready."""
    for name, frames in trainer.prepare(data).items():
        print(f'{name}: {len(frames)} frames, depth {frames.depth_range_m} m')


def train(run: TrainConfig) -> None:
    """Train a network; a run that was stopped goes on where it was."""
    print(trainer.train(run))


def export(
    checkpoint: Path, bundle: Path, data: DataConfig, size: tuple[int, int] | None = None
) -> None:
    """Write a bundle from a checkpoint, and score what was written into its card.

    Args:
        checkpoint: a .safetensors file that the train command wrote.
        bundle: folder to write.
        data: where the frames for checks and scores are.
        size: width and height of the network's colour input; default: as it was trained.
    """
    source = load_checkpoint(checkpoint)
    if size is not None:
        source.info['width'], source.info['height'] = size
    frames = trainer.prepare(data)
    card = {
        'summary': SUMMARY,
        'depth': {'range_m': list(frames['train'].depth_range_m)},
        'training': {
            'data': [
                {
                    'name': 'NYU Depth V2, official training split',
                    'frames': len(frames['train']),
                    'terms': 'research use; Silberman et al., ECCV 2012',
                    'depth': 'completed, in steps of 39 mm, smoothed within a step',
                },
                {
                    'name': 'synthetic rooms of this package',
                    'frames': len(frames['synthetic']) if 'synthetic' in frames else 0,
                    'terms': 'Apache-2.0, as the package',
                    'share_of_views': data.synthetic_share,
                },
            ],
            'steps': source.info['step'],
            'minutes': source.info['minutes'],
        },
    }
    nyu = NyuDepthV2(Path(data.nyudv2), 'test')
    export_bundle(source, bundle, card, nyu)
    evaluate(bundle, data, write=True)


def evaluate(bundle: Path, data: DataConfig, write: bool = False) -> None:
    """Score a bundle on the NYUDv2 test split and on held-out synthetic rooms.

    Args:
        bundle: folder or name of the bundle.
        data: where the frames are.
        write: also write the scores into the bundle's card.
    """
    loaded = load_bundle(bundle)
    sources = {
        'nyudv2_test': NyuDepthV2(Path(data.nyudv2), 'test'),
        'synthetic_test': SyntheticRooms(data.synthetic_test_frames, HELD_OUT_SEED),
    }
    metrics = dict(loaded.metrics)
    with Segmenter(loaded) as segmenter:
        for name, source in sources.items():
            metrics[name] = {
                'frames': len(source),
                'measured_with': 'the runtime pipeline (ONNX Runtime CPU, float32), network input '
                f'{loaded.rgb.width}x{loaded.rgb.height}, labels compared at 640x480, single '
                'scale, one confusion matrix over the set, absent classes skipped',
                **evaluate_segmenter(segmenter, source),
            }
            print(yaml.safe_dump({name: metrics[name]}, sort_keys=False))
    if write:
        write_card(loaded.path, {**loaded.card, 'metrics': metrics})


def main() -> int:
    """Run the command line; errors of the user's making are one sentence."""
    try:
        CLI([prepare, train, evaluate, export], as_positional=False)
    except RgbdFusionSegError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
