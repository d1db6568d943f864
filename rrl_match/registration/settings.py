"""Every number of the registration, with what it is for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Search:
    """How far to look for the transform that takes image A to image B.

    Attributes:
        rotation: largest rotation in degrees, in either direction; 180 is any.
        scale: smallest and largest scale, in pixels of B per pixel of A.
    """

    rotation: float = 180.0
    scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation must be degrees from 0 to 180, got {self.rotation!r}")
        low, high = self.scale
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"scale must be two positive numbers (low, high), low <= high, got {self.scale!r}")


@dataclass(frozen=True)
class Settings:
    """Numbers of :func:`register`; the defaults were chosen on training images."""

    # coarse: correlation over shift, rotation and scale
    coarse_side: int = 96  # pixels of the longer side of the images
    coarse_oversampling: float = 3.0  # gradients are taken in an image so much larger
    coarse_blur: float = 0.7  # standard deviations in pixels
    coarse_highpass: float = 6.0
    coarse_frames: int = 6  # of a rig's
    rotation_step: float = 5.0  # degrees
    scale_step: float = 1.15
    first_rotation: float = 30.0  # searched first; everything else only if this is refused
    first_scale: float = 1.3
    min_overlap: float = 0.4  # of the smaller footprint
    peaks: int = 2  # of each rotation and scale
    first_proposals: int = 14  # hypotheses to align of the first search
    proposals: int = 60  # and of that of everything else
    distance: float = 0.04  # between hypotheses, of the image's side

    # fields of oriented gradients
    blur: float = 1.5
    floor: float = 0.02  # of the mean strength: what is weaker counts as flat
    orientation_weight: float = 0.42  # of orientation against strength

    # block matching
    align_side: int = 256  # pixels of the longer side where hypotheses are aligned
    align_radii: tuple[int, ...] = (12, 8)
    aligned: tuple[int, ...] = (8, 6)  # hypotheses that are left after each round
    align_half: int = 24  # half the width of a block
    align_cells: tuple[int, ...] = (5, 7)  # blocks in each direction
    fine_pixels: int = 3_000_000  # of the finest level
    fine_half: int = 47  # half the width of a block; with its margin, a size that Fourier transforms are fast for
    fine_radii: tuple[int, ...] = (10, 6)  # of the rounds on the finest level; on the others there is only the first
    fine_cells: tuple[int, ...] = (10, 14)  # blocks in each direction, of these rounds
    block_noise: float = 0.1  # of the median lowest difference: added to all, so that no block counts without limit
    block_weights: tuple[float, float] = (0.2, 4.5)  # least and most of a block in the adjustment
    bound: float = 3.0  # pixels that a block may be off
    simpler: float = 1.4  # factor by which a simpler model may fit worse and still be taken
    covered: float = 0.8  # part of a block that both images show

    # judgement
    judge_pixels: int = 400_000  # images are shrunk to this size
    quick_locations: int = 10  # of each hypothesis
    quick_prior: float = 3.0  # see Judgement.support
    quick_support: float = 0.45  # hypotheses with less are refined only after everything was searched
    agreement_weight: float = 0.3  # of the fields' agreement in the order of hypotheses
    attempts: int = 2  # hypotheses to refine in each stage of the search
    locations: int = 48
    prior: float = 6.0
    nearby: float = 0.35  # of their median distance: locations that are not told apart by descriptors
    # log odds that a transform is right, by logistic regression on training images
    trust_bias: float = -15.4
    trust_weights: tuple[float, float, float] = (8.0, 9.9, 2.5)  # of what is recognised, log lead, and prominence
    trusted_leads: tuple[float, float] = (1.0, 2.0)  # lead counts between these
    trusted_prominence: float = 6.0  # and prominence up to this
    certain_trust: float = 4.0  # stop searching
    prominence_patches: float = 24.0  # it falls where both images show less of A than so many patches
    prominence_beyond: float = 5.0  # pixels of the finest level that a transform is compared with those beside it:
    prominence_radius: int = 24  # farther away than the first and up to the second
    prominence_cells: int = 8  # blocks in each direction
    elsewhere: float = 0.12  # distance of the other hypotheses, of the image's side
    alternative_support: float = 0.5  # of the transform's own, which they must have to count,
    alternative_trust: float = 5.0  # and once they are refined, they may be trusted less by this
    clear_lead: float = 1.5  # a transform that leads by less is refused
    min_matches: int = 10
    min_agreeing: float = 0.2  # of the blocks
    max_move: float = 0.02  # by the last fit, of the longer side of the image
    min_spread: float = 0.3  # area that the matches span, of the locations' area
    min_area: float = 0.05  # of the image's area
