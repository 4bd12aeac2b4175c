"""What a training run of a translator is made of, see `rgbd_fusion_seg.training.config`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rgbd_fusion_seg.training.config import DatasetConfig, RunConfig
from rgbd_fusion_seg.training.rules import require

FLOWS = ('all', 'one')
FUSIONS = (
    'exchange', 'shuffle', 'shift', 'both', 'concat', 'average', 'attention', 'mmf', 'align',
    'none',
)  # fmt: skip
OWNERS = ('shared', 'per_target', 'per_stream')
FORMS = ('public', 'paper')
LAYERS = ('early', 'middle', 'late', 'all', 'asymfusion')
SMALLEST_SIDE = 32
"""Of images; smaller ones have no patch to judge."""


@dataclass
class GeneratorConfig:
    """The generator: a U-Net for every stream, whose layers are shared or not.

    Args:
        width: channels of the first layer; the papers' is 64.
        depth: layers of the encoder, and of the decoder; images of 2**depth pixels end in one.
        encoders: their convolutions: 'shared' by all streams, 'per_target' or 'per_stream'.
        decoders: their convolutions: 'shared' by all streams, 'per_target' or 'per_stream'.
        encoder_groups: with encoders 'shared', the targets whose streams share one, such as
            [[labels, depth], [normal]] (task grouping, TPAMI Table 8); none: all do.
        encoder_norms: 'per_stream', or 'shared' by the streams of an encoder, which are scales and
            offsets alone: means and variances are each image's own (TPAMI Table 10, third of
            its settings; not the "shared INs" of Table 11).
        decoder_norms: 'per_stream', as in the public code, or 'shared' by the streams of a
            decoder, as all three texts say (CEN §4.2, TPAMI §4, AsymFusion §4.2), so in their
            tables, too. The 54.5 M of TPAMI's Table 6 fit both with the code's unused norms (54.48
            and 54.45).
        fusion: between the encoders of the streams of a target: 'exchange' (CEN); 'shuffle',
            'shift' or 'both' (AsymFusion); 'concat', 'average', 'attention', 'align', which CEN is
            compared with, and 'mmf' (RDFNet's), which AsymFusion is; or 'none'.
        fused_layers: of those that CEN or AsymFusion is compared with, behind which layers:
            'early' (the 1st), 'middle' (4th), 'late' (the last) or 'all' (CEN Table 4), or
            'asymfusion', those of AsymFusion itself, as in its Table 3.
        exchange_decoders: exchange channels between the decoders of the streams of an input.
        threshold: θ of exchanges.
        penalised: scales under the l1 penalty, each stream's 'own' part or 'all' (TPAMI Fig. 10),
            which the paper's form then looks at, too.
        sparsity: λ of it; 0: none.
        form: of exchanges, as in the 'public' code or the 'paper', see docs/networks.md.
        initial_scales: of norms behind which channels are exchanged: 'one', or 'uniform' draws
            from 0 to 1.
        split: of AsymFusion, as in the 'public' code or the 'paper', see docs/networks.md.
        align_weight: of the alignment in the loss. Open.
        detach_ensemble: the loss of an ensemble trains its weights alone, as in the public code;
            False: the streams too, as in the texts (CEN Eq. 4, TPAMI Eq. 5 and 6).
        dropout: of the first three layers of the decoder.
    """

    width: int = 64
    depth: int = 8
    encoders: str = 'shared'
    decoders: str = 'shared'
    encoder_groups: list[list[str]] = field(default_factory=list)
    encoder_norms: str = 'per_stream'
    decoder_norms: str = 'per_stream'
    fusion: str = 'exchange'
    fused_layers: str = 'all'
    exchange_decoders: bool = False
    threshold: float = 1e-2
    penalised: str = 'own'
    sparsity: float = 1e-3
    form: str = 'public'
    initial_scales: str = 'one'
    split: str = 'public'
    align_weight: float = 0.1
    detach_ensemble: bool = True
    dropout: float = 0.5

    def __post_init__(self) -> None:
        rules = {
            'width >= 8': self.width >= 8,
            'depth 4 to 10': 4 <= self.depth <= 10,
            'threshold >= 0': self.threshold >= 0,
            'sparsity >= 0': self.sparsity >= 0,
            'align_weight >= 0': self.align_weight >= 0,
            '0 <= dropout < 1': 0 <= self.dropout < 1,
        }
        for name, known in (
            ('encoders', OWNERS),
            ('decoders', OWNERS),
            ('encoder_norms', ('per_stream', 'shared')),
            ('decoder_norms', ('per_stream', 'shared')),
            ('fusion', FUSIONS),
            ('fused_layers', LAYERS),
            ('penalised', ('own', 'all')),
            ('form', FORMS),
            ('initial_scales', ('one', 'uniform')),
            ('split', FORMS),
        ):
            rules[f'{name} one of {", ".join(known)}'] = getattr(self, name) in known
        rules['encoder_norms per_stream for fusion exchange'] = (
            self.fusion != 'exchange' or self.encoder_norms == 'per_stream'
        )
        rules['encoder_groups for encoders shared alone'] = (
            not self.encoder_groups or self.encoders == 'shared'
        )
        # A channel of the SSMA block's bottleneck for 16 of a stream's.
        rules['width >= 16 for fusion attention'] = self.fusion != 'attention' or self.width >= 16
        rules['exchange_decoders with decoder_norms per_stream'] = (
            not self.exchange_decoders or self.decoder_norms == 'per_stream'
        )
        require(self, rules)


@dataclass
class ImagesConfig:
    """Where images come from.

    Args:
        dataset: 'taskonomy', or any labelled RGB-D data set, of which domains are then derived.
        cache: folder for prepared images.
        side: of the square images that the generator sees.
        load_side: of those that training views are cut out of.
        flip: mirror half of the training views.
        workers: loader processes.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    cache: str = 'cache'
    side: int = 256
    load_side: int = 286
    flip: bool = True
    workers: int = 1

    def __post_init__(self) -> None:
        rules = {
            'load_side >= side >= 1': self.load_side >= self.side >= 1,
            'workers >= 0': self.workers >= 0,
        }
        require(self, rules)


@dataclass
class TranslationConfig(RunConfig):
    """One training run of a translator, by default as CEN's public code trains its own.

    Rate, batch and epochs are that code's: no text tells them for translations.

    Args:
        epochs: passes over the training images.
        inputs: image domains, see docs/translation.md; several are fused for each target.
        targets: image domains; one may be an input, too (`streams`).
        flows: what a step trains: 'all' targets, or 'one', drawn anew each time, by its streams
            alone (CEN-random, TPAMI Table 6).
        init_from: checkpoint of a translator with the same streams and generator whose weights the
            run starts from: a .safetensors file, or a run's folder.
        lr: learning rate of Adam.
        beta1: of Adam, decay of its mean of gradients.
        beta2: of Adam, decay of its mean of squared gradients.
        decay_from: share of the run from which the rate falls to 0 along a line; 1, as in the
            public code, keeps it.
        reconstruction: weight of the L1 distance to the target.
        stream_factor: of that weight for each stream of an ensemble; 1 in the public code, and 0
            in the texts, whose loss is the ensemble's.
        consistency_from: translators from one target to another, .safetensors files or runs'
            folders, which stay as they are: what is predicted of the one is to make the other
            (X-TC under the triangle loss, TPAMI Table 7; one each way).
        consistency: weight of the L1 distance of what they make to its target. Open.
        adversarial: weight of what the discriminators say; 0 trains without them.
        discriminator_width: channels of their first layer.
    """

    output: str = 'runs/translation'
    batch_size: int = 1
    epochs: int = 300
    inputs: list[str] = field(default_factory=lambda: ['shade', 'texture'])
    targets: list[str] = field(default_factory=lambda: ['rgb'])
    flows: str = 'all'
    init_from: str = ''
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    decay_from: float = 1.0
    reconstruction: float = 100.0
    stream_factor: float = 1.0
    consistency_from: list[str] = field(default_factory=list)
    consistency: float = 100.0
    adversarial: float = 1.0
    discriminator_width: int = 64
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)

    def rules(self) -> dict[str, bool]:
        """Return what must hold, by its words for an error."""
        rules = {
            **super().rules(),
            'lr > 0': self.lr > 0,
            '0 <= beta1 < 1': 0 <= self.beta1 < 1,
            '0 <= beta2 < 1': 0 <= self.beta2 < 1,
            '0 <= decay_from <= 1': 0 <= self.decay_from <= 1,
            'reconstruction >= 0': self.reconstruction >= 0,
            'stream_factor >= 0': self.stream_factor >= 0,
            'consistency >= 0': self.consistency >= 0,
            'adversarial >= 0': self.adversarial >= 0,
            'discriminator_width >= 1': self.discriminator_width >= 1,
        }
        rules[f'flows one of {", ".join(FLOWS)}'] = self.flows in FLOWS
        rules['flows all for generator.exchange_decoders'] = (
            self.flows == 'all' or not self.generator.exchange_decoders
        )
        rules['flows all for consistency_from'] = self.flows == 'all' or not self.consistency_from
        rules['stream_factor > 0, or generator.detach_ensemble false'] = (
            self.stream_factor != 0 or not self.generator.detach_ensemble
        )
        multiple = 2**self.generator.depth
        rules[f'images.side {SMALLEST_SIDE} or more for discriminators'] = (
            not self.adversarial or self.images.side >= SMALLEST_SIDE
        )
        rules[f'images.side a multiple of {multiple} for generator.depth'] = (
            self.images.side % multiple == 0
        )
        return rules
