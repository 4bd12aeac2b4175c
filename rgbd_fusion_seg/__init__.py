"""RGB-D semantic segmentation for robots: colour and depth in, labels and confidence out."""

import os

__version__ = '0.1.0'

# ONNX Runtime for Linux since 1.29 reports to its maker which networks are run, by name and hash,
# unless it is told not to before it is loaded.
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
