"""GeoTIFFs that tests write and read back."""

import cv2
import numpy as np
import pytest

from rrl_match.io.rasters import opened

rasterio = pytest.importorskip("rasterio")

NORTH_UP = rasterio.Affine(2, 0, 500_000, 0, -2, 4_200_000)
UTM = "EPSG:32611"


def moved(x, y, scale=1):
    """NORTH_UP from pixel (x, y) on, with pixels `scale` times as large."""
    return rasterio.Affine(2 * scale, 0, 500_000 + 2 * x, 0, -2 * scale, 4_200_000 - 2 * y)


def write(path, bands, transform=NORTH_UP, crs=UTM, alpha=False, **options):
    """A GeoTIFF of bands (C, H, W)."""
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    options |= {} if transform is None else {"transform": transform, "crs": crs}
    with opened(path, "w", driver="GTiff", **shape, **options) as dataset:
        dataset.write(bands)
        if alpha:
            names = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
            dataset.colorinterp = names
    return path


def read_back(path):
    """Bands (C, H, W), masks (C, H, W) bool, and the open-time facts."""
    with opened(path) as dataset:
        return dataset.read(), dataset.read_masks() > 0, dataset.profile | {"colours": dataset.colorinterp}


def texture(height, width, seed=0):
    """(H, W) float64 in [0, 1], smooth enough to be interpolated."""
    noise = np.random.default_rng(seed).random((height // 8 + 2, width // 8 + 2))
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
