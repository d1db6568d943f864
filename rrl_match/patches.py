"""What a user has -> patches (N, 1, S, S) in [0, 1]; and patches cut out of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Patches: TypeAlias = "NDArray[Any] | Tensor | Sequence[NDArray[Any] | Tensor]"
ValueRange: TypeAlias = "tuple[float, float]"

BT601 = (0.299, 0.587, 0.114)
_FULL_RANGE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ROUNDING = 1e-5  # how far floats may overshoot [0, 1], as resampling makes them


class PatchSource:
    """Checked patches of any accepted kind, turned into tensors batch by batch, so that memory stays bounded.

    Args:
        patches: NumPy array, tensor, or a list or tuple of them, each one patch; (S, S), (N, S, S),
            (N, 1, S, S), (N, S, S, 1) or RGB (N, S, S, 3); uint8, uint16 or floating point.
        name: of the argument, for error messages.
        size: S, in pixels.
        value_range: grey values that become 0 and 1, what lies beyond is clipped; unless given, 0 and 255 for
            uint8, 0 and 65535 for uint16, and floats must lie in [0, 1].

    Raises:
        TypeError: not such a thing, or of another dtype.
        ValueError: another shape, size or value range.
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
            self._check_kind(patches, name)
            shape = tuple(patches.shape)  # type: ignore[union-attr]
            self.single = _is_single(shape, size)
            self._check_shape(shape, name, batched=not self.single)
            whole = patches if self.is_tensor else np.asarray(patches)  # of a subclass, as np.matrix, no more than this
            self._items: Any = whole[None] if self.single else whole  # type: ignore[call-overload]
        else:
            for k, item in enumerate(items):
                self._check_kind(item, f"{name}[{k}]")
                if isinstance(item, Tensor) != self.is_tensor:
                    raise TypeError(
                        f"{name} mixes arrays and tensors: {name}[{k}] is {_kind(item)}, {name}[0] {_kind(first)}"
                    )
                self._check_shape(tuple(item.shape), f"{name}[{k}]", batched=False)
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
                [self._grey(_to_tensor(row)[None], device, f"{self.name}[{start + k}]") for k, row in enumerate(rows)]
            )
        return self._grey(_to_tensor(rows), device, self.name)

    def like_input(self, result: Tensor) -> Any:
        """A result in the kind that the patches came in: array (or scalar) for arrays, tensor on their device."""
        return result.to(self.device) if self.is_tensor else result.cpu().numpy()[()]

    def _check_kind(self, value: Any, name: str) -> None:
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"{name} is a masked array, whose masked values RRL-Net cannot leave out: fill them with .filled(value)"
            )
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

    def _check_shape(self, shape: tuple[int, ...], name: str, batched: bool) -> None:
        s = self.size
        accepted = [(s, s), (s, s, 1), (s, s, 3), (1, s, s)]
        if (shape[1:] if batched else shape) in accepted:
            return
        expected = f"({s}, {s}), (N, {s}, {s}), (N, 1, {s}, {s}), (N, {s}, {s}, 1) or (N, {s}, {s}, 3)"
        if len(shape) == 4 and shape[1] == 3:
            way_out = f"put the colours last, as (N, {s}, {s}, 3) in RGB order"
        elif len(shape) >= 3 and shape[-1] == 4:
            way_out = "drop alpha, patches[..., :3]"
        elif len(shape) < 2 or len(shape) > 4:
            way_out = "stack patches along the first axis"
        else:
            way_out = (
                f"nothing is resized silently, cut {s} x {s} pixels around keypoints with rrl_match.extract_patches"
            )
        raise ValueError(f"{name} must have shape {expected}, got {shape}: {way_out}")

    def _grey(self, x: Tensor, device: torch.device, name: str) -> Tensor:
        x = x.detach()
        if device.type == "cuda" and x.device.type == "cpu":
            # By way of pinned memory, neither side waits for the other; of our own, as the caller may write to his,
            # pinned or not, as soon as we return.
            staged = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True).copy_(x)
            x = staged.to(device, non_blocking=True)
        else:
            x = x.to(device)
        integer = x.dtype in _FULL_RANGE
        full_range = _FULL_RANGE.get(x.dtype)
        x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        # infinite or NaN where one value is; fetched at once, as each look waits for the device
        lowest, highest = (0.0, 0.0) if integer or not x.numel() else torch.stack(torch.aminmax(x)).tolist()
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError(
                f"{name} holds NaN or infinite values: replace them, e.g. with numpy.nan_to_num, "
                "or leave these patches out"
            )
        if self.value_range is not None:
            low, high = self.value_range
            x = ((x.double() - low) / (high - low)).clamp(0, 1)  # a range of any size and place keeps its resolution
        elif full_range is not None:
            x = x / full_range
        else:
            if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
                raise ValueError(
                    f"{name} holds floats from {lowest:g} to {highest:g}, expected [0, 1]: divide by the full range, "
                    "or pass value_range=(low, high), the values that become black and white"
                )
            x = x.clamp(0, 1)
        x = x.float()
        if x.ndim == 4 and x.shape[-1] == 3 and x.shape[1] != 1:
            red, green, blue = x.unbind(-1)
            x = BT601[0] * red + BT601[1] * green + BT601[2] * blue  # a matrix product would heed the caller's autocast
        return x.reshape(len(x), 1, self.size, self.size)


def _check_dense(value: Tensor, name: str) -> None:
    if value.layout != torch.strided or value.device.type == "meta":
        raise TypeError(
            f"{name} must be a dense tensor with values, got {value.layout} on {value.device}: use .to_dense()"
        )


def _to_array(value: Tensor, name: str) -> NDArray[Any]:
    """A dense tensor's values; bfloat16, which NumPy does not have, as float32."""
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
    """A tensor of the same values; strides, byte order, long doubles and read-only memory are no matter."""
    if isinstance(values, Tensor):
        return values
    dtype = values.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    copied = np.array(values, dtype=dtype, order="C", copy=True)
    return torch.from_numpy(copied)


def checked_range(value_range: Any, name: str) -> ValueRange | None:
    """(low, high) as floats, or None.

    Raises:
        TypeError, ValueError: naming the argument that it is for.
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
    """(low, high) for both bands, or a pair of such pairs or None, to one for each band."""
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
    """Whether an argument is a real number, of Python's or of NumPy's."""
    return isinstance(value, (int, float, np.integer, np.floating))


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def percentile_range(image: NDArray[Any] | Tensor, low: float = 0.5, high: float = 99.5) -> ValueRange:
    """Grey values that most of a picture lies between, to be passed on as `value_range`.

    For sensors that use a sliver of their range: a 16-bit thermal frame, radar in dB. Take it from the whole picture,
    or better from a few frames of the sequence, never from a patch: the same temperature should be the same grey.

    A hot spot (an engine, the sun in a window) smaller than what `high` leaves out is clipped to white, its details
    with it; a larger one stretches the range, and everything else is left with little contrast. Where a frame has
    such spots, lower `high` to below their share of the picture. The same goes for cold sky and `low`.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3), or any other shape, as of the part of a picture that has data; uint8,
            uint16 or floating point; NaN and infinite values (no data) are left out.
        low, high: percentiles, 0 <= low < high <= 100.

    Returns:
        (low, high) grey values, low < high also for a picture of one value.

    Raises:
        TypeError, ValueError: naming the argument; no value is finite.
    """
    if isinstance(image, Tensor):
        image = _to_array(image, "image")
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("image is a masked array, whose mask would be ignored: pass image.compressed()")
    if not isinstance(image, np.ndarray) or not _is_accepted(image):
        what = image.dtype if isinstance(image, np.ndarray) else _kind(image)
        raise TypeError(f"image must be an array or a tensor, uint8, uint16 or floating point, got {what}")
    if not (is_number(low) and is_number(high) and 0 <= low < high <= 100):
        raise ValueError(f"low and high must be percentiles, 0 <= low < high <= 100, got {low!r} and {high!r}")
    step = max(1, image.size // 1_000_000)  # a million tell as much as all
    values = image.reshape(-1)[:: step + (step % 3 == 0)]  # of all three colours
    values = values[np.isfinite(values)].astype(np.float64)
    if not values.size:
        raise ValueError("image has no finite value")
    black, white = (float(v) for v in np.percentile(values, [low, high]))
    return black, white if white > black else float(np.nextafter(np.float32(black), np.float32(np.inf)))


def extract_patches(
    image: NDArray[Any] | Tensor, keypoints: Any, patch_size: int = 64, *, upright: bool = True
) -> tuple[Any, Any]:
    """Patches around keypoints, upright unless told.

    An upright patch at (x, y) covers [x - S/2, x + S/2) x [y - S/2, y + S/2), S being `patch_size`: pixel (x, y) of the
    picture, pixel centres at integers, is pixel (S/2, S/2) of the patch. Centres between pixels are
    interpolated bilinearly (to 1/32 pixel, OpenCV's resolution).

    Args:
        image: (H, W), (H, W, 1) or RGB (H, W, 3), which is turned to grey by BT.601; uint8, uint16 or floating point.
        keypoints: (N, 2) xy in pixels, a list of ``cv2.KeyPoint``, or kornia's LAFs (N, 2, 3) or (1, N, 2, 3).
        patch_size: S, even, at most 4096.
        upright: take the keypoints' centres alone. If false, patches are turned and scaled as the keypoints say: that
            of a LAF covers what its matrix makes of [-1, 1) x [-1, 1), that of a ``cv2.KeyPoint`` is turned by its
            angle and has six times its size for a side, as SIFT's descriptor has. Patches that are shrunk to less
            than half are cut from a smaller version of the picture.

    Returns:
        patches (N, S, S) of the image's dtype (float32 for any float), and valid (N,) bool, whether a patch lies
        inside the picture; what lies outside is filled by reflection. Arrays, or for a tensor image tensors on its
        device.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> picture = np.arange(100 * 100, dtype=np.uint16).reshape(100, 100)
    >>> patches, valid = extract_patches(picture, [(50, 40), (99, 40)])
    >>> patches.shape
    (2, 64, 64)
    >>> valid
    array([ True, False])
    >>> bool(patches[0, 32, 32] == picture[40, 50])
    True
    """
    if not isinstance(patch_size, (int, np.integer)) or not 2 <= patch_size <= 4096 or patch_size % 2:
        raise ValueError(f"patch_size must be even, from 2 to 4096, got {patch_size!r}")
    grey = as_grey(image, "image")
    if upright:
        patches, valid = _upright(grey, as_points(keypoints, "keypoints"), patch_size)
    else:
        patches, valid = _framed(grey, as_frames(keypoints, "keypoints", patch_size), patch_size)
    if isinstance(image, Tensor):
        return torch.from_numpy(patches).to(image.device), torch.from_numpy(valid).to(image.device)
    return patches, valid


def _upright(
    grey: NDArray[Any], centres: NDArray[np.float64], patch_size: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    h, w = grey.shape
    corner = centres - patch_size // 2  # of the patch's first pixel
    valid: NDArray[np.bool_] = np.all((corner >= 0) & (corner + patch_size <= (w, h)), axis=1)
    patches = np.empty((len(centres), patch_size, patch_size), grey.dtype)
    whole = valid & np.all(centres == np.floor(centres), axis=1)
    if whole.any():  # plain copies, at the speed of memory
        windows = np.lib.stride_tricks.sliding_window_view(grey, (patch_size, patch_size))
        x, y = corner[whole].astype(np.int64).T
        patches[whole] = windows[y, x]
    rest = np.flatnonzero(~whole)
    at_once = 1 if max(h, w) > _REMAP_LIMIT else _REMAP_LIMIT // patch_size
    for rows in (rest[k : k + at_once] for k in range(0, len(rest), at_once)):
        patches[rows] = _interpolated(grey, corner[rows], patch_size)
    return patches, valid


def _framed(grey: NDArray[Any], frames: NDArray[np.float64], size: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Patches of frames (N, 2, 3), which take offsets from a patch's pixel (S/2, S/2) to places in the picture."""
    h, w = grey.shape
    side = np.arange(size) - size / 2
    offsets = np.stack([*np.meshgrid(side, side), np.ones((size, size))])  # (3, S, S)
    corners = frames @ offsets[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # (N, 2, 4)
    valid: NDArray[np.bool_] = np.all((corners >= 0) & (corners <= np.array([[w - 1], [h - 1]])), axis=(1, 2))
    patches = np.empty((len(frames), size, size), grey.dtype)
    shrunk = np.sqrt(np.abs(np.linalg.det(frames[:, :, :2])))
    levels = np.floor(np.log2(np.clip(shrunk, 1, 2**10))).astype(int)
    from_corner = np.array([[1, 0, -size / 2], [0, 1, -size / 2], [0, 0, 1]])  # pixels of a patch to offsets
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    reduced = grey
    for level in range(levels.max(initial=0) + 1):
        here = levels == level
        rows = np.flatnonzero(here & valid)
        first = np.floor(corners[rows].min(2) / 2**level).astype(int)  # of the part that a patch needs: its upper left
        last = np.floor(corners[rows].max(2) / 2**level).astype(int) + 2
        matrices = frames[rows] @ from_corner / 2**level
        matrices[:, :, 2] -= first
        for row, matrix, (x0, y0), (x1, y1) in zip(rows, matrices, first.tolist(), last.tolist(), strict=True):
            part = reduced[y0:y1, x0:x1]
            patches[row] = cv2.warpAffine(part, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for row in np.flatnonzero(here & ~valid):  # may lie anywhere, and reflections are to be found
            x, y = frames[row].reshape(2, 3) @ offsets.reshape(3, -1) / 2**level
            patches[row] = _remapped(reduced, x.reshape(size, size), y.reshape(size, size))
        if level < levels.max(initial=0):
            reduced = cv2.pyrDown(reduced)
    return patches, valid


def _remapped(grey: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[Any]:
    """Values at (x, y), reflected beyond the border, of the part of a picture that they need."""
    h, w = grey.shape
    x, y = np.clip(x, -w + 1, 2 * w - 2), np.clip(y, -h + 1, 2 * h - 2)  # where the first reflection ends
    x, y = np.minimum(np.abs(x), 2 * (w - 1) - np.abs(x)), np.minimum(np.abs(y), 2 * (h - 1) - np.abs(y))
    x0, y0 = int(x.min()), int(y.min())
    part = grey[y0 : int(y.max()) + 2, x0 : int(x.max()) + 2]
    at = (x - x0).astype(np.float32), (y - y0).astype(np.float32)
    values: NDArray[Any] = cv2.remap(part, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return values


def as_frames(keypoints: Any, name: str, patch_size: int) -> NDArray[np.float64]:
    """LAFs or ``cv2.KeyPoint`` as (N, 2, 3): pixel offsets from a patch's centre to places in the picture.

    Raises:
        TypeError, ValueError: naming the argument; places alone have no frame.
    """
    centres = as_points(keypoints, name)
    if not len(centres):
        return np.empty((0, 2, 3))
    if isinstance(keypoints, (list, tuple)) and isinstance(keypoints[0], cv2.KeyPoint):
        angle = np.deg2rad([max(k.angle, 0.0) for k in keypoints])  # -1 stands for none
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
        raise ValueError(f"{name} holds NaN or infinite sizes or angles: leave these out")
    return frames


_REMAP_LIMIT = 32766  # rows or columns that cv2.remap can address


def _interpolated(grey: NDArray[Any], corner: NDArray[np.float64], size: int) -> NDArray[Any]:
    """Patches (n, size, size) whose first pixels lie at `corner` (n, 2) xy; one at a time in very large pictures."""
    h, w = grey.shape
    # Far away corners would overflow remap's integers; reflections there are as good as those nearer by.
    corner = np.clip(corner, -2.0 * size, np.array([w, h]) + 2.0 * size)
    if max(h, w) > _REMAP_LIMIT:  # only the patch's surroundings, wide enough for what is reflected
        x0, y0 = np.maximum(corner[0] - 6 * size, 0).astype(int)
        grey = grey[y0 : y0 + 13 * size, x0 : x0 + 13 * size]
        corner = corner - (x0, y0)
    side = np.arange(size, dtype=np.float32)
    shape = len(corner), size, size
    x = np.broadcast_to(corner[:, :1, None].astype(np.float32) + side, shape).reshape(-1, size)
    y = np.broadcast_to(corner[:, 1:, None].astype(np.float32) + side[:, None], shape).reshape(-1, size)
    return cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101).reshape(shape)


def as_grey(image: NDArray[Any] | Tensor, name: str) -> NDArray[Any]:
    """A picture as (H, W) uint8, uint16 or float32 in native byte order.

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
        way_out = {(3,): ": put the colours last", (4,): ": put the colours last and drop alpha"}.get(
            image.shape[:1], ""
        )
        way_out = ": drop alpha, image[..., :3]" if image.ndim == 3 and image.shape[2] == 4 else way_out
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
        raise ValueError(f"{name} holds NaN or infinite coordinates: leave these out")
    return points
