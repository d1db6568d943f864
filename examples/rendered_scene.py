"""A landscape rendered in two bands, visible and near infrared, to try the matcher on without any data.

The pictures are rendered, not photographs: reflectances, textures and noise are made up by hand, and how the bands
relate is simpler than in the real world. Figures measured on them say nothing about real pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TURN, SCALE, SHIFT = 8.0, 0.93, (31.0, -22.0)  # degrees, and pixels of B: how B's view differs from A's
HORIZON, NEAR = 0.22, 0.12  # parts of the height: where the plain ends, and how far below its vanishing line
OCTAVES = (3.5, 7.0, 16.0, 40.0)  # pixels from one grain to the next
CLOUD, HAZE = ((0.97, 0.97, 0.98), 0.93), ((0.70, 0.79, 0.90), 0.42)  # visible and NIR


class Material(NamedTuple):
    """Reflectance in each band, and the texture: its pattern, grain (index into OCTAVES) and contrast in each band."""

    rgb: tuple[float, float, float]
    nir: float
    pattern: str
    grain: int
    contrast: float
    nir_contrast: float
    correlation: float  # of the NIR texture with the visible one: 1 is the same, -1 inverted


MATERIALS = {
    "sky": Material((0.40, 0.60, 0.88), 0.20, "plain", 3, 0.01, 0.02, 0.5),
    "ridge": Material((0.30, 0.38, 0.36), 0.50, "leaves", 1, 0.16, 0.16, 0.7),
    "forest": Material((0.17, 0.26, 0.12), 0.60, "leaves", 1, 0.30, 0.22, 0.8),
    "meadow": Material((0.44, 0.49, 0.22), 0.66, "leaves", 1, 0.24, 0.18, -0.6),  # dry grass: brighter, less NIR
    "pasture": Material((0.31, 0.43, 0.17), 0.74, "leaves", 1, 0.22, 0.16, 0.7),
    "crop": Material((0.40, 0.42, 0.22), 0.60, "furrows", 1, 0.22, 0.22, -0.8),  # green rows on bare soil
    "stubble": Material((0.72, 0.63, 0.40), 0.56, "furrows", 0, 0.15, 0.15, 0.8),
    "soil": Material((0.43, 0.33, 0.24), 0.34, "furrows", 1, 0.20, 0.20, 0.8),
    "broadleaf": Material((0.22, 0.33, 0.11), 0.72, "leaves", 0, 0.26, 0.18, 0.8),
    "conifer": Material((0.11, 0.20, 0.11), 0.46, "leaves", 0, 0.26, 0.24, 0.8),
    "reed": Material((0.46, 0.45, 0.23), 0.60, "leaves", 0, 0.28, 0.22, 0.4),
    "water": Material((0.20, 0.32, 0.38), 0.11, "ripples", 0, 0.20, 0.38, 0.7),
    "asphalt": Material((0.42, 0.42, 0.43), 0.38, "plain", 1, 0.10, 0.12, 0.6),
    "paint": Material((0.92, 0.92, 0.88), 0.84, "plain", 0, 0.08, 0.08, 0.8),
    "gravel": Material((0.63, 0.58, 0.49), 0.57, "leaves", 0, 0.14, 0.14, 0.7),
    "plaster": Material((0.86, 0.82, 0.73), 0.80, "plain", 1, 0.06, 0.08, 0.6),
    "brick": Material((0.60, 0.34, 0.26), 0.60, "blocks", 0, 0.14, 0.12, 0.7),
    "tile": Material((0.63, 0.27, 0.18), 0.52, "blocks", 1, 0.20, 0.18, -0.5),  # moss: darker, more NIR
    "slate": Material((0.29, 0.31, 0.35), 0.27, "blocks", 0, 0.20, 0.20, 0.8),
    "glass": Material((0.13, 0.16, 0.21), 0.10, "plain", 2, 0.20, 0.20, 0.3),
    "timber": Material((0.40, 0.30, 0.21), 0.52, "plain", 0, 0.15, 0.12, 0.8),
}
INDEX = {name: k for k, name in enumerate(MATERIALS)}
GLAZING = {"door": "timber", "window": "glass"}
CROPS = np.array([INDEX[name] for name in ("meadow", "pasture", "crop", "stubble", "soil", "crop", "pasture")])

Draw = Callable[[np.random.Generator, "Scene", float, float, float], None]


class Scene(NamedTuple):
    """The canvas, each (H, W): what is painted, how it is lit, and how far it is veiled."""

    material: NDArray[np.uint8]
    light: Floats
    furrows: Floats
    clouds: Floats
    haze: Floats

    def fill(self, points: Any, name: str, light: float) -> None:
        """Paints a polygon, of pixels (x, y)."""
        outline = np.round(np.asarray(points)).astype(np.int32).reshape(-1, 1, 2)
        cv2.fillPoly(self.material, [outline], (INDEX[name],))
        cv2.fillPoly(self.light, [outline], (light,))

    def box(self, x: float, y: float, width: float, height: float, name: str, light: float) -> None:
        """Paints an upright rectangle, of which (x, y) is the lower left corner."""
        self.fill([(x, y), (x + width, y), (x + width, y - height), (x, y - height)], name, light)


def render_pair(
    seed: int = 0, size: tuple[int, int] = (768, 1024)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]:
    """One scene in two bands, from two viewpoints: rendered, not photographs; figures on it say nothing of real ones.

    Args:
        seed: of everything random; the same seed gives the same pictures, up to rounding by OpenCV's version.
        size: height and width of both pictures; made for about the default.

    Returns:
        image_a (H, W, 3) uint8, visible, RGB; image_b (H, W) uint8, near infrared; and a_to_b (2, 3), which takes the
        pixel (x, y) of image_a to that of image_b, pixel centres at integers.
    """
    height, width = size
    a_to_b = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), TURN, SCALE).astype(np.float64)
    a_to_b[:, 2] += SHIFT
    corners = np.array([[x, y, 1.0] for x in (0, width - 1) for y in (0, height - 1)])
    in_a = corners @ cv2.invertAffineTransform(a_to_b).T  # the corners of B
    margin = int(np.ceil(max(-in_a.min(), *(in_a.max(0) - (width - 1, height - 1))))) + 8

    rng = np.random.default_rng(seed)
    visible, nir = render_bands(rng, paint_scene(rng, size, margin))
    canvas_to_b = a_to_b.copy()
    canvas_to_b[:, 2] -= a_to_b[:, :2] @ (margin, margin)
    inside = slice(margin, margin + height), slice(margin, margin + width)
    seen_by_b = np.asarray(cv2.warpAffine(nir, canvas_to_b, (width, height), flags=cv2.INTER_CUBIC), np.float32)
    return expose(rng, visible[inside], 0.010, 0.5), expose(rng, seen_by_b, 0.014, 0.6), a_to_b


def value_noise(rng: np.random.Generator, shape: tuple[int, int], step: float, stretch: float = 1.0) -> Floats:
    """(H, W) smooth noise of mean 0 and deviation 1, its grains `step` pixels high and `stretch` times as wide."""
    rows, columns = int(shape[0] / step) + 4, int(shape[1] / step / stretch) + 4
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    across, down = round(columns * step * stretch), round(rows * step)
    noise = cv2.resize(grid, (across, down), interpolation=cv2.INTER_CUBIC)[-shape[0] :, -shape[1] :]
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def fallen_leaves(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """(H, W) of overlapping ellipses, most of them small, of mean 0 and deviation 1: edges and corners everywhere."""
    field = value_noise(rng, shape, 4)
    count = shape[0] * shape[1] // 25
    radii = np.clip(1.6 * rng.pareto(2.0, count) + 1.6, 0, 13)
    centres = (rng.random((count, 2)) * (shape[1], shape[0])).astype(int)
    rest = zip(rng.uniform(0.4, 1, count), rng.uniform(0, 180, count), rng.standard_normal(count), strict=True)
    for (x, y), radius, (flat, turn, value) in zip(centres.tolist(), radii, rest, strict=True):
        cv2.ellipse(field, (x, y), (round(radius), max(1, round(radius * flat))), turn, 0, 360, (value,), -1)
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def paint_scene(rng: np.random.Generator, size: tuple[int, int], margin: int) -> Scene:
    """Sky, hills, fields, water and road; then what stands on them, from far to near. The canvas has a margin."""
    height, width = size
    shape = height + 2 * margin, width + 2 * margin
    x0, y0 = margin + width / 2, margin + (HORIZON - NEAR) * height  # vanishing point
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    zoom = np.maximum(y - y0, 0.06 * height)  # pixels per unit of length, at the ground seen there
    across, depth = (x - x0) / zoom, height / zoom  # where that is
    slow, slower, fine = (value_noise(rng, shape, *grain) for grain in ((90, 1.5), (220,), (25,)))

    # Fields: a patchwork in rows, with hedges between them.
    row = 2.6 * np.log2(depth) + 0.10 * slow + 3
    in_row = np.clip(np.floor(row), 0, 23).astype(int)
    column = across / rng.uniform(0.45, 0.8, 24)[in_row] + 0.04 * slower + rng.random(24)[in_row] + 20
    field = in_row, np.clip(np.floor(column), 0, 39).astype(int)
    material = CROPS[rng.integers(len(CROPS), size=(24, 40))][field].astype(np.uint8)
    light = 1 + 0.06 * slow + rng.uniform(-0.12, 0.12, (24, 40))[field]
    angle = rng.uniform(0, np.pi, (24, 40))[field]
    phase = 300 * (across * np.cos(angle) + 0.8 * depth * np.sin(angle)) + fine
    furrows = 1.4 * np.sin(phase) * np.clip(zoom / height - 0.25, 0, 0.3) / 0.3
    hedge = (np.abs(row - np.round(row)) < 0.04) | (np.abs(column - np.round(column)) < 0.02)
    wooded = (0.5 * hedge + 0.35 * (slower + 0.4 * fine > 1.7) + 0.004) * depth

    # Water with its banks, and the road with its markings.
    shore = np.hypot((across + 0.62) / 0.52, (depth - 1.9) / 0.5) + 0.05 * slow + 0.03 * fine
    river = np.abs(across + 0.75 - 0.35 * np.sin(1.3 * depth)) / 0.07 + 0.1 * fine
    shore = np.where(depth > 2.0, np.minimum(shore, river), shore)
    material[shore < 1.12] = INDEX["reed"]
    material[shore < 1] = INDEX["water"]
    light = np.where(shore < 1, 0.8 + 0.12 * depth + 0.05 * slow, light)
    aside = np.abs(across - road_at(depth))
    material[aside < 0.08] = INDEX["gravel"]
    material[aside < 0.062] = INDEX["asphalt"]
    material[(np.abs(aside - 0.055) < 0.0025) | ((aside < 0.003) & (depth * 14 % 1 < 0.55))] = INDEX["paint"]
    wooded[(aside < 0.12) | (shore < 1.1)] = 0

    # Hills and sky.
    line = margin + height * (HORIZON + 0.004 * fine[0])
    material[y < line], wooded[y < line] = INDEX["sky"], 0
    for name, rise, roughness, tone in (("ridge", 0.075, 0.022, 1.0), ("forest", 0.03, 0.013, 0.9)):
        bumps = sum(value_noise(rng, shape, step)[0] * step / 150 for step in (150, 50, 10))
        hill = (y < line) & (y > line - height * (rise + roughness * bumps))
        material[hill] = INDEX[name]
        light = np.where(hill, tone + 0.12 * slow + 0.08 * fine, light)
    sky = material == INDEX["sky"]
    light = np.where(sky, 0.75 + 0.4 * y / line, light)
    cover = sum(value_noise(rng, shape, step, 2.2) * step / 60 for step in (100, 45, 20, 9))
    clouds = np.clip(cover / 1.6 - 0.25, 0, 1) * sky
    haze = np.where(sky, 0, np.clip(0.085 * (depth - 1), 0, 0.6))

    scene = Scene(material, *(np.asarray(part, np.float32) for part in (light, furrows, clouds, haze)))
    stand_up(rng, scene, wooded, x0, y0, height)
    return scene


def road_at(depth: Any) -> Any:
    """Where across the ground the middle of the road runs."""
    return 0.12 + 0.33 * np.sin(1.2 * depth - 1.2)


def stand_up(
    rng: np.random.Generator, scene: Scene, wooded: NDArray[np.float64], x0: float, y0: float, height: int
) -> None:
    """Trees where it is wooded, a village, poles along the road and fences: first their shadows, then they."""
    things: list[tuple[float, float, Draw, float]] = []  # y and x of the foot, and the radius of the shadow
    rows, columns = np.divmod(rng.choice(wooded.size, 700, p=wooded.ravel() / wooded.sum()), wooded.shape[1])
    things += [(float(y), float(x), tree, 0.055) for y, x in zip(rows, columns, strict=True)]
    along_road: list[tuple[float, float, Draw, float]] = [(d, -0.1, pole, 0.012) for d in np.arange(0.92, 4, 0.22)]
    for depth, left, right in ((1.08, 0.13, 0.7), (1.5, -0.6, -0.13), (1.85, 0.13, 1.3), (2.6, -0.7, -0.13)):
        along_road += [(depth + 0.12 * aside, aside, fence, 0) for aside in np.arange(left, right, 0.022)]
    lots = [(depth, aside) for depth in np.arange(1.3, 3.4, 0.33) for aside in (-0.36, 0.28, 0.65, 1.02)]
    for (depth, aside), (nudge, jump) in zip(lots, rng.uniform(-1, 1, (len(lots), 2)), strict=True):
        along_road.append((depth + 0.1 * nudge, aside + 0.04 * jump, house, 0.16))
    for depth, aside, draw, radius in along_road:
        y, x = y0 + height / depth, x0 + (road_at(depth) + aside) * height / depth
        ends = np.clip([x - radius * (y - y0), x + radius * (y - y0)], 0, wooded.shape[1] - 1).astype(int)
        kept = draw is not house or rng.random() < 0.75
        if draw is pole or (kept and wooded[int(y), ends].all()):  # neither in the water nor on the road
            things.append((y, x, draw, radius))
    things.sort(key=lambda thing: thing[0])

    shadows = np.zeros_like(scene.light)
    for y, x, _, radius in things:
        reach = radius * (y - y0)
        centre, axes = (round(x + 0.7 * reach), round(y)), (round(1.2 * reach), round(0.4 * reach))
        cv2.ellipse(shadows, centre, axes, 8, 0, 360, (1.0,), -1)
    np.multiply(scene.light, 1 - 0.5 * cv2.GaussianBlur(shadows, (0, 0), 1), out=scene.light)
    for y, x, draw, _ in things:
        draw(rng, scene, x, y, y - y0)


def tree(rng: np.random.Generator, scene: Scene, x: float, y: float, zoom: float) -> None:
    """A trunk, and a crown of tufts, from the shaded ones below to the lit ones above."""
    kind = "conifer" if rng.random() < 0.25 else "broadleaf"
    wide, high = zoom * rng.uniform(0.025, 0.06) * np.array([1, 1.1 if kind == "broadleaf" else 1.7])
    tone = rng.uniform(0.8, 1.2)
    scene.box(x - 0.08 * wide, y, 0.16 * wide, high, "timber", 0.6)
    for up in np.linspace(-0.9, 1, 9 + int(wide)):
        room = np.sqrt(1 - up**2) if kind == "broadleaf" else 0.55 - 0.5 * up
        sideways = rng.uniform(-room, room)
        centre = round(x + wide * sideways), round(y - high * (1.25 + up))
        axes = round(wide * rng.uniform(0.15, 0.4)), round(wide * rng.uniform(0.12, 0.3))
        lit = tone * (0.85 + 0.3 * up - 0.3 * sideways + rng.uniform(-0.2, 0.2))
        for canvas, value in ((scene.material, INDEX[kind]), (scene.light, lit)):
            cv2.ellipse(canvas, centre, axes, rng.uniform(-30, 30), 0, 360, (value,), -1)


def house(rng: np.random.Generator, scene: Scene, x: float, y: float, zoom: float) -> None:
    """A front, a gable to one side, a roof with a chimney, a door and windows."""
    wall, roof = rng.choice(["plaster", "plaster", "brick"]), rng.choice(["tile", "tile", "slate"])
    wide, tall, deep, ridge = zoom * rng.uniform([0.15, 0.08, 0.09, 0.07], [0.21, 0.11, 0.13, 0.1])
    side = rng.choice([-1, 1])  # of the gable
    tone = rng.uniform(0.85, 1.1)

    def at(points: list[tuple[float, float]]) -> NDArray[np.float64]:
        return np.array([(x + side * right, y - up) for right, up in points])

    back, half = 0.35 * deep, wide / 2
    top = (half + deep / 2, tall + back / 2 + ridge)
    scene.fill(at([(-half - 3, -4), (half + deep, back - 4), (half + deep + 4, back + 3), (-half, 6)]), "gravel", 0.8)
    gable = [(half, 0.0), (half + deep, back), (half + deep, back + tall), top, (half, tall)]
    scene.fill(at(gable), wall, tone * (0.62 if side > 0 else 1.05))
    scene.box(x - half, y, wide, tall, wall, tone * 0.92)
    slope = [(-half - 2, tall - 2), (half + 2, tall - 2), (top[0] + 1, top[1]), (deep / 2 - half - 1, top[1])]
    scene.fill(at(slope), roof, tone * rng.uniform(0.9, 1.15))
    scene.fill(at([slope[2], slope[3], (slope[3][0], top[1] + 2), (top[0], top[1] + 2)]), roof, 1.3)
    chimney = x + side * rng.uniform(0, half) - 0.012 * zoom
    scene.box(chimney, y - top[1] + 0.01 * zoom, 0.024 * zoom, 0.045 * zoom, "brick", 0.8)
    openings = rng.permutation(["door", *["window"] * int(rng.integers(2, 4))])
    for left, opening in zip(np.linspace(-half, half, len(openings) + 1), openings, strict=False):
        sill = 0.0 if opening == "door" else 0.35 * tall
        scene.box(x + left + 0.012 * zoom, y - sill, 0.026 * zoom, 0.045 * zoom, "plaster", 1.05)
        scene.box(x + left + 0.015 * zoom, y - sill - 1, 0.020 * zoom, 0.039 * zoom - 1, GLAZING[opening], 1.0)
    scene.box(x + side * (half + deep / 2), y - 0.5 * tall - back / 2, 0.02 * zoom, 0.03 * zoom, "glass", 0.9)


def pole(rng: np.random.Generator, scene: Scene, x: float, y: float, zoom: float) -> None:
    """A pole with a crossbar, of timber."""
    scene.box(x, y, max(2, 0.009 * zoom), 0.22 * zoom, "timber", rng.uniform(0.7, 1))
    scene.box(x - 0.03 * zoom, y - 0.19 * zoom, 0.07 * zoom, max(2, 0.008 * zoom), "timber", 0.8)


def fence(rng: np.random.Generator, scene: Scene, x: float, y: float, zoom: float) -> None:
    """A picket and its part of the rail, each a little different."""
    scene.box(x, y - 0.018 * zoom, 0.022 * zoom, 0.006 * zoom, "timber", 1.2)
    scene.box(x, y, max(1, 0.008 * zoom), rng.uniform(0.032, 0.045) * zoom, "timber", rng.uniform(1.2, 1.9))


def render_bands(rng: np.random.Generator, scene: Scene) -> tuple[Floats, Floats]:
    """Visible (H, W, 3) and NIR (H, W) of the canvas, about 0..1. The bands share the light and most of the texture."""
    shape = scene.material.shape[0], scene.material.shape[1]
    table = list(MATERIALS.values())

    def of_material(values: list[Any]) -> Floats:
        return np.asarray(values, np.float32)[scene.material]

    grains = [value_noise(rng, shape, step) for step in OCTAVES]
    patterns = {
        "plain": grains[0],
        "leaves": fallen_leaves(rng, shape),
        "furrows": 0.8 * scene.furrows + 0.6 * fallen_leaves(rng, shape),
        "ripples": value_noise(rng, shape, 3, 4) + 0.6 * value_noise(rng, shape, 9, 5),
        "blocks": rng.standard_normal((shape[0] // 4 + 1, shape[1] // 7 + 1)).repeat(4, 0).repeat(7, 1),
    }
    shared = np.zeros(shape, np.float32)
    for name, material in MATERIALS.items():
        here = scene.material == INDEX[name]
        pattern, grain = patterns[material.pattern][: shape[0], : shape[1]], grains[material.grain]
        shared[here] = 0.8 * pattern[here] + 0.6 * grain[here]
    own = 0.7 * value_noise(rng, shape, 4) + 0.7 * value_noise(rng, shape, 13)
    same = of_material([material.correlation for material in table])
    in_nir = same * shared + np.sqrt(1 - same**2) * own

    contrast = of_material([material.contrast for material in table])
    hue = (0.25 * contrast * value_noise(rng, shape, 50))[..., None] * np.array([1, 0.3, -1], np.float32)
    visible = of_material([material.rgb for material in table]) * scene.light[..., None]
    visible *= np.exp((contrast * shared)[..., None] + hue)
    nir = of_material([material.nir for material in table]) * scene.light**1.1
    nir *= np.exp(of_material([material.nir_contrast for material in table]) * in_nir)
    for veil, (colour, grey), left in ((scene.haze, HAZE, 0.4), (scene.clouds, CLOUD, 1.0)):
        visible += veil[..., None] * (np.array(colour, np.float32) - visible)
        nir += left * veil * (grey - nir)
    return visible, nir


def expose(rng: np.random.Generator, radiance: Floats, noise: float, blur: float) -> NDArray[np.uint8]:
    """What a sensor makes of it: uint8, with blur and noise of its own."""
    blurred = cv2.GaussianBlur(radiance, (0, 0), blur)
    noisy = blurred + noise * rng.standard_normal(radiance.shape) * np.sqrt(0.3 + np.maximum(blurred, 0))
    return np.clip(np.round(255 * noisy), 0, 255).astype(np.uint8)
