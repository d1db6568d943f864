"""RRLMatcher: what a user holds. Batching and checks around a trained network."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

from rrl_match import pretrained
from rrl_match.inference import InferenceRRLNet, checked_optimize, choose_device, choose_dtype, mind_fork
from rrl_match.matching import Matches, Vicinity, nearest_candidates, select_matches
from rrl_match.modeling import RRLNet
from rrl_match.patches import Patches, PatchSource, ValueRange, as_points, is_number, range_per_band
from rrl_match.pretrained import ModelConfig

# Bytes of a value times pairs at once: on a CPU, as many as leave a stage's maps in its cache, 32 in bfloat16; on CUDA,
# enough to fill the device, 512.
_BATCH_BYTES = {"cpu": 64, "cuda": 1024}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Codes:
    """Encoded patches of one band, made by :meth:`RRLMatcher.encode`, for :meth:`RRLMatcher.score_codes`.

    They lie on the matcher's device in its dtype: 127,000 values, 254 kB in bfloat16, a patch.

    Attributes:
        band: "a" or "b".
        maps: the encoder's five maps, (N, C, H, W) each.
        descriptors: (N, dim) float32 of unit length; dim is 0 where the weights have no descriptor heads.
        encoder: checksum of the encoder's weights, so that codes of other weights are refused.
    """

    band: str
    maps: tuple[Tensor, ...]
    descriptors: Tensor
    encoder: int

    def __len__(self) -> int:
        return len(self.maps[0])


class RRLMatcher:
    """Scores whether two 64 x 64 patches of different bands show the same place.

    Safe to use from several threads, picklable, and without effect on PyTorch's global settings.

    Args:
        network: a trained network.
        config: what goes with it; `config.network` must be `network.config`.
        device: "cpu", "cuda", "cuda:1", a ``torch.device``, or "auto" for CUDA where there is one.
        dtype: to compute in: ``torch.float32``, ``bfloat16``, ``float16``, or "auto" for the fastest that the
            device computes natively. Scores are float32 in any case.
        optimize: "eager" needs no preparation. "compile" has PyTorch's compiler make code for the device at the
            first calls, which takes up to a minute and, for a CPU, a C++ compiler; where that fails, a warning is
            logged and "eager" computes. Same scores up to rounding: 1e-4 in float32, 0.05 in bfloat16. "auto" is
            "eager": compiling did not reliably pay on the CPU it was measured on.
        card: text of the model card, written along by :meth:`save_pretrained`.

    Attributes:
        config: modalities, threshold, and what is known of the training.
        device, dtype, optimize: those chosen.
    """

    def __init__(
        self,
        network: RRLNet,
        config: ModelConfig,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        optimize: str = "auto",
        card: str = "",
    ) -> None:
        if config.network != network.config:
            raise ValueError(
                f"config.network must be that of the network, {network.config}, got {config.network}: "
                "pass ModelConfig(..., network=network.config)"
            )
        self.config = config
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.optimize = checked_optimize(optimize)
        self._card = card
        self._network = network  # as trained, for saving
        self._inference = InferenceRRLNet(network, self.device, self.dtype, self.optimize)
        self._encoders = {"a": _checksum(network.encoder_a), "b": _checksum(network.encoder_b)}

    def __reduce__(self) -> Any:
        """Pickled as bytes: tensors would take a file descriptor each on their way to another process."""
        weights = pretrained.to_bytes(self._network)
        return _unpickle, (type(self), weights, self.config, str(self.device), self.dtype, self.optimize, self._card)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "vis-nir",
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        optimize: str = "auto",
    ) -> Self:
        """Load weights.

        Args:
            name_or_path: weights that came with the wheel ("vis-nir", without a network), a folder that
                :meth:`save_pretrained` wrote, or a repo id "owner/name" on the Hugging Face Hub.
            revision, cache_dir, token, force_download, local_files_only: for the Hub, as in
                ``huggingface_hub.hf_hub_download``.
            device, dtype, optimize: see the class.

        Raises:
            WeightsNotFoundError: nothing under this name, or the Hub cannot be reached.
            WeightsError: the files are cut off, changed, or of another network.
            ValueError: device, dtype or optimize unknown, or not on this machine.
        """
        mind_fork()
        device = choose_device(device)
        dtype = choose_dtype(dtype, device)
        optimize = checked_optimize(optimize)
        folder = pretrained.find_folder(
            name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        network, config = pretrained.load_folder(folder)
        card = folder / pretrained.CARD_FILE
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        return cls(network, config, device=device, dtype=dtype, optimize=optimize, card=text)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``config.json``, ``model.safetensors`` and the model card; :meth:`from_pretrained` loads the folder."""
        return pretrained.save_folder(folder, self._network, self.config, self._card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str = "Upload RRL-Net weights",
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face Hub. Returns the commit's address.

        Raises:
            RRLMatchError: the Hub cannot be reached, or does not take the files.
        """
        with tempfile.TemporaryDirectory() as folder:
            saved = self.save_pretrained(folder)
            return pretrained.push_folder(
                saved, repo_id, revision=revision, token=token, private=private, message=commit_message
            )

    @property
    def modalities(self) -> tuple[str, str]:
        """Names of band A and band B. The order of the arguments matters: the encoders differ."""
        return self.config.modalities

    @property
    def threshold(self) -> float:
        """Score above which a pair is called a match, calibrated on held-back training pairs."""
        return self.config.threshold

    @property
    def patch_size(self) -> int:
        """Height and width of the patches, in pixels."""
        return self.config.network.patch_size

    def __repr__(self) -> str:
        a, b = self.modalities
        return f"RRLMatcher({a!r}, {b!r}, device={str(self.device)!r}, dtype={self.dtype})"

    def score(
        self,
        patches_a: Patches,
        patches_b: Patches,
        batch_size: int | None = None,
        progress: bool = False,
        *,
        value_range: Any = None,
    ) -> Any:
        """Scores of pairs: patch n of A against patch n of B.

        Args:
            patches_a, patches_b: N patches each, of the first and the second of :attr:`modalities`. NumPy array,
                tensor, or a list of them: (64, 64), (N, 64, 64), (N, 1, 64, 64), (N, 64, 64, 1) or RGB
                (N, 64, 64, 3), turned to grey by BT.601. uint8 and uint16 use their full range, floats must lie
                in [0, 1].
            batch_size: pairs at once, chosen for the device unless given; halved where CUDA runs out of memory.
                Memory depends on this, not on N.
            progress: show a progress bar.
            value_range: (low, high), the grey values that become 0 and 1, for both bands, or one such pair or
                `None` for each; values beyond are clipped. Needed for 16-bit thermal frames, dB, and the like.

        Returns:
            (N,) float32 in [0, 1], in the order of the patches, an array for arrays and a tensor on the input's
            device for tensors; a scalar for two single (64, 64) patches. A pair's score does not depend on the others
            beyond rounding: by less than 1e-5 in float32, and 1e-3 in bfloat16 on a CPU.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.

        >>> visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
        >>> matcher.score(visible, infrared).shape
        (5,)
        >>> thermal = infrared.astype(np.uint16) * 8 + 29_000  # of a 16-bit camera that sees 29000 to 31040
        >>> scores = matcher.score(visible, thermal, value_range=(None, (29_000, 31_040)))
        >>> bool(np.abs(scores - matcher.score(visible, infrared)).max() < 1e-3)
        True
        """
        sources = self._sources(patches_a, patches_b, value_range)
        if len(sources[0]) != len(sources[1]):
            raise ValueError(
                f"patches_a and patches_b must be equally many, got {len(sources[0])} and {len(sources[1])}: "
                "score_matrix scores each against each"
            )
        scores = torch.empty(len(sources[0]), dtype=torch.float32, device=self.device)

        def work(start: int, stop: int) -> None:
            maps_a, maps_b = (
                self._inference.encode(source.batch(start, stop, self.device), band)
                for source, band in zip(sources, "ab", strict=True)
            )
            scores[start:stop] = self._inference.relate(maps_a, maps_b)

        self._in_batches(work, len(scores), batch_size, progress, "scoring")
        scores = self._checked(scores)
        single = sources[0].single and sources[1].single
        return sources[0].like_input(scores[0] if single else scores)

    def encode(
        self,
        patches: Patches,
        band: str,
        batch_size: int | None = None,
        progress: bool = False,
        *,
        value_range: ValueRange | None = None,
    ) -> Codes:
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

    def score_codes(
        self, codes_a: Codes, codes_b: Codes, index_pairs: Any, batch_size: int | None = None, progress: bool = False
    ) -> Any:
        """Scores of chosen pairs of encoded patches.

        Args:
            codes_a, codes_b: from :meth:`encode`, with band "a" and "b".
            index_pairs: (P, 2) integers, row of A and row of B.
            batch_size, progress: as in :meth:`score`.

        Returns:
            (P,) float32, of the kind that `index_pairs` is.

        >>> visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
        >>> codes_a, codes_b = matcher.encode(visible, "a"), matcher.encode(infrared, "b")
        >>> matcher.score_codes(codes_a, codes_b, [(0, 0), (0, 1), (4, 2)]).shape
        (3,)
        """
        for codes, band in ((codes_a, "a"), (codes_b, "b")):
            if not isinstance(codes, Codes) or codes.band != band:
                what = f"codes of band {codes.band!r}" if isinstance(codes, Codes) else type(codes).__name__
                raise TypeError(f"codes_{band} must come from encode(patches, {band!r}), got {what}")
            place = codes.maps[0].dtype, codes.maps[0].device
            if codes.encoder != self._encoders[band] or place != (self.dtype, self.device):
                raise ValueError(
                    f"codes_{band} were made by a matcher of other weights, dtype or device "
                    f"({place[0]} on {place[1]}): encode the patches with this one"
                )
        pairs = _as_index_pairs(index_pairs, len(codes_a), len(codes_b))
        scores = self._score_pairs(codes_a.maps, codes_b.maps, pairs, batch_size, progress)
        return scores.to(index_pairs.device) if isinstance(index_pairs, Tensor) else scores.numpy()

    def score_matrix(
        self,
        patches_a: Patches,
        patches_b: Patches,
        batch_size: int | None = None,
        progress: bool = False,
        *,
        value_range: Any = None,
    ) -> Any:
        """Scores (N, M) of each of N patches of A against each of M patches of B.

        Each patch is encoded once. Memory holds the codes of the side with fewer patches, 254 kB each in bfloat16,
        twice that in float32, and of one batch of the other; beside them 4 bytes a score.

        Args: as in :meth:`score`, but the numbers of patches may differ.
        """
        source_a, source_b = self._sources(patches_a, patches_b, value_range)
        return source_a.like_input(self._score_all(source_a, source_b, batch_size, progress))

    def match(
        self,
        patches_a: Patches,
        patches_b: Patches,
        candidates: int | None = 16,
        mutual: bool = True,
        threshold: float | None = None,
        *,
        index_pairs: Any = None,
        search_radius: float | None = None,
        positions_a: Any = None,
        positions_b: Any = None,
        batch_size: int | None = None,
        progress: bool = False,
        value_range: Any = None,
    ) -> Matches:
        """The best partner in B for each patch of A, where it is good enough.

        Each patch is encoded once. Memory holds the codes of all patches, 254 kB each in bfloat16 and twice that in
        float32, as any may become a candidate; where all pairs are scored, what :meth:`score_matrix` holds.

        Args:
            patches_a, patches_b: N and M patches, as in :meth:`score`.
            candidates: partners for each patch, of either band, that the descriptors propose and the metric network
                scores; `None` scores all N * M pairs.
            mutual: keep a pair only if each is the other's best.
            threshold: keep pairs with a score above it; :attr:`threshold` unless given.
            index_pairs: (P, 2) integers, the candidates to score instead.
            search_radius: pixels of picture B. Partners are looked for only among patches of B that lie at most so far
                from where the patch of A is predicted; weights without descriptors score all of these.
            positions_a: (N, 2) xy, where the patches of A are predicted in picture B, with `search_radius`.
            positions_b: (M, 2) xy, or ``cv2.KeyPoint`` or LAFs, where the patches of B lie in it.
            batch_size, progress, value_range: as in :meth:`score`.

        Returns:
            indices (K, 2) int64 and scores (K,), of the kind that the patches are.

        Raises:
            ValueError: among others, the weights have no descriptors to find candidates by.

        >>> visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
        >>> matches = matcher.match(visible, infrared, mutual=False, threshold=0)
        >>> matches.indices[:, 0]  # every patch of A has a best partner
        array([0, 1, 2, 3, 4])

        Pictures that are registered to within 20 pixels already:

        >>> places = np.array([(40, 40), (80, 40), (120, 40), (160, 40), (200, 40)])
        >>> near = {"search_radius": 20, "positions_a": places + 9, "positions_b": places}
        >>> matcher.match(visible, infrared, threshold=0, **near).indices.tolist()
        [[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]]
        """
        threshold = self.threshold if threshold is None else threshold
        if not is_number(threshold) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold!r}")
        if candidates is not None and not _is_count(candidates):
            raise ValueError(f"candidates must be a positive integer, or None to score all pairs, got {candidates!r}")
        source_a, source_b = self._sources(patches_a, patches_b, value_range)
        n, m = len(source_a), len(source_b)
        given = None if index_pairs is None else torch.unique(_as_index_pairs(index_pairs, n, m), dim=0)
        vicinity = _as_vicinity(search_radius, positions_a, positions_b, n, m)
        if given is not None and vicinity is not None:
            raise ValueError("index_pairs and search_radius both say what the candidates are: pass one of them")
        described = self.config.network.descriptor_dim > 0
        anywhere = given is None and vicinity is None
        most = max(n, m)
        candidates = most if candidates is None else min(candidates, most)
        if anywhere and candidates < most and not described:
            raise ValueError(
                "these weights have no descriptors to find candidates by: pass index_pairs or search_radius, "
                f"or candidates=None to score all {n * m} pairs"
            )
        if anywhere and candidates == most:
            pairs = torch.cartesian_prod(torch.arange(n, device="cpu"), torch.arange(m, device="cpu"))
            scores = self._score_all(source_a, source_b, batch_size, progress).flatten()
        else:
            codes_a = self._encode(source_a, "a", batch_size)
            codes_b = self._encode(source_b, "b", batch_size)
            if given is not None:
                pairs = given
            elif vicinity is not None and (candidates == most or not described):
                pairs = vicinity.pairs()
            else:
                pairs = nearest_candidates(codes_a.descriptors, codes_b.descriptors, candidates, vicinity).cpu()
            scores = self._score_pairs(codes_a.maps, codes_b.maps, pairs, batch_size, progress)
        indices, scores = select_matches(pairs, scores, mutual=mutual, threshold=threshold)
        return Matches(source_a.like_input(indices), source_a.like_input(scores))

    def _sources(self, patches_a: Patches, patches_b: Patches, value_range: Any) -> tuple[PatchSource, PatchSource]:
        range_a, range_b = range_per_band(value_range)
        source_a = PatchSource(patches_a, "patches_a", self.patch_size, range_a)
        source_b = PatchSource(patches_b, "patches_b", self.patch_size, range_b)
        if source_a.is_tensor != source_b.is_tensor and len(source_a) and len(source_b):
            raise TypeError("patches_a and patches_b must both be arrays or both tensors: convert with torch.as_tensor")
        return source_a, source_b

    def _encode(self, source: PatchSource, band: str, batch_size: int | None, progress: bool = False) -> Codes:
        maps = self._inference.encode(source.batch(0, 0, self.device), band)
        codes = [
            torch.empty((len(source), *m.shape[1:]), dtype=m.dtype, device=m.device, memory_format=torch.channels_last)
            for m in maps
        ]
        dim = self.config.network.descriptor_dim
        descriptors = torch.empty(len(source), dim, dtype=torch.float32, device=self.device)

        def work(start: int, stop: int) -> None:
            maps = self._inference.encode(source.batch(start, stop, self.device), band)
            descriptors[start:stop] = self._inference.describe(maps, band)
            for whole, part in zip(codes, maps, strict=True):
                whole[start:stop] = part

        self._in_batches(work, len(source), batch_size, progress, "encoding")
        return Codes(band, tuple(codes), descriptors, self._encoders[band])

    def _score_pairs(
        self,
        maps_a: Sequence[Tensor],
        maps_b: Sequence[Tensor],
        pairs: Tensor,
        batch_size: int | None,
        progress: bool = False,
    ) -> Tensor:
        """Scores (P,) on the CPU of pairs (P, 2)."""
        scores = torch.empty(len(pairs), dtype=torch.float32, device=self.device)
        pairs = pairs.to(self.device)  # all at once: a copy of each batch's would wait for the batch before

        def work(start: int, stop: int) -> None:
            rows_a, rows_b = pairs[start:stop].unbind(1)
            scores[start:stop] = self._inference.relate([m[rows_a] for m in maps_a], [m[rows_b] for m in maps_b])

        self._in_batches(work, len(pairs), batch_size, progress, "scoring")
        return self._checked(scores)

    def _score_all(
        self, source_a: PatchSource, source_b: PatchSource, batch_size: int | None, progress: bool
    ) -> Tensor:
        """Scores (N, M) on the CPU: the side with fewer patches is encoded whole, the other batch by batch."""
        keep_a = len(source_a) < len(source_b)
        kept = self._encode(source_a if keep_a else source_b, "a" if keep_a else "b", batch_size).maps
        streamed = source_b if keep_a else source_a
        scores = torch.empty(len(source_a), len(source_b), dtype=torch.float32, device="cpu")

        def work(start: int, stop: int) -> None:
            maps = self._inference.encode(streamed.batch(start, stop, self.device), "b" if keep_a else "a")
            if keep_a:
                scores[:, start:stop] = self._score_grid(kept, maps, batch_size)
            else:
                scores[start:stop] = self._score_grid(maps, kept, batch_size)

        self._in_batches(work, len(streamed), batch_size, progress, "scoring")
        return scores

    def _score_grid(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], batch_size: int | None) -> Tensor:
        """Scores (N, M) on the CPU of each with each, in tiles as square as may be of at most a batch of pairs."""
        size = self._batch_size(batch_size)
        n, m = len(maps_a[0]), len(maps_b[0])
        scores = torch.empty(n, m, dtype=torch.float32, device=self.device)
        height = max(1, min(n, max(math.isqrt(size), size // max(1, m))))
        for top in range(0, n, height):
            rows = [m[top : top + height] for m in maps_a]

            def work(start: int, stop: int, top: int = top, rows: Sequence[Tensor] = rows) -> None:
                columns = [m[start:stop] for m in maps_b]
                scores[top : top + height, start:stop] = self._inference.relate_all(rows, columns)

            size = height * self._in_batches(work, m, max(1, size // height))
        return self._checked(scores)

    def _checked(self, scores: Tensor) -> Tensor:
        """Scores on the CPU; waits for the device."""
        scores = scores.cpu()
        if self.dtype == torch.float16 and scores.isnan().any():
            raise ValueError("dtype float16 overflows with these weights on these patches: use dtype=torch.float32")
        return scores

    def _batch_size(self, batch_size: int | None) -> int:
        if batch_size is None:
            return _BATCH_BYTES[self.device.type] // self.dtype.itemsize
        if not _is_count(batch_size):
            raise ValueError(f"batch_size must be a positive integer or None, got {batch_size!r}")
        return int(batch_size)

    def _in_batches(
        self,
        work: Callable[[int, int], None],
        count: int,
        batch_size: int | None,
        progress: bool = False,
        label: str = "",
    ) -> int:
        """Call work(start, stop) for batch after batch of rows 0..count; of half the size once memory runs out.

        Returns the size that it ended with.
        """
        mind_fork()  # before the patches are converted, which takes several threads as well
        size = self._batch_size(batch_size)
        start = 0
        launched: list[torch.cuda.Event] = []
        with tqdm(total=count, desc=label) if progress else nullcontext() as bar:  # a bar starts a thread, even unseen
            while start < count:
                stop = min(start + size, count)
                try:
                    work(start, stop)
                except torch.cuda.OutOfMemoryError:
                    if stop - start == 1:
                        raise
                    size = (stop - start) // 2
                    _logger.warning("out of memory with %d at once: going on with %d", stop - start, size)
                    continue
                if bar is not None:
                    bar.update(stop - start)
                start = stop
                if self.device.type == "cuda":  # prepare a batch while the last one computes, but run ahead no farther
                    launched.append(torch.cuda.current_stream(self.device).record_event())
                    if len(launched) > 1:
                        launched.pop(0).synchronize()
        return size


def _checksum(module: nn.Module) -> int:
    total = 0
    for value in pretrained.stored_values(module).values():
        total = zlib.crc32(value.detach().float().cpu().contiguous().numpy().tobytes(), total)
    return total


def _unpickle(
    kind: type[RRLMatcher],
    weights: bytes,
    config: ModelConfig,
    device: str,
    dtype: torch.dtype,
    optimize: str,
    card: str,
) -> RRLMatcher:
    mind_fork()
    network = pretrained.from_bytes(weights, config)
    return kind(network, config, device=device, dtype=dtype, optimize=optimize, card=card)


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def _as_index_pairs(index_pairs: Any, n: int, m: int) -> Tensor:
    """(P, 2) int64 on the CPU, checked against the numbers of patches."""
    try:
        values: NDArray[Any] = (
            index_pairs.detach().cpu().numpy() if isinstance(index_pairs, Tensor) else np.asarray(index_pairs)
        )
    except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor without values
        raise ValueError(f"index_pairs must have shape (P, 2), row of A and row of B: {error}") from error
    if values.size == 0:
        return torch.empty(0, 2, dtype=torch.int64, device="cpu")
    if values.dtype.kind not in "iu":
        raise TypeError(f"index_pairs must be integers, got {values.dtype}")
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"index_pairs must have shape (P, 2), row of A and row of B, got {values.shape}")
    if values.min() < 0 or (values.max(0) >= (n, m)).any():
        raise ValueError(
            f"index_pairs must be rows, from 0 on, of {n} patches of A and of {m} of B, "
            f"got {values.min(0).tolist()} at the least and {values.max(0).tolist()} at the most"
        )
    return torch.from_numpy(values.astype(np.int64))


def _as_vicinity(radius: Any, positions_a: Any, positions_b: Any, n: int, m: int) -> Vicinity | None:
    """The three arguments of :meth:`RRLMatcher.match` checked against each other and the numbers of patches."""
    given = {"search_radius": radius, "positions_a": positions_a, "positions_b": positions_b}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ValueError(f"search_radius, positions_a and positions_b go together, {' and '.join(missing)} not given")
    if not is_number(radius) or not 0 < radius <= 1e9:
        raise ValueError(f"search_radius must be a positive number of pixels, got {radius!r}")
    places = []
    for band, positions, count in (("a", positions_a, n), ("b", positions_b, m)):
        points = as_points(positions, f"positions_{band}")
        if len(points) != count:
            raise ValueError(
                f"positions_{band} must have a place for each of the {count} patches_{band}, got {len(points)}"
            )
        places.append(torch.from_numpy(points))
    return Vicinity(places[0], places[1], float(radius))
