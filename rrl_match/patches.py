"""Arrays and tensors of any accepted kind -> (N, 1, S, S) in [0, 1]: shapes, value ranges, grey from colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ArrayPatches: TypeAlias = NDArray[np.generic] | Sequence[NDArray[np.generic]]
TensorPatches: TypeAlias = Tensor | Sequence[Tensor]
Patches: TypeAlias = ArrayPatches | TensorPatches
ValueRange: TypeAlias = tuple[float, float]
ValueRanges: TypeAlias = ValueRange | tuple[ValueRange | None, ValueRange | None]  # for both bands, or for each

BT601 = (0.299, 0.587, 0.114)
_FULL_RANGE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ROUNDING = 1e-5  # tolerated overshoot of floats beyond [0, 1], as resampling produces it


class PatchSource:
    """Checked patches of any accepted kind, converted batch by batch to bound the memory.

    Args:
        patches: NumPy array, tensor, or a list or tuple of single patches; (S, S), (N, S, S), (N, 1, S, S),
            (N, S, S, 1) or RGB as (N, S, S, 3) or (N, 3, S, S); uint8, uint16 or floating point.
        name: of the argument, for error messages.
        size: S, in pixels.
        value_range: grey values that become 0 and 1; values beyond are clipped. Default: the full range of uint8 and
            uint16; floats must lie in [0, 1].

    Raises:
        TypeError: the type or dtype is not supported.
        ValueError: wrong shape, size or value range.
    """

    def __init__(self, patches: Patches, name: str, size: int, value_range: ValueRange | None = None) -> None:
        self.name, self.size = name, size
        self.value_range = checked_range(value_range, name)
        self.is_tensor, self.device = False, torch.device("cpu")
        self.single = False
        items = patches if isinstance(patches, (list, tuple)) else None
        first = items[0] if items else patches
        if isinstance(first, Tensor):
            self.is_tensor, self.device = True, first.device
        if items is None:
            _check_kind(patches, name)
            shape = tuple(patches.shape)  # type: ignore[union-attr]
            self.single = _is_single(shape, size)
            _check_shape(shape, size, name, batched=not self.single)
            whole = patches if self.is_tensor else np.asarray(patches)  # subclasses, such as np.matrix, as plain arrays
            self._items: Any = whole[None] if self.single else whole  # type: ignore[call-overload]
        else:
            for k, item in enumerate(items):
                _check_kind(item, f"{name}[{k}]")
                if isinstance(item, Tensor) != self.is_tensor:
                    raise TypeError(
                        f"{name} mixes arrays and tensors: {name}[{k}] is {kind_of(item)}, {name}[0] {kind_of(first)}"
                    )
                _check_shape(tuple(item.shape), size, f"{name}[{k}]", batched=False)
            self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Rows start..stop as float32 (n, 1, S, S) in [0, 1] on `device`."""
        rows = self._items[start:stop]
        if isinstance(rows, (list, tuple)):
            if not rows:
                return torch.empty(0, 1, self.size, self.size, dtype=torch.float32, device=device)
            return torch.cat(
                [self._convert(_to_tensor(row)[None], device, f"{self.name}[{k}]") for k, row in enumerate(rows, start)]
            )
        return self._convert(_to_tensor(rows), device, self.name)

    def grey(self) -> NDArray[np.float32]:
        """All patches (N, S, S) in [0, 1]."""
        return self.batch(0, len(self), torch.device("cpu"))[:, 0].numpy()

    def like_input(self, result: Tensor) -> Any:
        """A result as an array (or scalar) if the patches were arrays, else as a tensor on their device."""
        return result.to(self.device) if self.is_tensor else result.cpu().numpy()[()]

    def _convert(self, x: Tensor, device: torch.device, name: str) -> Tensor:
        """Patches of any accepted shape and dtype to float32 (n, 1, S, S) in [0, 1]."""
        x = self._normalise(_copy_to(x.detach(), device), name)
        if x.shape[1:] == (self.size, self.size, 3):
            x = _grey(*x.unbind(-1))
        elif x.shape[1:] == (3, self.size, self.size):
            x = _grey(*x.unbind(1))
        return x.reshape(len(x), 1, self.size, self.size)

    def _normalise(self, x: Tensor, name: str) -> Tensor:
        """Values to float32 in [0, 1].

        Raises:
            ValueError: NaN, infinite values, or floats out of range.
        """
        full_range = _FULL_RANGE.get(x.dtype)
        x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        lowest, highest = 0.0, 0.0
        if full_range is None and x.numel():
            # NaN or infinite if any value is. Both are fetched at once, because each fetch waits for the device.
            lowest, highest = torch.stack(torch.aminmax(x)).tolist()
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError(
                f"{name} holds NaN or infinite values: replace them, e.g. with numpy.nan_to_num, "
                "or leave these patches out"
            )
        if self.value_range is not None:
            low, high = self.value_range
            # In float64, so that any range, such as a narrow one far from 0, keeps its resolution.
            return ((x.double() - low) / (high - low)).clamp(0, 1).float()
        if full_range is not None:
            return x / full_range
        if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
            raise ValueError(
                f"{name} holds floats from {lowest:g} to {highest:g}, expected [0, 1]: divide by the full range, "
                "or pass value_range=(low, high), the values that become black and white"
            )
        return x.clamp(0, 1).float()


def paired_sources(
    patches_a: Patches, patches_b: Patches, size: int, value_range: ValueRanges | None
) -> tuple[PatchSource, PatchSource]:
    """Checked patches of both bands, both arrays or both tensors.

    Raises:
        TypeError, ValueError: naming `patches_a`, `patches_b` or `value_range`.
    """
    range_a, range_b = range_per_band(value_range)
    source_a = PatchSource(patches_a, "patches_a", size, range_a)
    source_b = PatchSource(patches_b, "patches_b", size, range_b)
    if source_a.is_tensor != source_b.is_tensor and len(source_a) and len(source_b):
        raise TypeError("patches_a and patches_b must both be arrays or both tensors: convert with torch.as_tensor")
    return source_a, source_b


def equal_sources(
    patches_a: Patches, patches_b: Patches, size: int, value_range: ValueRanges | None, otherwise: str
) -> tuple[PatchSource, PatchSource]:
    """:func:`paired_sources` of equally many patches; `otherwise` says what to do if they are not.

    Raises:
        TypeError, ValueError: naming `patches_a`, `patches_b` or `value_range`.
    """
    source_a, source_b = paired_sources(patches_a, patches_b, size, value_range)
    if len(source_a) != len(source_b):
        raise ValueError(
            f"patches_a and patches_b must have the same length, got {len(source_a)} and {len(source_b)}: {otherwise}"
        )
    return source_a, source_b


def _copy_to(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and x.device.type == "cpu":
        # Through pinned memory, neither side waits for the other. The copy is our own, because the caller may write to
        # theirs, pinned or not, as soon as we return.
        staged = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True).copy_(x)
        return staged.to(device, non_blocking=True)
    return x.to(device)


def _grey(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    # Not a matrix product, which would depend on the autocast of the caller.
    return BT601[0] * red + BT601[1] * green + BT601[2] * blue


def _check_kind(value: Any, name: str) -> None:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, which is not supported: fill masked values with .filled(value)")
    if not isinstance(value, (np.ndarray, Tensor)):
        raise TypeError(
            f"{name} must be a NumPy array, a torch tensor or a list of them, got {kind_of(value)}: "
            "convert it with numpy.asarray"
        )
    if isinstance(value, Tensor):
        _check_dense(value, name)
    if not is_accepted(value):
        raise TypeError(
            f"{name} must be uint8, uint16 or floating point, got {value.dtype}: convert it to float32 and pass "
            "value_range=(low, high), the values that become black and white"
        )


def _check_shape(shape: tuple[int, ...], size: int, name: str, batched: bool) -> None:
    s = size
    accepted = [(s, s), (s, s, 1), (s, s, 3), (1, s, s), *([(3, s, s)] if batched else [])]
    if (shape[1:] if batched else shape) in accepted:
        return
    expected = f"({s}, {s}), (N, {s}, {s}), (N, 1, {s}, {s}), (N, {s}, {s}, 1), (N, {s}, {s}, 3) or (N, 3, {s}, {s})"
    if len(shape) >= 3 and shape[-1] == 4:
        way_out = "drop alpha, patches[..., :3]"
    elif len(shape) == 4 and shape[1] == 4:
        way_out = "drop alpha, patches[:, :3]"
    elif len(shape) < 2 or len(shape) > 4 or (shape == (3, s, s) and not batched):
        way_out = "stack patches along the first axis"
    else:
        way_out = f"patches are never resized, cut {s} x {s} pixels around keypoints with rrl_match.extract_patches"
    raise ValueError(f"{name} must have shape {expected}, got {shape}: {way_out}")


def _check_dense(value: Tensor, name: str) -> None:
    if value.layout != torch.strided or value.device.type == "meta":
        raise TypeError(
            f"{name} must be a dense tensor with values, got {value.layout} on {value.device}: use .to_dense()"
        )


def to_array(value: Tensor, name: str) -> NDArray[Any]:
    """The values of a dense tensor; bfloat16, unknown to NumPy, as float32."""
    _check_dense(value, name)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def is_accepted(value: NDArray[Any] | Tensor) -> bool:
    if isinstance(value, Tensor):
        return value.dtype in _FULL_RANGE or value.dtype in _FLOATS
    return value.dtype.kind == "f" or (value.dtype.kind == "u" and value.dtype.itemsize <= 2)


def _is_single(shape: tuple[int, ...], size: int) -> bool:
    return shape in [(size, size), (size, size, 1), (size, size, 3)]


def _to_tensor(values: NDArray[Any] | Tensor) -> Tensor:
    """A tensor of the same values, for arrays of any strides and byte order, long doubles and read-only memory."""
    if isinstance(values, Tensor):
        return values
    dtype = values.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    copied = np.array(values, dtype=dtype, order="C", copy=True)
    return torch.from_numpy(copied)


def checked_range(value_range: Any, name: str) -> ValueRange | None:
    """(low, high) as floats, or None; `name` is the argument that it applies to.

    Raises:
        TypeError, ValueError: not two finite numbers with low < high.
    """
    if value_range is None:
        return None
    try:
        low, high = (float(v) for v in value_range)
    except (TypeError, ValueError) as error:
        raise TypeError(f"value_range for {name} must be two numbers (low, high), got {value_range!r}") from error
    if not (np.isfinite(low) and np.isfinite(high) and low < high and np.isfinite(high - low)):
        raise ValueError(f"value_range for {name} must be finite with low < high, got ({low:g}, {high:g})")
    return low, high


def range_per_band(value_range: Any) -> tuple[Any, Any]:
    """Split a value range for both bands, or a pair of ranges (or None), into one for each band."""
    if value_range is None:
        return None, None
    try:
        first, second = value_range
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"value_range must be (low, high), or one such pair or None for each band, got {value_range!r}"
        ) from error
    per_band = any(v is None or np.ndim(v) for v in (first, second))
    return (first, second) if per_band else (value_range, value_range)


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy."""
    return isinstance(value, (int, float, np.integer, np.floating))


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer of Python or NumPy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def kind_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def percentile_range(image: NDArray[np.generic] | Tensor, low: float = 0.5, high: float = 99.5) -> ValueRange:
    """The grey values between which most of an image lies, to pass as `value_range`.

    For sensors that use a small part of their range, such as 16-bit thermal frames or radar in dB. Compute it on the
    whole image, or better on a few frames of the sequence, never on a patch: equal temperatures should get equal greys.

    A hot spot (an engine, the sun in a window) smaller than the fraction above `high` is clipped to white and loses its
    details. A larger one stretches the range and leaves the rest with little contrast: lower `high` until the fraction
    above it exceeds the spot. The same holds for cold sky and `low`.

    Args:
        image: an array or tensor of any shape, such as (H, W) or the pixels with data; uint8, uint16 or floating point.
            NaN and infinite values (no data) are left out.
        low, high: percentiles, 0 <= low < high <= 100.

    Returns:
        (low, high) grey values, with low < high even if all pixels are equal.

    Raises:
        TypeError, ValueError: an argument is wrong, or no value is finite.
    """
    if isinstance(image, Tensor):
        image = to_array(image, "image")
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("image is a masked array, which is not supported: pass image.compressed()")
    if not isinstance(image, np.ndarray) or not is_accepted(image):
        what = image.dtype if isinstance(image, np.ndarray) else kind_of(image)
        raise TypeError(f"image must be an array or a tensor, uint8, uint16 or floating point, got {what}")
    if not (is_number(low) and is_number(high) and 0 <= low < high <= 100):
        raise ValueError(f"low and high must be percentiles, 0 <= low < high <= 100, got {low!r} and {high!r}")
    step = max(1, image.size // 1_000_000)  # a million values are enough
    if step % 3 == 0:
        step += 1  # so that all three colours are sampled
    values = image.reshape(-1)[::step]
    values = values[np.isfinite(values)].astype(np.float64)
    if not values.size:
        raise ValueError("image has no finite value")
    black, white = (float(v) for v in np.percentile(values, [low, high]))
    return black, white if white > black else float(np.nextafter(np.float32(black), np.float32(np.inf)))


def as_grey(image: NDArray[Any] | Tensor, name: str) -> NDArray[Any]:
    """An image as (H, W) uint8, uint16 or float32 in native byte order.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if isinstance(image, Tensor):
        image = to_array(image, name)
    if not isinstance(image, np.ndarray) or isinstance(image, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {kind_of(image)}")
    if not is_accepted(image):
        raise TypeError(f"{name} must be uint8, uint16 or floating point, got {image.dtype}: convert it")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        way_out = ""
        if image.ndim == 3 and image.shape[2] == 4:
            way_out = ": drop alpha, image[..., :3]"
        elif image.shape[:1] == (3,):
            way_out = ": put the colours last"
        elif image.shape[:1] == (4,):
            way_out = ": put the colours last and drop alpha"
        raise ValueError(f"{name} must have shape (H, W), (H, W, 1) or RGB (H, W, 3), got {image.shape}{way_out}")
    if not image.size:
        raise ValueError(f"{name} is empty: shape {image.shape}")
    dtype = np.float32 if image.dtype.kind == "f" else image.dtype.newbyteorder("=")
    image = np.ascontiguousarray(image, dtype=dtype)
    if dtype == np.float32 and not np.isfinite(image).all():
        raise ValueError(f"{name} holds NaN or infinite values: fill them first, e.g. with numpy.nan_to_num")
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
