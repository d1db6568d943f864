"""How far to look, and every number of the method, one config for each step.

A "pixel" is one of the coarser image under the transform that is looked at (a unit), unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rrl_match._config import CheckedConfig, is_number
from rrl_match.channels import ChannelConfig


@dataclass(frozen=True)
class Search:
    """How far to look for the transform that takes image A to image B.

    With an initial transform, rotation, scale and shift count from there.

    Attributes:
        rotation: largest rotation in degrees, in either direction; 180 is any.
        scale: smallest and largest scale, in pixels of B per pixel of A, or relative to the initial transform. `None`
            allows what the sizes of the images do if either shows from a sixteenth to all of what the other shows;
            with an initial transform, a factor of 1.3 either way.
        aspect: largest ratio of the scales along two directions, from 1 (pixels that are equally square) to 2.
        mirrored: whether to look for mirror images, too.
        shift: largest displacement of the centre of A from where the initial transform (or none) takes it, in pixels
            of B; `None` for any.
    """

    rotation: float = 180.0
    scale: tuple[float, float] | None = None
    aspect: float = 1.5
    mirrored: bool = False
    shift: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.rotation) or not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation must be degrees from 0 to 180, got {self.rotation!r}")
        if self.scale is not None:
            if not isinstance(self.scale, (tuple, list)) or len(self.scale) != 2 or not all(map(is_number, self.scale)):
                raise ValueError(f"scale must be two numbers (low, high) or None, got {self.scale!r}")
            if not 0 < self.scale[0] <= self.scale[1] < float("inf"):
                raise ValueError(f"scale must be two positive numbers (low, high), low <= high, got {self.scale!r}")
        if not is_number(self.aspect) or not 1 <= self.aspect <= 2:
            raise ValueError(f"aspect must be a ratio from 1 to 2, got {self.aspect!r}")
        if self.shift is not None and (not is_number(self.shift) or not self.shift >= 0):
            raise ValueError(f"shift must be pixels, at least 0, or None, got {self.shift!r}")


@dataclass(frozen=True)
class DenseSearchConfig(CheckedConfig):
    """Correlation over shift, rotation and scale."""

    side: int = 96  # pixels of the level: the root of the area of either image where they are equally large
    stretched_side: int = 52  # the same where stretched hypotheses are searched, too
    most_shown: float = 16.0  # by what factor the area that one image shows may exceed that of the other
    rotation_step: float = 5.0  # degrees, for images of `side`; larger for smaller ones
    scale_step: float = 1.15  # likewise
    coarsest: float = 2.4  # by what factor steps grow at most
    near_rotation: float = 30.0  # degrees, searched first, with scales
    near_scale: float = 1.3  # up to this factor from what equal areas or equal pixels give
    stretch: float = 1.3  # ratio of the scales of stretched hypotheses
    stretch_directions: int = 6
    min_overlap: float = 0.4  # of the smaller footprint
    peaks: int = 2  # of each rotation and scale
    near_proposals: int = 14  # hypotheses to align of the first search
    proposals: int = 60  # and of each other one
    comparable: float = 0.6  # hypotheses whose score is lower than this part of the highest are not aligned
    distance: float = 0.04  # between hypotheses, of the side of the overlap
    frames: int = 6  # of a rig that are searched


@dataclass(frozen=True)
class BlockConfig(CheckedConfig):
    """Block matching and the joint least-squares adjustment of its cost surfaces."""

    half: int = 47  # half the width of a block; with its margin, a size that Fourier transforms are fast for
    covered: float = 0.8  # part of a block that must lie in both footprints
    known: float = 0.4  # part of it that both images must know
    noise: float = 0.1  # of the median lowest cost: added to all, so that no block counts without limit
    weights: tuple[float, float] = (0.2, 4.5)  # least and most of a block in the adjustment
    bound: float = 3.0  # pixels that a block may be off
    simpler: float = 2.0  # factor by which the cost of a simpler model may exceed that of the freest and be taken,
    negligible: float = 0.01  # and what may be added to it


@dataclass(frozen=True)
class AlignConfig(CheckedConfig):
    """Hypotheses aligned in small images, a round for each entry of the tuples."""

    side: int = 232  # pixels: root of the area of the overlap
    half: int = 24  # half the width of a block
    radii: tuple[int, ...] = (12, 8)  # pixels that blocks are searched
    cells: tuple[int, ...] = (5, 7)  # blocks in each direction
    kept: tuple[int, ...] = (8, 6)  # hypotheses that are left
    comparable: float = 0.5  # and only those whose channels agree so well, compared with the best


@dataclass(frozen=True)
class RefineConfig(CheckedConfig):
    """Alignment on ever finer levels."""

    first_side: int = 464  # of the first level, see AlignConfig.side
    finest_pixels: int = 3_000_000  # of the overlap on the finest level
    least_side: int = 200  # small overlaps are enlarged to this, at most by `enlarged`
    enlarged: float = 4.0
    radii: tuple[int, ...] = (10, 6)  # of the rounds on the finest level; on the others there is only the first
    cells: tuple[int, ...] = (10, 14)  # blocks in each direction of these rounds
    settled: float = 0.01  # a round is repeated until it moves the corners by less, of the side of the overlap,
    repeats: int = 3  # at most so often
    slack: float = 1.15  # factor by which the ratio of scales may exceed that of the search
    hopeless: float = 0.08  # part of the blocks that must agree with a transform at each level


@dataclass(frozen=True)
class LocalConfig(CheckedConfig):
    """A smooth displacement on top of a global transform."""

    first_side: int = 464  # of the first level, see AlignConfig.side; the last is that of RefineConfig
    half: int = 26  # half the width of a block: the larger, the more it is bent itself
    radii: tuple[int, int] = (16, 8)  # pixels that blocks are searched in the first round, and in the others
    blocks: int = 21  # in each direction
    known: float = 0.5  # part of a block that both images must know
    tie_points: int = 19  # in each direction, of any transform
    least_blocks: int = 40
    beside: float = 5.0  # pixels from a block's best offset: others, the log costs of which
    behind: float = 0.06  # must be higher by this for a block to be trusted by half
    least_trust: float = 0.02
    cells: tuple[int, ...] = (1, 8, 8, 8, 12, 16)  # of grids along the longer side, and the weights of their bending,
    bending: tuple[float, ...] = (1e-6, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # of which held-out blocks choose
    parts: int = 36  # of the overlap, which are held out,
    groups: int = 6  # in so many groups,
    gap: float = 0.5  # with this between them and the blocks that are fitted, of a block's width
    certain: tuple[float, float] = (2.0, 5.0)  # standard errors by which held-out blocks must be better off than with
    # the global transform, in the first and in the last round
    settled: float = 0.6  # part of the blocks that must agree with the field of the first level, or it is repeated,
    repeats: int = 2  # at most so often
    supported: float = 0.6  # part of the overlap in which the blocks together must agree with the field
    reweighted: int = 12  # rounds of robust least squares,
    rounds: int = 8  # and of Gauss-Newton on the cost surfaces,
    held_rounds: int = 2  # fewer where blocks are held out


@dataclass(frozen=True)
class TileConfig(CheckedConfig):
    """Refinement beyond the finest level of :class:`RefineConfig`, on tiles."""

    side: int = 512  # pixels of the level
    apart: float = 1.3  # distance of their middles, of the side, but for fewer than `least` in each direction
    least: int = 3
    few: int = 5  # tiles in each direction of the overlap, of the rounds before the last one,
    most: int = 8  # and of that
    held: float = 0.7  # part of a tile, around its middle, in which a tie point of the coarser level lies
    cells: int = 5  # blocks of a tile in each direction
    radii: tuple[int, int] = (12, 6)  # pixels that blocks are searched, likewise
    simpler: float = 1.1  # see BlockConfig: so many blocks tell kinds apart
    negligible: float = 0.0003
    step: float = 4.0  # by what factor levels become finer at most
    finer: float = 1.05  # the factor from which on it is worth it


@dataclass(frozen=True)
class VerifyConfig(CheckedConfig):
    """Judgement by RRL-Net, evidence, and what is asked of it."""

    pixels: int = 400_000  # of the overlap, of which patches are cut
    patch_known: float = 0.7  # part of a patch that both images must show
    clear: float = 0.7  # the best hypothesis comes first if the channels of all others agree less than this part
    quick_locations: int = 10  # of each hypothesis
    quick_prior: float = 3.0  # locations that do not match, added to these
    quick_support: float = 0.45  # hypotheses with less are refined only after everything was searched
    agreement_weight: float = 0.3  # of the channels' agreement in the order of hypotheses
    attempts: int = 2  # hypotheses to refine in each stage of the search
    locations: int = 48
    prior: float = 6.0  # locations that do not match, added to these
    nearby: float = 0.35  # of the median distance: locations that are not told apart by descriptors
    bias: float = field(default=-19.5, metadata={"signed": True})  # log odds that a transform is right, and how much
    weights: tuple[float, float, float, float] = (8.0, 6.0, 9.9, 2.5)  # mutual, support, log ratio and peak add to them
    most_ratio: float = 2.0  # ratios count up to this
    most_peak: float = 6.0  # and peaks to sidelobes up to this
    certain: float = 2.5  # log odds at which the search stops
    whole_patches: float = 24.0  # the peak counts less in overlaps of fewer patches
    sidelobe_radii: tuple[int, int] = (5, 24)  # pixels beside a transform that it is compared with
    sidelobe_cells: int = 8  # blocks in each direction
    distinct: float = 0.12  # distance of other hypotheses, of the side of the overlap
    alternative_support: float = 0.5  # of a candidate's own, which they must have to count,
    alternative_margin: float = 5.0  # and once refined, their log odds may be lower by this
    clear_ratio: float = 1.5  # a transform with a lower ratio is refused
    min_matches: int = 10
    min_agreeing: float = 0.2  # of the blocks
    max_move: float = 0.02  # by the last fit, of the side of the overlap
    min_spread: float = 0.3  # area that the matches span, of that of all locations
    bent: float = 3.0  # pixels that half of the overlap may be off at most
    off: float = 8.0  # pixels, farther than which
    most_off: float = 0.25  # this part of it may be off


@dataclass(frozen=True)
class ErrorConfig(CheckedConfig):
    """Expected error, from where blocks are found with those around them."""

    width: float = 0.1  # standard deviation of the surroundings, of the extent of the blocks
    beyond: float = 5.0  # pixels beside a minimum: what lies farther away are its sidelobes
    near: float = 8.0  # pixels; minima farther away than this must be clearer,
    clearer: float = 2.0  # by so much, for repeated texture has them, too
    telling: float = 3.0  # least peak-to-sidelobe ratio of surroundings that agree on an offset
    floor: float = 0.3  # pixels that are added
    agreeing: float = 3.0  # pixels that a block which agrees may be off
    bias: float = field(default=0.58, metadata={"signed": True})  # of the logarithm of the radius, and how much what
    weights: tuple[float, float, float] = field(default=(0.51, 1.09, -0.87), metadata={"signed": True})  # surroundings
    # and blocks are off, and the part that disagrees, add to it: examples/experiments/calibration.py


@dataclass(frozen=True)
class Config:
    """Numbers of :func:`register`; the defaults were chosen on training images."""

    channels: ChannelConfig = field(default_factory=ChannelConfig)
    search: DenseSearchConfig = DenseSearchConfig()
    blocks: BlockConfig = BlockConfig()
    align: AlignConfig = AlignConfig()
    refine: RefineConfig = RefineConfig()
    local: LocalConfig = LocalConfig()
    tiles: TileConfig = TileConfig()
    error: ErrorConfig = ErrorConfig()
    verify: VerifyConfig = VerifyConfig()
