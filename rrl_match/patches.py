"""Patches of any accepted kind -> tensors (N, 1, S, S) in [0, 1]; and patches cut out of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ArrayPatches: TypeAlias = "NDArray[np.generic] | Sequence[NDArray[np.generic]]"
TensorPatches: TypeAlias = "Tensor | Sequence[Tensor]"
Patches: TypeAlias = "ArrayPatches | TensorPatches"
Keypoints: TypeAlias = "NDArray[np.generic] | Tensor | Sequence[cv2.KeyPoint] | Sequence[Sequence[float]]"
ValueRange: TypeAlias = "tuple[float, float]"
ValueRanges: TypeAlias = "ValueRange | tuple[ValueRange | None, ValueRange | None]"  # for both bands, or for each

FloatImage: TypeAlias = "NDArray[np.float16] | NDArray[np.float32] | NDArray[np.float64]"
ScalarT = TypeVar("ScalarT", bound=np.generic)

BT601 = (0.299, 0.587, 0.114)
_FULL_RANGE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ROUNDING = 1e-5  # tolerated overshoot of floats beyond [0, 1], as resampling produces it
_REMAP_LIMIT = 32766  # rows or columns that cv2.remap can address


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
                        f"{name} mixes arrays and tensors: {name}[{k}] is {_kind(item)}, {name}[0] {_kind(first)}"
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
            f"{name} must be a NumPy array, a torch tensor or a list of them, got {_kind(value)}: "
            "convert it with numpy.asarray"
        )
    if isinstance(value, Tensor):
        _check_dense(value, name)
    if not _is_accepted(value):
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


def _to_array(value: Tensor, name: str) -> NDArray[Any]:
    """The values of a dense tensor; bfloat16, unknown to NumPy, as float32."""
    _check_dense(value, name)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _is_accepted(value: NDArray[Any] | Tensor) -> bool:
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


def _kind(value: Any) -> str:
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
        image = _to_array(image, "image")
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("image is a masked array, which is not supported: pass image.compressed()")
    if not isinstance(image, np.ndarray) or not _is_accepted(image):
        what = image.dtype if isinstance(image, np.ndarray) else _kind(image)
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


@overload
def extract_patches(
    image: FloatImage, keypoints: Keypoints, patch_size: int = 64, *, upright: bool = True
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...


@overload
def extract_patches(
    image: NDArray[ScalarT], keypoints: Keypoints, patch_size: int = 64, *, upright: bool = True
) -> tuple[NDArray[ScalarT], NDArray[np.bool_]]: ...


@overload
def extract_patches(
    image: Tensor, keypoints: Keypoints, patch_size: int = 64, *, upright: bool = True
) -> tuple[Tensor, Tensor]: ...


def extract_patches(
    image: NDArray[np.generic] | Tensor, keypoints: Keypoints, patch_size: int = 64, *, upright: bool = True
) -> tuple[NDArray[np.generic] | Tensor, NDArray[np.bool_] | Tensor]:
    """Cut patches around keypoints.

    An upright patch at (x, y) covers [x - S/2, x + S/2) x [y - S/2, y + S/2), where S is `patch_size`: pixel (x, y) of
    the image, with pixel centres at integers, is pixel (S/2, S/2) of the patch. At fractional centres, patches are
    interpolated bilinearly (to 1/32 pixel, the resolution of OpenCV).

    Args:
        image: (H, W), (H, W, 1) or RGB (H, W, 3), converted to grey by BT.601; uint8, uint16 or floating point.
        keypoints: (N, 2) xy in pixels, a list of ``cv2.KeyPoint``, or kornia's LAFs (N, 2, 3) or (1, N, 2, 3).
        patch_size: S, even, at most 4096.
        upright: use the centres of the keypoints only. If false, apply their rotation and scale too: the patch of a LAF
            covers the image of [-1, 1) x [-1, 1) under its matrix; that of a ``cv2.KeyPoint`` is rotated by its angle
            and is six times its size wide, as for a SIFT descriptor. Patches that shrink by more than half are cut from
            a smaller version of the image.

    Returns:
        patches (N, S, S) of the image's dtype (float32 for any float), and valid (N,) bool: whether a patch lies inside
        the image. Pixels outside it are filled by reflection. Arrays for an array; tensors on its device for a tensor.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> image = np.arange(100 * 100, dtype=np.uint16).reshape(100, 100)
    >>> patches, valid = extract_patches(image, [(50, 40), (99, 40)])
    >>> patches.shape
    (2, 64, 64)
    >>> valid
    array([ True, False])
    >>> bool(patches[0, 32, 32] == image[40, 50])
    True
    """
    if not isinstance(patch_size, (int, np.integer)) or not 2 <= patch_size <= 4096 or patch_size % 2:
        raise ValueError(f"patch_size must be even, from 2 to 4096, got {patch_size!r}")
    grey = as_grey(image, "image")
    if upright:
        patches, valid = _upright(grey, as_points(keypoints, "keypoints"), patch_size)
    else:
        patches, valid = _warped(grey, as_frames(keypoints, "keypoints", patch_size), patch_size)
    if isinstance(image, Tensor):
        return torch.from_numpy(patches).to(image.device), torch.from_numpy(valid).to(image.device)
    return patches, valid


def _upright(
    grey: NDArray[Any], centres: NDArray[np.float64], patch_size: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    h, w = grey.shape
    corner = centres - patch_size // 2  # position of the patch's first pixel
    valid: NDArray[np.bool_] = np.all((corner >= 0) & (corner + patch_size <= (w, h)), axis=1)
    patches = np.empty((len(centres), patch_size, patch_size), grey.dtype)
    whole = valid & np.all(centres == np.floor(centres), axis=1)
    if whole.any():  # copied without interpolation
        windows = np.lib.stride_tricks.sliding_window_view(grey, (patch_size, patch_size))
        x, y = corner[whole].astype(np.int64).T
        patches[whole] = windows[y, x]
    rest = np.flatnonzero(~whole)
    at_once = 1 if max(h, w) > _REMAP_LIMIT else _REMAP_LIMIT // patch_size
    for rows in (rest[k : k + at_once] for k in range(0, len(rest), at_once)):
        patches[rows] = _interpolated(grey, corner[rows], patch_size)
    return patches, valid


def _warped(grey: NDArray[Any], frames: NDArray[np.float64], size: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Patches of frames (N, 2, 3), which map offsets from pixel (S/2, S/2) of a patch to positions in the image."""
    h, w = grey.shape
    side = np.arange(size) - size / 2
    offsets = np.stack([*np.meshgrid(side, side), np.ones((size, size))])  # (3, S, S)
    corners = frames @ offsets[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # (N, 2, 4)
    valid: NDArray[np.bool_] = np.all((corners >= 0) & (corners <= np.array([[w - 1], [h - 1]])), axis=(1, 2))
    patches = np.empty((len(frames), size, size), grey.dtype)
    shrunk = np.sqrt(np.abs(np.linalg.det(frames[:, :, :2])))
    levels = np.floor(np.log2(np.clip(shrunk, 1, 2**10))).astype(int)
    to_offsets = np.array([[1, 0, -size / 2], [0, 1, -size / 2], [0, 0, 1]])  # from pixels of a patch
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    reduced = grey
    for level in range(levels.max(initial=0) + 1):
        rows = np.flatnonzero((levels == level) & valid)
        # The part of the image that a patch needs, from its first pixel to beyond its last one.
        first = np.floor(corners[rows].min(2) / 2**level).astype(int)
        last = np.floor(corners[rows].max(2) / 2**level).astype(int) + 2
        matrices = frames[rows] @ to_offsets / 2**level
        matrices[:, :, 2] -= first
        for row, matrix, (x0, y0), (x1, y1) in zip(rows, matrices, first.tolist(), last.tolist(), strict=True):
            part = reduced[y0:y1, x0:x1]
            patches[row] = cv2.warpAffine(part, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for row in np.flatnonzero((levels == level) & ~valid):  # may lie anywhere, and needs reflection
            x, y = frames[row].reshape(2, 3) @ offsets.reshape(3, -1) / 2**level
            patches[row] = _remapped(reduced, x.reshape(size, size), y.reshape(size, size))
        if level < levels.max(initial=0):
            reduced = cv2.pyrDown(reduced)
    return patches, valid


def _remapped(grey: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[Any]:
    """Values at (x, y), reflected at the border of the image; only the part of it that they need is read."""
    h, w = grey.shape
    x, y = np.clip(x, -w + 1, 2 * w - 2), np.clip(y, -h + 1, 2 * h - 2)  # the end of the first reflection
    x, y = np.minimum(np.abs(x), 2 * (w - 1) - np.abs(x)), np.minimum(np.abs(y), 2 * (h - 1) - np.abs(y))
    x0, y0 = int(x.min()), int(y.min())
    part = grey[y0 : int(y.max()) + 2, x0 : int(x.max()) + 2]
    at = (x - x0).astype(np.float32), (y - y0).astype(np.float32)
    values: NDArray[Any] = cv2.remap(part, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return values


def as_frames(keypoints: Any, name: str, patch_size: int) -> NDArray[np.float64]:
    """LAFs or ``cv2.KeyPoint`` as (N, 2, 3), which map pixel offsets from a patch's centre to positions in the image.

    Raises:
        TypeError, ValueError: naming the argument; positions alone have no frame.
    """
    centres = as_points(keypoints, name)
    if not len(centres):
        return np.empty((0, 2, 3))
    if isinstance(keypoints, (list, tuple)) and isinstance(keypoints[0], cv2.KeyPoint):
        angle = np.deg2rad([max(k.angle, 0.0) for k in keypoints])  # -1 means no angle
        scale = np.array([6 * k.size / patch_size for k in keypoints])
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        frames = np.stack([np.stack([c, -s, centres[:, 0]], 1), np.stack([s, c, centres[:, 1]], 1)], 1)
    else:
        values = _to_array(keypoints, name) if isinstance(keypoints, Tensor) else np.asarray(keypoints)
        if values.shape[-2:] != (2, 3):
            raise ValueError(f"{name} must be LAFs (N, 2, 3) or cv2.KeyPoint for upright=False, got {values.shape}")
        frames = values.reshape(-1, 2, 3).astype(np.float64)
        frames[:, :, :2] *= 2 / patch_size
    if not np.isfinite(frames).all():
        raise ValueError(f"{name} holds NaN or infinite sizes or angles: remove these keypoints")
    return frames


def _interpolated(grey: NDArray[Any], corner: NDArray[np.float64], size: int) -> NDArray[Any]:
    """Patches (n, size, size) whose first pixels lie at `corner` (n, 2) xy; one at a time in very large images."""
    h, w = grey.shape
    # Corners far away would overflow remap's integers; nearer ones give reflections just as well.
    corner = np.clip(corner, -2.0 * size, np.array([w, h]) + 2.0 * size)
    if max(h, w) > _REMAP_LIMIT:  # only the neighbourhood, with room for reflections
        x0, y0 = np.maximum(corner[0] - 6 * size, 0).astype(int)
        grey = grey[y0 : y0 + 13 * size, x0 : x0 + 13 * size]
        corner = corner - (x0, y0)
    side = np.arange(size, dtype=np.float32)
    shape = len(corner), size, size
    x = np.broadcast_to(corner[:, :1, None].astype(np.float32) + side, shape).reshape(-1, size)
    y = np.broadcast_to(corner[:, 1:, None].astype(np.float32) + side[:, None], shape).reshape(-1, size)
    return cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101).reshape(shape)


def as_grey(image: NDArray[Any] | Tensor, name: str) -> NDArray[Any]:
    """An image as (H, W) uint8, uint16 or float32 in native byte order.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if isinstance(image, Tensor):
        image = _to_array(image, name)
    if not isinstance(image, np.ndarray) or isinstance(image, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {_kind(image)}")
    if not _is_accepted(image):
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


def as_points(keypoints: Any, name: str) -> NDArray[np.float64]:
    """Keypoints of any accepted kind as (N, 2) xy, float64.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if isinstance(keypoints, Tensor):
        keypoints = _to_array(keypoints, name)
    if isinstance(keypoints, (list, tuple)) and keypoints and all(isinstance(k, cv2.KeyPoint) for k in keypoints):
        keypoints = [k.pt for k in keypoints]
    try:
        points = np.asarray(keypoints)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be (N, 2) xy, cv2.KeyPoint or LAFs, got {_kind(keypoints)}") from error
    if points.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be (N, 2) xy, cv2.KeyPoint or LAFs, got {_kind(keypoints)} of {points.dtype}")
    points = points.astype(np.float64)
    if points.size == 0 and points.ndim <= 2:
        return np.empty((0, 2))
    if points.ndim == 4 and points.shape[0] == 1:
        points = points[0]
    if points.ndim == 3 and points.shape[1:] == (2, 3):
        points = points[..., 2]
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name} must have shape (N, 2), xy in pixels, or be LAFs (1, N, 2, 3), got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name} holds NaN or infinite coordinates: remove these keypoints")
    return points
