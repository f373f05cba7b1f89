"""The Blocks world: seeded scenes of coloured solids on a ground plane, ray cast exactly with numpy alone.

Units: the scene is about one unit wide and the camera orbits its origin (z is up) at about 1.6 units, focal length
1.3887 times the longer picture side. A picture that is not square is the centre crop of the square one. Depth is
measured along the viewing axis, so a ray direction with unit depth makes the ray parameter the depth itself.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FOCAL = 1.3887  # in units of the longer image side; the focal of the published multiview model
GROUND_HEIGHT = -0.15
SHAPES = ("sphere", "cube", "cylinder", "cone")
COLOURS = {
    "red": (0.86, 0.13, 0.13), "green": (0.13, 0.65, 0.22), "blue": (0.14, 0.27, 0.90), "yellow": (0.96, 0.87, 0.13),
    "orange": (0.97, 0.52, 0.08), "purple": (0.50, 0.15, 0.70), "cyan": (0.13, 0.82, 0.86), "pink": (0.98, 0.52, 0.76),
}  # fmt: skip
GROUNDS = {"grey": (0.60, 0.60, 0.60), "sand": (0.80, 0.71, 0.55), "slate": (0.34, 0.38, 0.45)}
SKY = ((0.93, 0.95, 0.98), (0.72, 0.82, 0.94))  # at the horizon, overhead
FIRST_TRAINING_SEED = 1_000_000  # scene seeds below are held out for evaluation

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Thing:
    """One solid standing on the ground at (x, y); radius in scene units, yaw in radians about the vertical."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    yaw: float

    @property
    def name(self) -> str:
        """What prompts call it: "red cube"; unique within a scene because colours are."""
        return f"{self.colour} {self.shape}"

    @property
    def extents(self) -> tuple[float, float]:
        """(horizontal half width, half height): sides of a cube, radius and half height of a cylinder or cone."""
        factors = {"sphere": (1.0, 1.0), "cube": (0.82, 0.82), "cylinder": (0.8, 0.95), "cone": (1.0, 1.1)}
        wide, high = factors[self.shape]
        return wide * self.radius, high * self.radius

    @property
    def centre(self) -> Float:
        """(3,) scene coordinates of the middle of the solid."""
        return np.array([self.x, self.y, GROUND_HEIGHT + self.extents[1]], np.float32)

    @property
    def bound(self) -> float:
        """Radius of a sphere around ``centre`` that holds the solid."""
        wide, high = self.extents
        return {"sphere": wide, "cube": wide * 3**0.5}.get(self.shape, (wide**2 + high**2) ** 0.5)


@dataclass(frozen=True, slots=True)
class View:
    """An orbiting camera that looks at the origin: azimuth and elevation in degrees, distance in scene units."""

    azimuth: float
    elevation: float
    distance: float

    def basis(self) -> tuple[Float, Float]:
        """Return ((3, 3) rows right, down, forward in scene coordinates; (3,) position)."""
        azimuth, elevation = np.radians(self.azimuth), np.radians(self.elevation)
        back = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        rows = np.stack([right, -np.cross(back, right), -back])
        return rows.astype(np.float32), (self.distance * back).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Scene:
    """Things on a ground; light in degrees; ``view`` is the first camera, which captions and maps refer to."""

    things: tuple[Thing, ...]
    ground: str
    light_azimuth: float
    light_elevation: float
    view: View

    def with_thing(self, index: int, **changes: object) -> "Scene":
        """Return the scene with some fields of one thing replaced."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)  # type: ignore[arg-type]
        return replace(self, things=tuple(things))

    def without(self, index: int) -> "Scene":
        """Return the scene with one thing taken away."""
        return replace(self, things=self.things[:index] + self.things[index + 1 :])


@dataclass(frozen=True, slots=True)
class Hits:
    """What each pixel's ray meets first: depth (h, w), inf in the sky; thing (h, w) int8, -1 on ground and sky;
    normal (h, w, 3); direction (h, w, 3) of unit depth; position (3,) of the camera."""

    depth: Float
    thing: NDArray[np.int8]
    normal: Float
    direction: Float
    position: Float


@dataclass(frozen=True, slots=True)
class Rendering:
    """A picture (h, w, 3) in 0..1, antialiased, and the exact geometry at its pixel centres."""

    picture: Float
    depth: Float
    thing: NDArray[np.int8]
    normal: Float


def sample_scene(seed: int, things: int | None = None) -> Scene:
    """Return the scene of ``seed``: 1 to 3 things side by side, from left to right as the first camera sees them.

    ``things`` fixes their number. Colours differ within a scene, so that colour and shape name a thing.
    """
    random = np.random.default_rng([seed, 0xB10C])
    count = things or int(random.choice([1, 2, 3], p=[0.25, 0.45, 0.30]))
    view = View(random.uniform(0, 360), random.uniform(12, 38), random.uniform(1.5, 1.7))
    colours = random.permutation(list(COLOURS))[:count]
    rows, _ = view.basis()
    right, away = rows[0, :2], rows[2, :2] / np.linalg.norm(rows[2, :2])
    made = []
    for colour, lateral, radius in zip(colours, *_places(random, count), strict=True):
        x, y = lateral * right + random.uniform(-0.2, 0.2) * away
        shape, yaw = str(random.choice(SHAPES)), random.uniform(0, np.pi / 2)
        made.append(Thing(shape, str(colour), float(x), float(y), float(radius), float(yaw)))
    light = (view.azimuth + random.uniform(25, 75), random.uniform(45, 65))
    return Scene(tuple(made), str(random.choice(list(GROUNDS))), *light, view)


def _places(random: np.random.Generator, count: int) -> tuple[list[float], list[float]]:
    """Return sideways places and radii of ``count`` things that do not hide each other from the first camera."""
    low, high = {1: (0.18, 0.28), 2: (0.16, 0.23), 3: (0.13, 0.165)}[count]
    while True:
        radii = random.uniform(low, high, count)
        places = random.uniform(-0.39, 0.39, count)
        order = np.argsort(places)
        gaps = np.diff(places[order]) - 1.05 * (radii[order][1:] + radii[order][:-1])
        if (gaps > 0).all():
            return list(places[order]), list(radii[order])


def sample_views(scene: Scene, count: int, seed: int) -> list[View]:
    """Return the scene's first camera and ``count - 1`` others, 15 to 60 degrees of azimuth to either side of it."""
    random = np.random.default_rng([seed, 0xCA4E])
    views = [scene.view]
    for _ in range(count - 1):
        turn = random.uniform(15, 60) * random.choice([-1, 1])
        views.append(View(scene.view.azimuth + turn, random.uniform(12, 38), random.uniform(1.5, 1.7)))
    return views


def render(scene: Scene, view: View | None = None, size: tuple[int, int] = (64, 64)) -> Rendering:
    """Render ``scene`` from ``view`` (its own by default) at ``size`` (width, height), 2 x 2 samples a pixel."""
    view = view or scene.view
    width, height = size
    fine = shade(scene, trace(scene, view, (2 * width, 2 * height)))
    picture = fine.reshape(height, 2, width, 2, 3).mean((1, 3))
    hits = trace(scene, view, size)
    return Rendering(picture, hits.depth, hits.thing, hits.normal)


def trace(scene: Scene, view: View, size: tuple[int, int]) -> Hits:
    """Cast one ray through each pixel centre of a ``size`` (width, height) picture."""
    width, height = size
    side = max(size)
    rows, position = view.basis()
    across = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / (side * FOCAL)
    down = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / (side * FOCAL)
    direction = across[None, :, None] * rows[0] + down[:, None, None] * rows[1] + rows[2]
    with np.errstate(divide="ignore"):
        depth = (GROUND_HEIGHT - position[2]) / direction[..., 2]
    depth[depth <= 0] = np.inf
    thing = np.full((height, width), -1, np.int8)
    normal = np.broadcast_to(np.array([0, 0, 1], np.float32), direction.shape).copy()
    for index, solid in enumerate(scene.things):
        window = _window(solid, rows, position, size)
        rays = direction[window].reshape(-1, 3)
        if not len(rays):
            continue
        near, surface = _INTERSECT[solid.shape](solid, position - solid.centre, rays)
        shape = direction[window].shape
        near, surface = near.reshape(shape[:2]), surface.reshape(shape)
        closer = near < depth[window]
        depth[window][closer] = near[closer]
        thing[window][closer] = index
        normal[window][closer] = surface[closer]
    return Hits(depth, thing, normal, direction, position)


def shade(scene: Scene, hits: Hits) -> Float:
    """Return the colours (h, w, 3) in 0..1 of traced rays: sky, ground with soft shadows, lit things."""
    azimuth, elevation = np.radians(scene.light_azimuth), np.radians(scene.light_elevation)
    light = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], np.float32
    )
    horizon, zenith = np.array(SKY, np.float32)
    upward = np.clip(hits.direction[..., 2:] * 2.5, 0, 1)
    sky = horizon + (zenith - horizon) * upward
    ground = np.array(GROUNDS[scene.ground], np.float32)
    finite = np.where(np.isfinite(hits.depth), hits.depth, 50.0)[..., None].astype(np.float32)
    lit = ground * _ground_light(scene, hits, finite, light)[..., None]
    haze = np.clip((finite - 2.2) / 3.0, 0, 1)  # the far ground fades into the sky: no hard horizon to learn
    colours = lit + (sky - lit) * haze
    for index, solid in enumerate(scene.things):
        mine = hits.thing == index
        normal = hits.normal[mine]
        diffuse = np.maximum(normal @ light, 0)[:, None]
        half = light - hits.direction[mine] / np.linalg.norm(hits.direction[mine], axis=1, keepdims=True)
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        shine = np.maximum((normal * half).sum(1), 0)[:, None] ** 24
        base = np.array(COLOURS[solid.colour], np.float32)
        colours[mine] = base * (0.45 + 0.62 * diffuse) + 0.22 * shine
    return np.clip(colours, 0, 1)


def _ground_light(scene: Scene, hits: Hits, finite: Float, light: Float) -> Float:
    """Return the brightness (h, w) of ground points: soft shadows, as if of each thing's inner sphere."""
    points = hits.position + hits.direction * np.minimum(finite, 8.0)
    brightness = np.ones(hits.depth.shape, np.float32)
    for solid in scene.things:
        toward = solid.centre - points
        along = toward @ light
        away = (toward * toward).sum(-1) - along**2
        wide, high = solid.extents
        radius = (2 * wide + high) / 3
        dark = np.clip(((1.3 * radius) ** 2 - away) / ((1.3**2 - 0.6**2) * radius**2), 0, 1)
        brightness *= 1 - 0.55 * np.where(along > 0, dark * dark * (3 - 2 * dark), 0)
    return brightness


def project(points: Float, view: View, size: tuple[int, int]) -> tuple[Float, Float]:
    """Return ((n, 2) pixel coordinates x, y with pixel centres at .5, (n,) depths) of scene points (n, 3)."""
    rows, position = view.basis()
    camera = (points - position) @ rows.T
    scale = FOCAL * max(size)
    pixels = camera[:, :2] / camera[:, 2:] * scale + np.array(size, np.float32) / 2
    return pixels, camera[:, 2]


def _window(solid: Thing, rows: Float, position: Float, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the (rows, columns) of the picture that can see ``solid``."""
    right, down, ahead = rows @ (solid.centre - position)
    side = max(size) * FOCAL
    reach = 1.15 * solid.bound / (ahead - solid.bound) * side
    column, row = right / ahead * side + size[0] / 2, down / ahead * side + size[1] / 2
    limits = [np.clip([middle - reach, middle + reach + 1], 0, length).astype(int)
              for middle, length in ((row, size[1]), (column, size[0]))]  # fmt: skip
    return slice(*limits[0]), slice(*limits[1])


def _nearest(valid: NDArray[np.bool_], distance: Float) -> Float:
    """Return distances where the hit is valid and in front of the camera, else inf."""
    return np.where(valid & (distance > 0), distance, np.float32(np.inf))


def _sphere(solid: Thing, origin: Float, rays: Float) -> tuple[Float, Float]:
    square, half = (rays * rays).sum(1), rays @ origin
    inside = half**2 - square * (origin @ origin - solid.radius**2)
    near = _nearest(inside > 0, (-half - np.sqrt(np.maximum(inside, 0))) / square)
    return near, (origin + rays * _finite(near)) / solid.radius


def _cube(solid: Thing, origin: Float, rays: Float) -> tuple[Float, Float]:
    cosine, sine = np.cos(solid.yaw), np.sin(solid.yaw)
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], np.float32)
    origin, rays = turn @ origin, rays @ turn.T
    rays = np.where(np.abs(rays) < 1e-7, np.float32(1e-7), rays)
    half = np.float32(solid.extents[0])
    enter = np.minimum((-half - origin) / rays, (half - origin) / rays)
    leave = np.maximum((-half - origin) / rays, (half - origin) / rays)
    near = enter.max(1)
    axis = enter.argmax(1)
    normal = np.zeros_like(rays)
    each = np.arange(len(rays))
    normal[each, axis] = -np.sign(rays[each, axis])
    return _nearest(near < leave.min(1), near), normal @ turn


def _cylinder(solid: Thing, origin: Float, rays: Float) -> tuple[Float, Float]:
    wide, high = solid.extents
    square = np.maximum((rays[:, :2] ** 2).sum(1), 1e-9)
    half = rays[:, :2] @ origin[:2]
    inside = half**2 - square * (origin[:2] @ origin[:2] - wide**2)
    side = (-half - np.sqrt(np.maximum(inside, 0))) / square
    side = _nearest((inside > 0) & (np.abs(origin[2] + side * rays[:, 2]) <= high), side)
    cap = (high - origin[2]) / np.where(np.abs(rays[:, 2]) < 1e-7, np.float32(1e-7), rays[:, 2])
    cap = _nearest(((origin[:2] + rays[:, :2] * cap[:, None]) ** 2).sum(1) <= wide**2, cap)
    normal = (origin + rays * _finite(side)) / wide
    normal[:, 2] = 0
    normal[cap < side] = (0, 0, 1)
    return np.minimum(cap, side), normal


def _cone(solid: Thing, origin: Float, rays: Float) -> tuple[Float, Float]:
    wide, high = solid.extents
    slope = (wide / (2 * high)) ** 2
    fall, start = -rays[:, 2], high - origin[2]
    square = (rays[:, :2] ** 2).sum(1) - slope * fall**2
    square = np.where(np.abs(square) < 1e-9, np.float32(1e-9), square)
    half = rays[:, :2] @ origin[:2] - slope * start * fall
    inside = half**2 - square * (origin[:2] @ origin[:2] - slope * start**2)
    root = np.sqrt(np.maximum(inside, 0))
    near = np.full(len(rays), np.inf, np.float32)
    for sign in (-1, 1):
        distance = (-half + sign * root) / square
        below = start + distance * fall
        near = np.minimum(near, _nearest((inside > 0) & (below >= 0) & (below <= 2 * high), distance))
    normal = origin + rays * _finite(near)
    normal[:, 2] = slope * (high - normal[:, 2])
    return near, normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)


def _finite(distance: Float) -> Float:
    """Return distances as a (n, 1) column with misses at 0, so that they can be multiplied."""
    return np.where(np.isfinite(distance), distance, 0)[:, None].astype(np.float32)


_INTERSECT = {"sphere": _sphere, "cube": _cube, "cylinder": _cylinder, "cone": _cone}
