"""Offline training: datasets, networks, trainer, evaluation, export of bundles (needs torch)."""
