"""RRLMatcher, the public entry point: validation and batched inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from rrl_match import matching
from rrl_match.features import Features, check_features
from rrl_match.loading import LoadedNetwork
from rrl_match.matching import ArrayIndexPairs, Candidates, IndexPairs, Matches, Near
from rrl_match.modeling import Band
from rrl_match.offsets import offsets_of_patches
from rrl_match.options import BatchOptions, MatchOptions, PatchOptions
from rrl_match.patches import (
    ArrayPatches,
    Patches,
    PatchSource,
    TensorPatches,
    ValueRange,
    ValueRanges,
    equal_sources,
    paired_sources,
)


class RRLMatcher(LoadedNetwork):
    """Scores whether two 64 x 64 patches of different bands show the same location.

    Safe to use from several threads, picklable, and without effect on PyTorch's global settings.

    Args:
        network: a trained network.
        config: its config; `config.network` must equal `network.config`.
        device: "cpu", "cuda", "cuda:1", a ``torch.device``, or "auto" for CUDA if available.
        dtype: to compute in: ``torch.float32``, ``bfloat16``, ``float16``, or "auto" for the fastest one that the
            device supports natively. Scores are always float32.
        card: text of the model card, written by :meth:`save_pretrained`.

    Attributes:
        config: modalities, threshold, and what is known about the training.
        device, dtype: those chosen.
    """

    @overload
    def score(
        self, patches_a: ArrayPatches, patches_b: ArrayPatches, **options: Unpack[PatchOptions]
    ) -> NDArray[np.float32]: ...

    @overload
    def score(self, patches_a: TensorPatches, patches_b: TensorPatches, **options: Unpack[PatchOptions]) -> Tensor: ...

    def score(
        self,
        patches_a: Patches,
        patches_b: Patches,
        *,
        batch_size: int | None = None,
        progress: bool = False,
        value_range: ValueRanges | None = None,
    ) -> NDArray[np.float32] | Tensor:
        """Score pairs: patch n of A against patch n of B.

        Args:
            patches_a, patches_b: N patches each, of the first and the second of :attr:`modalities`. NumPy array,
                tensor, or a list of them: (64, 64), (N, 64, 64), (N, 1, 64, 64), (N, 64, 64, 1), or RGB as
                (N, 64, 64, 3) or (N, 3, 64, 64), converted to grey by BT.601. uint8 and uint16 are divided by their
                largest value, floats must lie in [0, 1].
            batch_size: pairs per batch (default: chosen for the device), halved if CUDA runs out of memory. Memory
                depends on it, not on N.
            progress: show a progress bar.
            value_range: (low, high), the grey values that become 0 and 1, for both bands; or one such range or `None`
                for each band. Values beyond are clipped. Needed for 16-bit thermal frames, decibels and the like.

        Returns:
            (N,) float32 in [0, 1], in the order of the patches: an array for arrays, a tensor on their device for
            tensors, a scalar (NumPy's or a 0-d tensor) for two single (64, 64) patches. The score of a pair depends on
            its batch by rounding only: less than 1e-5 in float32, and 1e-3 in bfloat16 on a CPU.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what was passed.

        >>> visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
        >>> matcher.score(visible, infrared).shape
        (5,)
        >>> thermal = infrared.astype(np.uint16) * 8 + 29_000  # 16-bit frames with values from 29000 to 31040
        >>> scores = matcher.score(visible, thermal, value_range=(None, (29_000, 31_040)))
        >>> bool(np.abs(scores - matcher.score(visible, infrared)).max() < 1e-3)
        True
        """
        source_a, source_b = equal_sources(
            patches_a, patches_b, self.patch_size, value_range, "use score_matrix to score all pairs"
        )
        scores = self._inference.score(source_a, source_b, batch_size, progress)
        single = source_a.single and source_b.single
        result: NDArray[np.float32] | Tensor = source_a.like_input(scores[0] if single else scores)
        return result

    def encode(
        self,
        patches: Patches,
        band: Band,
        *,
        batch_size: int | None = None,
        progress: bool = False,
        value_range: ValueRange | None = None,
    ) -> Features:
        """Encode patches of one band once, to score them against many.

        Args:
            patches: as in :meth:`score`.
            band: "a" for the first of :attr:`modalities`, "b" for the second.
            batch_size, progress: as in :meth:`score`.
            value_range: (low, high), as in :meth:`score`.
        """
        if not isinstance(band, str) or band not in ("a", "b"):
            raise ValueError(f"band must be 'a' ({self.modalities[0]}) or 'b' ({self.modalities[1]}), got {band!r}")
        return self._encode(PatchSource(patches, "patches", self.patch_size, value_range), band, batch_size, progress)

    @overload
    def score_features(
        self, features_a: Features, features_b: Features, index_pairs: ArrayIndexPairs, **batching: Unpack[BatchOptions]
    ) -> NDArray[np.float32]: ...

    @overload
    def score_features(
        self, features_a: Features, features_b: Features, index_pairs: Tensor, **batching: Unpack[BatchOptions]
    ) -> Tensor: ...

    def score_features(
        self,
        features_a: Features,
        features_b: Features,
        index_pairs: IndexPairs,
        *,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32] | Tensor:
        """Score selected pairs of encoded patches.

        Args:
            features_a, features_b: from :meth:`encode`, of band "a" and "b".
            index_pairs: (P, 2) integers, row of A and row of B.
            batch_size, progress: as in :meth:`score`.

        Returns:
            (P,) float32, a tensor if `index_pairs` is one, else an array.

        >>> visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
        >>> features_a, features_b = matcher.encode(visible, "a"), matcher.encode(infrared, "b")
        >>> matcher.score_features(features_a, features_b, [(0, 0), (0, 1), (4, 2)]).shape
        (3,)
        """
        self._check_features(features_a, features_b)
        pairs = matching.as_index_pairs(index_pairs, len(features_a), len(features_b))
        scores = self._inference.score_pairs(features_a.maps, features_b.maps, pairs, batch_size, progress)
        return scores.to(index_pairs.device) if isinstance(index_pairs, Tensor) else scores.numpy()

    @overload
    def score_matrix(
        self, patches_a: ArrayPatches, patches_b: ArrayPatches, **options: Unpack[PatchOptions]
    ) -> NDArray[np.float32]: ...

    @overload
    def score_matrix(
        self, patches_a: TensorPatches, patches_b: TensorPatches, **options: Unpack[PatchOptions]
    ) -> Tensor: ...

    def score_matrix(
        self,
        patches_a: Patches,
        patches_b: Patches,
        *,
        batch_size: int | None = None,
        progress: bool = False,
        value_range: ValueRanges | None = None,
    ) -> NDArray[np.float32] | Tensor:
        """Score each of N patches of A against each of M patches of B; returns (N, M).

        Each patch is encoded once. Memory holds the features of the side with fewer patches (254 kB per patch in
        bfloat16, twice that in float32), one batch of the other side, and the scores.

        Args: as in :meth:`score`, but the numbers of patches may differ.
        """
        source_a, source_b = paired_sources(patches_a, patches_b, self.patch_size, value_range)
        scores = self._inference.score_all(source_a, source_b, batch_size, progress)
        result: NDArray[np.float32] | Tensor = source_a.like_input(scores)
        return result

    @overload
    def match(self, patches_a: ArrayPatches, patches_b: ArrayPatches, **options: Unpack[MatchOptions]) -> Matches: ...

    @overload
    def match(
        self, patches_a: TensorPatches, patches_b: TensorPatches, **options: Unpack[MatchOptions]
    ) -> Matches[Tensor, Tensor]: ...

    def match(
        self,
        patches_a: Patches,
        patches_b: Patches,
        *,
        candidates: int | None = 16,
        mutual: bool = True,
        threshold: float | None = None,
        near: Near | None = None,
        index_pairs: IndexPairs | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        value_range: ValueRanges | None = None,
    ) -> Matches | Matches[Tensor, Tensor]:
        """Find the best partner in B for each patch of A, if its score is high enough.

        Each patch is encoded once. Memory holds the features of all patches (254 kB per patch in bfloat16, twice that
        in float32); if all pairs are scored, as much as for :meth:`score_matrix`.

        Args:
            patches_a, patches_b: N and M patches, as in :meth:`score`.
            candidates: number of partners that the descriptors propose for each patch of either band. Of many, only
                those are scored that are likely to change what matches. `None` scores all N * M pairs, also with
                weights that have no descriptors.
            mutual: keep a pair only if each is the best partner of the other.
            threshold: keep pairs with a score above it (default: :attr:`threshold`).
            near: limits the partners to those near a predicted position; weights without descriptors score them all.
            index_pairs: (P, 2) integers, the candidates to score instead.
            batch_size, progress, value_range: as in :meth:`score`.

        Returns:
            indices (K, 2) int64 and scores (K,): arrays for arrays, tensors on their device for tensors.

        >>> visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
        >>> matches = matcher.match(visible, infrared, mutual=False, threshold=0)
        >>> matches.indices[:, 0]  # every patch of A has a best partner
        array([0, 1, 2, 3, 4])
        """
        threshold = matching.checked_threshold(threshold, self.threshold)
        source_a, source_b = paired_sources(patches_a, patches_b, self.patch_size, value_range)
        wanted = Candidates((len(source_a), len(source_b)), candidates, near, index_pairs, self._has_descriptors)
        if wanted.all_pairs:
            pairs = matching.all_pairs(wanted.n, wanted.m)
            scores = self._inference.score_all(source_a, source_b, batch_size, progress).flatten()
        else:
            features_a = self._encode(source_a, "a", batch_size)
            features_b = self._encode(source_b, "b", batch_size)
            score = self._scorer(features_a, features_b, batch_size, progress)
            pairs, scores = wanted.score(features_a, features_b, score, mutual=mutual, threshold=threshold)
        indices, scores = matching.select_matches(pairs, scores, mutual=mutual, threshold=threshold)
        return Matches(source_a.like_input(indices), source_a.like_input(scores))

    @overload
    def offsets(
        self, patches_a: ArrayPatches, patches_b: ArrayPatches, *, value_range: ValueRanges | None = ...
    ) -> NDArray[np.float32]: ...

    @overload
    def offsets(
        self, patches_a: TensorPatches, patches_b: TensorPatches, *, value_range: ValueRanges | None = ...
    ) -> Tensor: ...

    def offsets(
        self, patches_a: Patches, patches_b: Patches, *, value_range: ValueRanges | None = None
    ) -> NDArray[np.float32] | Tensor:
        """Find where the centre of each patch of A lies in its patch of B; NaN where nothing fits.

        Keypoints of two bands seldom coincide. For upright patches at the image's scale, a keypoint of B plus its
        offset is where B shows what lies at the keypoint of A. Pass pairs that :meth:`match` or :meth:`score` accept.

        Args: as in :meth:`score`.

        Returns:
            (N, 2) float32, xy in pixels from the centre of patch B, at most 16 each; of the kind that came in.

        >>> image = np.random.default_rng(0).integers(0, 256, (80, 80), dtype=np.uint8)
        >>> np.round(matcher.offsets(image[8:72, 8:72], 255 - image[6:70, 11:75]))
        array([-3.,  2.], dtype=float32)
        """
        return offsets_of_patches(patches_a, patches_b, self.patch_size, value_range)

    def match_features(
        self,
        features_a: Features,
        features_b: Features,
        *,
        candidates: int | None = 16,
        mutual: bool = True,
        threshold: float | None = None,
        near: Near | None = None,
        index_pairs: IndexPairs | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Matches:
        """:meth:`match` on encoded patches; returns arrays.

        Args:
            features_a, features_b: from :meth:`encode`, of band "a" and "b".
            candidates, mutual, threshold, near, index_pairs, batch_size, progress: as in :meth:`match`.
        """
        threshold = matching.checked_threshold(threshold, self.threshold)
        self._check_features(features_a, features_b)
        wanted = Candidates((len(features_a), len(features_b)), candidates, near, index_pairs, self._has_descriptors)
        if wanted.all_pairs:
            pairs = matching.all_pairs(wanted.n, wanted.m)
            scores = self._inference.score_grid(features_a.maps, features_b.maps, batch_size, progress).flatten()
        else:
            score = self._scorer(features_a, features_b, batch_size, progress)
            pairs, scores = wanted.score(features_a, features_b, score, mutual=mutual, threshold=threshold)
        indices, scores = matching.select_matches(pairs, scores, mutual=mutual, threshold=threshold)
        return Matches(indices.numpy(), scores.numpy())

    def _scorer(
        self, features_a: Features, features_b: Features, batch_size: int | None, progress: bool
    ) -> Callable[[Tensor], Tensor]:
        """What takes index pairs (K, 2) to scores (K,) on the CPU."""
        return lambda pairs: self._inference.score_pairs(features_a.maps, features_b.maps, pairs, batch_size, progress)

    def _encode(self, source: PatchSource, band: Band, batch_size: int | None, progress: bool = False) -> Features:
        maps, descriptors = self._inference.encode(source, band, batch_size, progress)
        return Features(band, tuple(maps), descriptors, self._encoders[band])

    def _check_features(self, features_a: Features, features_b: Features) -> None:
        check_features(features_a, "a", self._encoders["a"], self.device, self.dtype)
        check_features(features_b, "b", self._encoders["b"], self.device, self.dtype)
