"""RGB-D semantic segmentation for robots: colour and depth in, labels and confidence out."""

__version__ = '0.1.0'
