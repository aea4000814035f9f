"""cctlib: measure what single nodes of a Compact Convolutional Transformer know about every label."""

from cctlib.study import Study, open_study

__all__ = ["Study", "open_study"]
