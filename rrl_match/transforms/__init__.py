"""Transforms between images: one class a kind, each of which can be applied, inverted, warped by, stored and estimated.

A new kind is one more class: it registers itself under its name, and :func:`rrl_match.register` takes that name as
`model`. Nobody else knows which kinds there are.
"""

from rrl_match.transforms.base import FLAGS, FailedEstimation, Interpolation, Points, Transform
from rrl_match.transforms.displacement import DisplacementField
from rrl_match.transforms.matrix import (
    Affine,
    Homography,
    Matrix,
    MatrixTransform,
    Similarity,
    Translation,
    as_matrix,
    compose,
    matrix_kind,
    resizing,
    similarity,
    simpler_kinds,
)

__all__ = [
    "FLAGS",
    "Affine",
    "DisplacementField",
    "FailedEstimation",
    "Homography",
    "Interpolation",
    "Matrix",
    "MatrixTransform",
    "Points",
    "Similarity",
    "Transform",
    "Translation",
    "as_matrix",
    "compose",
    "matrix_kind",
    "resizing",
    "similarity",
    "simpler_kinds",
]
