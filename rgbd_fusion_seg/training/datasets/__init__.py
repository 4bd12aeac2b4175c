"""Labelled RGB-D data: where it comes from, how it is read, and the cache training reads."""
