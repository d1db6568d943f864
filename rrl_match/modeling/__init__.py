"""RRL-Net, one part of the paper per file; no I/O, no device choice.

Yu et al., "Relational Representation Learning Network for Cross-Spectral Image Patch Matching",
Information Fusion; arXiv 2403.11751.
"""

from rrl_match.modeling.network import Band, RRLNet, RRLNetConfig

__all__ = ["Band", "RRLNet", "RRLNetConfig"]
