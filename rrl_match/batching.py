"""Inference on any number of patches: batches, progress bars, and smaller batches if memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from torch import Tensor

from rrl_match._process import limit_threads_after_fork
from rrl_match.errors import ScoringError
from rrl_match.inference import InferenceRRLNet
from rrl_match.modeling import Band
from rrl_match.patches import PatchSource, is_count

# In float32; twice as many in 16 bits. On a CPU, the maps of a stage then fit into its cache; CUDA needs more pairs to
# be busy.
_BATCH_SIZE = {"cpu": 16, "cuda": 256}

_logger = logging.getLogger(__name__)


def choose_batch_size(batch_size: int | None, device: torch.device, dtype: torch.dtype) -> int:
    """The given batch size, or the default for a device and dtype.

    Raises:
        ValueError: not a positive integer.
    """
    if batch_size is None:
        return _BATCH_SIZE[device.type] * torch.float32.itemsize // dtype.itemsize
    if not is_count(batch_size):
        raise ValueError(f"batch_size must be a positive integer or None, got {batch_size!r}")
    return int(batch_size)


def run_in_batches(
    work: Callable[[int, int], None], count: int, batch_size: int, device: torch.device, progress: str = ""
) -> int:
    """Call work(start, stop) for consecutive batches of rows 0..count.

    Args:
        batch_size: halved each time that CUDA runs out of memory.
        device: that `work` computes on.
        progress: label of the progress bar; none is shown if empty.

    Returns:
        the final batch size.
    """
    limit_threads_after_fork()  # before the patches are converted, which uses several threads too
    start = 0
    launched: list[torch.cuda.Event] = []
    # A progress bar starts a thread even if it is disabled, so none is made unless it is shown.
    with tqdm(total=count, desc=progress) if progress else nullcontext() as bar:
        while start < count:
            stop = min(start + batch_size, count)
            try:
                work(start, stop)
            except torch.cuda.OutOfMemoryError:
                if stop - start == 1:
                    raise
                batch_size = (stop - start) // 2
                _logger.warning("out of memory with a batch of %d: continuing with %d", stop - start, batch_size)
                continue
            if bar is not None:
                bar.update(stop - start)
            start = stop
            if device.type == "cuda":
                _limit_run_ahead(launched, device)
    return batch_size


def _limit_run_ahead(launched: list[torch.cuda.Event], device: torch.device) -> None:
    """Wait for all batches but the last, so that the next one is prepared while the last one computes."""
    launched.append(torch.cuda.current_stream(device).record_event())
    if len(launched) > 1:
        launched.pop(0).synchronize()


class BatchedInference:
    """An :class:`InferenceRRLNet` on any number of patches or pairs; scores are returned on the CPU.

    All methods take `batch_size` (None for the default of the device) and `progress`, whether to show a progress bar.
    """

    def __init__(self, network: InferenceRRLNet) -> None:
        self.network, self.device, self.dtype = network, network.device, network.dtype

    def score(
        self, source_a: PatchSource, source_b: PatchSource, batch_size: int | None, progress: bool = False
    ) -> Tensor:
        """Scores (N,) of N pairs."""
        scores = torch.empty(len(source_a), dtype=torch.float32, device=self.device)

        def work(start: int, stop: int) -> None:
            maps_a = self.network.encode(source_a.batch(start, stop, self.device), "a")
            maps_b = self.network.encode(source_b.batch(start, stop, self.device), "b")
            scores[start:stop] = self.network.score(maps_a, maps_b)

        self._run(work, len(scores), batch_size, "scoring" if progress else "")
        return self._checked(scores)

    def encode(
        self, source: PatchSource, band: Band, batch_size: int | None, progress: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """Maps, (N, C, H, W) each, and descriptors (N, dim) of N patches, on the device."""
        of_none = self.network.encode(source.batch(0, 0, self.device), band)  # maps of 0 patches, for their shapes
        maps = [
            torch.empty((len(source), *m.shape[1:]), dtype=m.dtype, device=m.device, memory_format=torch.channels_last)
            for m in of_none
        ]
        dim = self.network.config.descriptor_dim
        descriptors = torch.empty(len(source), dim, dtype=torch.float32, device=self.device)

        def work(start: int, stop: int) -> None:
            batch = self.network.encode(source.batch(start, stop, self.device), band)
            descriptors[start:stop] = self.network.describe(batch, band)
            for whole, part in zip(maps, batch, strict=True):
                whole[start:stop] = part

        self._run(work, len(source), batch_size, "encoding" if progress else "")
        return maps, descriptors

    def score_pairs(
        self,
        maps_a: Sequence[Tensor],
        maps_b: Sequence[Tensor],
        pairs: Tensor,
        batch_size: int | None,
        progress: bool = False,
    ) -> Tensor:
        """Scores (P,) of index pairs (P, 2)."""
        scores = torch.empty(len(pairs), dtype=torch.float32, device=self.device)
        pairs = pairs.to(self.device)  # at once: a copy for each batch would wait for the batch before

        def work(start: int, stop: int) -> None:
            rows_a, rows_b = pairs[start:stop].unbind(1)
            scores[start:stop] = self.network.score([m[rows_a] for m in maps_a], [m[rows_b] for m in maps_b])

        self._run(work, len(pairs), batch_size, "scoring" if progress else "")
        return self._checked(scores)

    def score_all(
        self, source_a: PatchSource, source_b: PatchSource, batch_size: int | None, progress: bool = False
    ) -> Tensor:
        """Scores (N, M) of all pairs; the side with fewer patches is encoded whole, the other batch by batch."""
        scores = torch.empty(len(source_a), len(source_b), dtype=torch.float32, device="cpu")
        if len(source_a) < len(source_b):
            maps_a, _ = self.encode(source_a, "a", batch_size)

            def work(start: int, stop: int) -> None:
                maps = self.network.encode(source_b.batch(start, stop, self.device), "b")
                scores[:, start:stop] = self.score_grid(maps_a, maps, batch_size)
        else:
            maps_b, _ = self.encode(source_b, "b", batch_size)

            def work(start: int, stop: int) -> None:
                maps = self.network.encode(source_a.batch(start, stop, self.device), "a")
                scores[start:stop] = self.score_grid(maps, maps_b, batch_size)

        self._run(work, max(scores.shape), batch_size, "scoring" if progress else "")
        return scores

    def score_grid(
        self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], batch_size: int | None, progress: bool = False
    ) -> Tensor:
        """Scores (N, M) of all pairs of encoded patches, in nearly square tiles of at most a batch of pairs."""
        size = choose_batch_size(batch_size, self.device, self.dtype)
        n, m = len(maps_a[0]), len(maps_b[0])
        scores = torch.empty(n, m, dtype=torch.float32, device=self.device)
        height = max(1, min(n, max(math.isqrt(size), size // max(1, m))))

        def score_rows(top: int, bottom: int, size: int) -> int:
            """Score a strip of rows, and return the batch size that fitted into memory."""
            strip = [stage[top:bottom] for stage in maps_a]

            def work(start: int, stop: int) -> None:
                tile = self.network.score_all(strip, [stage[start:stop] for stage in maps_b])
                scores[top:bottom, start:stop] = tile

            return height * run_in_batches(work, m, max(1, size // height), self.device)

        with tqdm(total=n, desc="scoring") if progress else nullcontext() as bar:
            for top in range(0, n, height):
                bottom = min(top + height, n)
                size = score_rows(top, bottom, size)
                if bar is not None:
                    bar.update(bottom - top)
        return self._checked(scores)

    def _run(self, work: Callable[[int, int], None], count: int, batch_size: int | None, progress: str) -> None:
        run_in_batches(work, count, choose_batch_size(batch_size, self.device, self.dtype), self.device, progress)

    def _checked(self, scores: Tensor) -> Tensor:
        """Scores on the CPU, which waits for the device.

        Raises:
            ScoringError: float16 overflowed.
        """
        scores = scores.cpu()
        if self.dtype == torch.float16 and scores.isnan().any():
            raise ScoringError("dtype float16 overflows with these weights on these patches: use dtype=torch.float32")
        return scores
