"""Dense fields of oriented gradients: what both bands have in common at an edge, whatever its contrast."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.registration.geometry import Matrix, shrinking
from rrl_match.registration.images import Grey, Mask, PreparedImage
from rrl_match.registration.settings import Settings

Fields = NDArray[np.float32]


def gradients(image: Grey) -> Fields:
    """Strength of the gradient and its orientation as a doubled angle: (H, W, 3).

    The gradient's sign, which differs between bands, has no effect: the second and third value are the strength times
    cosine and sine of twice the angle.
    """
    dx, dy = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    strength = np.sqrt(dx * dx + dy * dy)  # cv2.magnitude rounds differently from one memory address to the next
    inverse = 1 / np.maximum(strength, 1e-9)
    return np.asarray(cv2.merge([strength, (dx * dx - dy * dy) * inverse, 2 * dx * dy * inverse]), np.float32)


def normalised(fields: Fields, mask: Mask, floor: float, settings: Settings) -> Fields:
    """Fields (H, W, 3) scaled to about unit length wherever there is structure, and to zero outside the mask.

    With smoothed gradients, this is a compact form of CFOG (Ye et al., "Fast and robust matching for multimodal remote
    sensing image registration", TGRS 2019): the two lowest harmonics of its channels hold nearly all of their energy.
    """
    strength, x, y = cv2.split(fields)
    x, y = x * settings.orientation_weight, y * settings.orientation_weight
    length = np.sqrt(strength * strength + x * x + y * y)
    length += floor * cv2.mean(length, mask=mask)[0] + 1e-6
    factor = (mask > 0) / length
    return np.asarray(cv2.merge([strength * factor, x * factor, y * factor]), np.float32)


def energy(fields: Fields) -> Grey:
    """Squared length (H, W) of fields (H, W, 3)."""
    squared = fields * fields
    total: Grey = squared[..., 0] + squared[..., 1] + squared[..., 2]
    return total


def fields_of(image: Grey, mask: Mask, settings: Settings) -> Fields:
    """Fields (H, W, 3) for block matching."""
    smooth = cv2.GaussianBlur(gradients(image), (0, 0), settings.blur)
    return normalised(np.asarray(smooth, np.float32), mask, settings.floor, settings)


def pooled_fields(image: PreparedImage, factor: float, settings: Settings) -> tuple[Fields, Mask, Matrix]:
    """Fields (h, w, 3) for correlation, of an image that is `factor` times smaller; their mask; and full to small.

    Gradients are taken in a larger image and pooled, so that thin edges count. What varies slowly is subtracted:
    it is in common to many wrong transforms.
    """
    h, w = image.shape
    size = max(8, round(w / factor)), max(8, round(h / factor))
    fine = image.level(max(1.0, factor / settings.coarse_oversampling))
    mask = eroded(fine.mask, 3)
    fields = gradients(fine.image) * mask[..., None]
    if size != fields.shape[1::-1]:
        shrinks = size[0] < fields.shape[1]
        fields = np.asarray(cv2.resize(fields, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))
        covered = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        mask = (covered > 0.9).astype(np.uint8)
    fields = np.asarray(cv2.GaussianBlur(fields, (0, 0), settings.coarse_blur))
    fields = normalised(fields, mask, settings.floor, settings)
    weight = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), settings.coarse_highpass)
    fields -= cv2.GaussianBlur(fields, (0, 0), settings.coarse_highpass) / np.maximum(weight, 1e-3)[..., None]
    fields *= mask[..., None]
    return fields, mask, shrinking((w / size[0], h / size[1]))


def eroded(mask: Mask, size: int) -> Mask:
    """Mask without its margin towards what is not shown; the image's own border does not count as one."""
    return np.asarray(cv2.erode(mask, np.ones((size, size), np.uint8), borderValue=1.0), np.uint8)
