"""Comparing the engines that can run here: ``rgbd-fusion-seg benchmark``.

``compare`` measures, ``report`` words the outcome. ``footprint`` and ``busy`` are programs of
their own, for what a fresh process alone can tell and for load beside the measurement.
"""
