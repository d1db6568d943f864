"""Check of an installation: scores of the bundled weights on every device in every dtype, and versions."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rrl_match._version import __version__
from rrl_match.hub import bundled_names, stored_scores
from rrl_match.inference import cpu_has_bf16
from rrl_match.matcher import RRLMatcher

# Largest accepted difference from the scores stored at release, which were computed in float32 on a CPU: two to three
# times the effect of reduced precision on real patches. By default, float32 on CUDA computes in TF32.
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TF32_BOUND = 2e-2


@dataclass(frozen=True)
class Check:
    """Result of scoring the stored pairs once.

    Attributes:
        weights: bundled name.
        device, dtype: used for the computation.
        deviation: largest difference from the expected scores; NaN if scoring failed.
        bound: largest deviation that passes.
        released: whether the expected scores were stored at release; otherwise they are those of this CPU in float32.
        problem: why scoring failed, or "".
    """

    weights: str
    device: str
    dtype: torch.dtype
    deviation: float
    bound: float
    released: bool
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether scoring succeeded and the deviation is within the bound."""
        return self.deviation <= self.bound  # false for NaN


def stored_pairs(size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Synthetic patches of band A and B, (8, size, size) uint8; integer arithmetic, so identical on every machine.

    Band B shows the pattern of pair k shifted by more and more pixels. The scores therefore cover the whole range, and
    for any weights some of them are intermediate, where deviations show most.
    """
    rows, columns = np.mgrid[:size, :size]

    def wave(phase: Any, period: int) -> Any:
        return np.abs(phase % (2 * period) - period) * 255 // period

    def pattern(k: int, shift: int) -> Any:
        x, y = columns + shift, rows + shift
        hills = wave((3 + k) * x + (7 - 2 * k) * y, 61 + 8 * k)
        rings = wave(((x - 13 * k) ** 2 + (y - 40) ** 2) // 8, 29 + 4 * k)
        fields = (x // (9 + k) * 5 + y // (11 - k) * 3) % 7 * 36
        return (2 * hills + 3 * rings + 3 * fields) // 8

    patches_a = np.stack([pattern(k % 4, 0) for k in range(8)])
    shifts = (0, 11, 12, 13, 14, 15, 16, 24)
    patches_b = np.stack([(255 - pattern(k % 4, shift)) ** 2 // 255 for k, shift in enumerate(shifts)])
    return patches_a.astype(np.uint8), patches_b.astype(np.uint8)


def reference_scores(matcher: RRLMatcher) -> list[float]:
    """The scores of :func:`stored_pairs` that the manifest of released weights stores.

    Raises:
        ValueError: the matcher does not compute in float32 on a CPU.
    """
    if (matcher.device.type, matcher.dtype) != ("cpu", torch.float32):
        raise ValueError(f"matcher must compute in float32 on the CPU, got {matcher.dtype} on {matcher.device}")
    scores = matcher.score(*stored_pairs(matcher.patch_size))
    return [round(float(score), 6) for score in scores]


def run_checks(names: Sequence[str] | None = None) -> Iterator[Check]:
    """Score the stored pairs with bundled weights, on every available device in every dtype.

    Args:
        names: of bundled weights (default: all).
    """
    devices = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    for name in bundled_names() if names is None else names:
        expected = stored_scores(name)
        released = expected is not None
        for device in devices:
            for dtype in BOUNDS:
                scores, problem = _try_scoring(name, device, dtype)
                if expected is None and scores is not None:
                    expected = scores.tolist()  # the first are those of the CPU in float32
                deviation = float("nan") if scores is None else float(np.abs(scores - np.asarray(expected)).max())
                bound = _TF32_BOUND if device != "cpu" and dtype == torch.float32 else BOUNDS[dtype]
                yield Check(name, device, dtype, deviation, bound, released, problem)


def _try_scoring(name: str, device: str, dtype: torch.dtype) -> tuple[NDArray[np.float32] | None, str]:
    """Scores of the stored pairs, or None and the reason."""
    try:
        matcher = RRLMatcher.from_pretrained(name, device=device, dtype=dtype)
        return matcher.score(*stored_pairs(matcher.patch_size)), ""
    except (ValueError, RuntimeError) as error:  # changed weights, overflow, or errors of PyTorch
        return None, f"{type(error).__name__}: {error}"


def versions() -> dict[str, str]:
    """For bug reports: versions of rrl-match and its dependencies, and the system."""
    found = {"rrl_match": __version__}
    for name in ("torch", "numpy", "cv2", "huggingface_hub", "safetensors"):
        found[name] = str(import_module(name).__version__)
    found["python"] = platform.python_version()
    found["system"] = f"{platform.platform()}, {sys.byteorder} endian"
    native = "native" if cpu_has_bf16() else "emulated"
    found["cpu"] = (
        f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {native}, {torch.get_num_threads()} threads of PyTorch"
    )
    for k in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(k)
        found[f"cuda:{k}"] = f"{torch.cuda.get_device_name(k)}, capability {major}.{minor}, CUDA {torch.version.cuda}"
    return found
