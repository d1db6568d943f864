"""Whether an installation computes what it should: bundled weights in every dtype on every device; and its versions."""

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
from rrl_match.inference import cpu_has_bf16
from rrl_match.matcher import RRLMatcher
from rrl_match.pretrained import bundled_names, stored_scores

# How far scores may lie from those of the release, which are float32's on a CPU. Twice to three times what reduced
# precision costs real patches; cuDNN's float32 is TF32 unless the caller says otherwise.
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TF32_BOUND = 2e-2


@dataclass(frozen=True)
class Check:
    """Outcome of scoring the stored pairs once.

    Attributes:
        weights: their bundled name.
        device, dtype: that computed.
        deviation: greatest difference of a score from what it should be; NaN where there are no scores.
        bound: the most that passes.
        released: whether it should be what the release stored, or, where it stored nothing, what this CPU computes
            in float32.
        problem: why there are no scores, or "".
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
        """Whether there are scores and they lie within the bound."""
        return self.deviation <= self.bound  # not so for NaN


def stored_pairs(size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Patches of band A and B, (8, size, size) uint8, made of whole numbers, so of the same bits on every machine.

    Band B sees the place of pair k displaced by ever more pixels: the scores go from one end to the other, and
    whatever the weights, some lie between, where they tell most.
    """
    rows, columns = np.mgrid[:size, :size]

    def wave(along: Any, period: int) -> Any:
        return np.abs(along % (2 * period) - period) * 255 // period

    def place(k: int, displaced: int) -> Any:
        x, y = columns + displaced, rows + displaced
        hills = wave((3 + k) * x + (7 - 2 * k) * y, 61 + 8 * k)
        rings = wave(((x - 13 * k) ** 2 + (y - 40) ** 2) // 8, 29 + 4 * k)
        fields = (x // (9 + k) * 5 + y // (11 - k) * 3) % 7 * 36
        return (2 * hills + 3 * rings + 3 * fields) // 8

    patches_a = np.stack([place(k % 4, 0) for k in range(8)])
    patches_b = np.stack([(255 - place(k % 4, by)) ** 2 // 255 for k, by in enumerate((0, 11, 12, 13, 14, 15, 16, 24))])
    return patches_a.astype(np.uint8), patches_b.astype(np.uint8)


def reference_scores(matcher: RRLMatcher) -> list[float]:
    """What the manifest of released weights keeps of a matcher: its scores of :func:`stored_pairs`.

    Raises:
        ValueError: the matcher does not compute in float32 on a CPU.
    """
    if (matcher.device.type, matcher.dtype) != ("cpu", torch.float32):
        raise ValueError(f"matcher must compute in float32 on the CPU, got {matcher.dtype} on {matcher.device}")
    scores = matcher.score(*stored_pairs(matcher.patch_size))
    return [round(float(score), 6) for score in scores]


def run_checks(names: Sequence[str] | None = None) -> Iterator[Check]:
    """Score the stored pairs with each of the bundled weights, in every dtype on every device that is here.

    Args:
        names: of bundled weights; all of them unless given.
    """
    devices = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    for name in bundled_names() if names is None else names:
        expected = stored_scores(name)
        released = expected is not None
        for device in devices:
            for dtype, bound in BOUNDS.items():
                if device != "cpu" and dtype == torch.float32:
                    bound = _TF32_BOUND
                deviation, problem = float("nan"), ""
                try:
                    matcher = RRLMatcher.from_pretrained(name, device=device, dtype=dtype)
                    scores = matcher.score(*stored_pairs(matcher.patch_size))
                    expected = scores if expected is None else expected  # the first are the CPU's in float32
                    deviation = float(np.abs(scores - np.asarray(expected)).max())
                except (ValueError, RuntimeError) as error:  # weights that changed, overflow; PyTorch's own
                    problem = f"{type(error).__name__}: {error}"
                yield Check(name, device, dtype, deviation, bound, released, problem)


def versions() -> dict[str, str]:
    """What a bug report should say: versions of rrl-match and what it stands on, and what it runs on."""
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
