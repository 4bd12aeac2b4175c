"""The exceptions of this package.

Every message is one sentence (or two) that says what was wrong, where, and what to do about it.
"""


class RgbdFusionSegError(Exception):
    """Base of every error this package raises on purpose; its text is meant for the user."""


class FrameError(RgbdFusionSegError):
    """An RGB-D frame, an image message or camera intrinsics that cannot be used."""


class BundleError(RgbdFusionSegError):
    """A model bundle that is missing, damaged or contradicts itself."""


class EngineError(RgbdFusionSegError):
    """An inference engine that cannot be opened or that failed while running."""


class UnbuiltEngineError(EngineError):
    """No engine file that can run here, where a build would make one."""


class InputError(RgbdFusionSegError):
    """A file, folder, bag or option given by the user that cannot be used."""


class TrainingError(RgbdFusionSegError):
    """A training run that cannot go on; what it saved before is still there."""


class DivergenceError(TrainingError):
    """A training run whose loss or weights are not finite any more."""
