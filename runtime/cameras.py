"""Cameras, and the ray frames in which OneDiffusion reads and writes them.

Public poses are camera-to-world matrices with OpenCV axes (x right, y down, z into the picture). Rays live in the
world of view 0 with PyTorch3D's axes (x left, y up, z into the picture), which is what the model was trained on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from framert.runtime.errors import TaskError

DEFAULT_FOCAL = 1.3887  # in image sides; the published model's training cameras
RAY_SCALE = 1.658  # brings a ray frame to about unit variance, like a picture's latents
RAY_CHANNELS = 16
FLIP = np.diag([-1.0, -1.0, 1.0])  # OpenCV axes <-> PyTorch3D axes

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Cameras:
    """The cameras of n views, in one world.

    camera_to_world: (n, 4, 4), OpenCV axes. focal: (n, 2) and principal: (n, 2), x and y, in image sides (the
    principal point of a centred camera is 0.5). residual: (n,) root mean square distance between the rays a camera
    was estimated from and its centre, in world units; None for cameras that were given.
    """

    camera_to_world: Array
    focal: Array
    principal: Array
    residual: Array | None = None

    def __post_init__(self) -> None:
        pose = _numbers("camera_to_world", self.camera_to_world)
        if pose.ndim != 3 or pose.shape[1:] != (4, 4) or not len(pose):
            raise TaskError(f"camera_to_world has shape {pose.shape}; it is (views, 4, 4) with at least one view")
        shapes = {"focal": (len(pose), 2), "principal": (len(pose), 2), "residual": (len(pose),)}
        arrays = {"camera_to_world": pose}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None and name == "residual":
                continue
            arrays[name] = _numbers(name, value)
            if arrays[name].shape != shape:
                raise TaskError(f"{name} has shape {arrays[name].shape}; {len(pose)} cameras need {shape}")
        for name, value in arrays.items():
            if not np.isfinite(value).all():
                raise TaskError(f"{name} holds values that are not finite; give finite numbers for every camera")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        for view, matrix in enumerate(pose):
            rotation = matrix[:3, :3]
            error = np.abs(rotation @ rotation.T - np.eye(3)).max()
            if error > 1e-3 or np.linalg.det(rotation) < 0 or not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
                raise TaskError(
                    f"camera_to_world of view {view} is not a rigid pose; its upper 3x3 block must be a rotation "
                    "(orthonormal, determinant 1) and its last row 0 0 0 1"
                )
        if (arrays["focal"] <= 0).any():
            raise TaskError("focal must be above 0 (in image sides; 1.3887 is the published model's)")

    def __len__(self) -> int:
        return len(self.camera_to_world)

    def __getitem__(self, views: slice) -> "Cameras":
        residual = None if self.residual is None else self.residual[views]
        return Cameras(self.camera_to_world[views], self.focal[views], self.principal[views], residual)

    @classmethod
    def orbit(
        cls,
        azimuths: Sequence[float],
        elevations: Sequence[float],
        distances: Sequence[float],
        focal: float = DEFAULT_FOCAL,
    ) -> "Cameras":
        """Cameras that look at the origin of a world whose z axis points up.

        Args:
            azimuths: degrees around z, from x towards y. elevations: degrees above the x-y plane.
            distances: from the origin, above 0. focal: in image sides.
        Raises: TaskError if the three differ in length, are empty or not finite, or a distance is not above 0.
        """
        try:
            angles = [np.atleast_1d(np.asarray(values, np.float64)) for values in (azimuths, elevations, distances)]
        except (TypeError, ValueError) as error:
            raise TaskError(f"azimuths, elevations and distances must be lists of numbers ({error})") from error
        if any(values.ndim != 1 or len(values) != len(angles[0]) for values in angles) or not len(angles[0]):
            counts = " and ".join(str(values.size) for values in angles)
            raise TaskError(
                f"azimuths, elevations and distances have {counts} entries; give one of each per camera, at least one"
            )
        if not all(np.isfinite(values).all() for values in angles) or (angles[2] <= 0).any():
            raise TaskError("azimuths, elevations and distances must be finite, and distances above 0")
        # The published code then permutes the world's axes; poses are used relative to view 0, where that cancels.
        pose = np.stack([_look_at_origin(*view) for view in zip(*angles, strict=True)])
        return cls(pose, np.full((len(pose), 2), focal), np.full((len(pose), 2), 0.5))

    @classmethod
    def from_matrices(cls, camera_to_world: ArrayLike, intrinsics: ArrayLike = DEFAULT_FOCAL) -> "Cameras":
        """Cameras from poses and intrinsic matrices.

        Args:
            camera_to_world: (n, 4, 4) or (n, 3, 4), OpenCV axes (x right, y down, z into the picture), any world.
            intrinsics: (n, 3, 3), or (3, 3) for all, in image sides: divide a matrix in pixels by the side of the
                square picture. A single number is a focal length with a centred principal point.
        Raises: TaskError for other shapes, skewed or non-rigid matrices and values that are not finite.
        """
        try:
            pose, matrices = np.array(camera_to_world, np.float64), np.array(intrinsics, np.float64)
        except (TypeError, ValueError) as error:
            raise TaskError(f"camera_to_world and intrinsics must be arrays of numbers ({error})") from error
        if pose.ndim == 3 and pose.shape[1:] == (3, 4):
            pose = np.concatenate([pose, np.broadcast_to([[[0.0, 0, 0, 1]]], (len(pose), 1, 4))], axis=1)
        if matrices.ndim == 0:
            matrices = np.array([[matrices, 0, 0.5], [0, matrices, 0.5], [0, 0, 1]], np.float64)
        if matrices.shape == (3, 3) and pose.ndim == 3:
            matrices = np.broadcast_to(matrices, (len(pose), 3, 3))
        if pose.ndim != 3 or matrices.shape != (len(pose), 3, 3):
            raise TaskError(
                f"camera_to_world has shape {pose.shape} and intrinsics {matrices.shape}; "
                "they are (views, 4, 4) and (views, 3, 3), or (3, 3) for all views"
            )
        if not np.allclose(matrices[:, [0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], [0, 0, 0, 0, 1], atol=1e-6):
            raise TaskError("intrinsics must look like [[fx, 0, px], [0, fy, py], [0, 0, 1]], without skew")
        if (matrices[:, [0, 1], [0, 1]] > 50).any():
            raise TaskError("intrinsics look like pixels; divide them by the side of the picture in pixels")
        return cls(pose, matrices[:, [0, 1], [0, 1]], matrices[:, :2, 2])

    @property
    def intrinsics(self) -> Array:
        """(n, 3, 3) intrinsic matrices in image sides."""
        matrices = np.tile(np.eye(3), (len(self), 1, 1))
        matrices[:, [0, 1], [0, 1]] = self.focal
        matrices[:, :2, 2] = self.principal
        return matrices

    def relative(self) -> "Cameras":
        """The same cameras in the world of camera 0, whose pose becomes the identity."""
        pose = np.linalg.inv(self.camera_to_world[0]) @ self.camera_to_world
        pose[0] = np.eye(4)
        return Cameras(pose, self.focal, self.principal, self.residual)

    def rays(self, side: int) -> NDArray[np.float32]:
        """Ray frames (n, 16, side, side) relative to view 0, ready to stand beside latents.

        Channels are direction d and moment m = centre x d, as d, m, d, m and the first four of (d, m), times 1.658.

        Args:
            side: of the frame in latent pixels (an eighth of the picture's side).
        """
        pose = self.relative().camera_to_world
        rotation, centre = FLIP @ pose[:, :3, :3] @ FLIP, pose[:, :3, 3] @ FLIP
        views = np.stack([_view_rays(side, f, p) for f, p in zip(self.focal, self.principal, strict=True)])
        direction = np.einsum("vij,vpj->vpi", rotation, views / np.linalg.norm(views, axis=-1, keepdims=True))
        moment = np.cross(centre[:, None], direction)
        line = np.concatenate([direction, moment], axis=-1)
        frame = np.concatenate([line, line, line[..., :4]], axis=-1) * RAY_SCALE
        return frame.transpose(0, 2, 1).reshape(len(self), RAY_CHANNELS, side, side).astype(np.float32)

    @classmethod
    def from_rays(cls, rays: NDArray[Any], focal: float | None = DEFAULT_FOCAL, *, rebase: bool = True) -> "Cameras":
        """Estimate the cameras of ray frames, noisy ones included.

        The centre is the point closest to all rays (least squares). With a known focal length the rotation is the
        best fit (Procrustes) of a centred camera's rays to the frame's; without one, a homography is fitted and
        split into rotation and intrinsics (RayDiffusion, arXiv:2402.14817).

        Args:
            rays: (n, 16, side, side). focal: in image sides, or None to estimate it and the principal point.
            rebase: return poses relative to the first of these frames, which is right where that is view 0. Rays are
                in the world of view 0 up to their noise: give False where view 0 is not among them.
        Raises: TaskError for other shapes, values that are not finite, or rays without a direction.
        """
        rays = np.asarray(rays, np.float64)
        if rays.ndim != 4 or rays.shape[1] != RAY_CHANNELS or rays.shape[2] != rays.shape[3] or not rays.size:
            raise TaskError(f"ray frames have shape {rays.shape}; they are (views, {RAY_CHANNELS}, side, side)")
        if not np.isfinite(rays).all():
            raise TaskError("the ray frames hold values that are not finite; no camera can be estimated from them")
        if focal is None and rays.shape[2] < 2:
            raise TaskError("one ray per view does not determine a focal length; give focal=")
        side = rays.shape[2]
        lines = rays.reshape(len(rays), RAY_CHANNELS, -1).transpose(0, 2, 1) / RAY_SCALE
        # The 16 channels hold each of the six numbers two or three times; their mean has the least noise.
        copies = [[lines[..., channel] for channel in range(start, RAY_CHANNELS, 6)] for start in range(6)]
        line = np.stack([np.mean(copy, axis=0) for copy in copies], axis=-1)
        length = np.linalg.norm(line[..., :3], axis=-1, keepdims=True)
        if (length < 1e-9).any():
            raise TaskError("the ray frames hold rays without a direction; no camera can be estimated from them")
        direction, moment = line[..., :3] / length, line[..., 3:] / length
        pose = np.tile(np.eye(4), (len(rays), 1, 1))
        lenses, principal, residual = np.empty((len(rays), 2)), np.full((len(rays), 2), 0.5), np.empty(len(rays))
        for view, (d, m) in enumerate(zip(direction, moment, strict=True)):
            centre, residual[view] = _nearest_point(d, m)
            if focal is None:
                lenses[view], principal[view] = _fit_intrinsics(d, side)
            else:
                lenses[view] = focal
            rotation = _best_rotation(_view_rays(side, lenses[view], principal[view]), d)
            pose[view, :3, :3], pose[view, :3, 3] = FLIP @ rotation @ FLIP, FLIP @ centre
        found = cls(pose, lenses, principal, residual)
        return found.relative() if rebase else found

    def to_json(self) -> str:
        """The cameras as JSON text; ``from_json`` reads it back to the last bit."""
        residual = [None] * len(self) if self.residual is None else self.residual.tolist()
        views = [
            {"camera_to_world": pose.tolist(), "focal": f.tolist(), "principal": p.tolist(), "residual": r}
            for pose, f, p, r in zip(self.camera_to_world, self.focal, self.principal, residual, strict=True)
        ]
        return json.dumps({"axes": "opencv", "unit": "image sides", "cameras": views}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Cameras":
        """Read what ``to_json`` wrote. Raises: TaskError if it is something else."""
        try:
            views = json.loads(text)["cameras"]
            residual = [view.get("residual") for view in views]
            pose, focal, principal = (
                np.array([view[name] for view in views], np.float64)
                for name in ("camera_to_world", "focal", "principal")
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TaskError(
                "the text is not a list of cameras; expected JSON as Cameras.to_json writes it: "
                '{"cameras": [{"camera_to_world": 4x4, "focal": [x, y], "principal": [x, y]}, ...]}'
            ) from error
        return cls(pose, focal, principal, None if None in residual else np.array(residual, np.float64))


def _numbers(name: str, value: ArrayLike) -> Array:
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TaskError(f"{name} must be numbers ({error})") from error


def _look_at_origin(azimuth: float, elevation: float, distance: float) -> Array:
    """(4, 4) camera-to-world in a z-up world; at a pole the picture's up is y."""
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    back = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])  # from the origin to the camera
    right = np.cross([0.0, 0, 1], back)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross([0.0, 1, 0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, -np.cross(back, right), -back, distance * back], axis=1)
    return pose


def _ndc_grid(side: int) -> Array:
    """(side^2, 2) x and y of the pixel centres, row by row: both run from 1 - 1/side down to -(1 - 1/side)."""
    ticks = 1 - (2 * np.arange(side) + 1) / side
    y, x = np.meshgrid(ticks, ticks, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def _view_rays(side: int, focal: Array, principal: Array) -> Array:
    """(side^2, 3) ray directions of a camera at the identity, third component 1; a picture is 2 wide in NDC."""
    plane = (_ndc_grid(side) - (1 - 2 * principal)) / (2 * focal)
    return np.concatenate([plane, np.ones((side * side, 1))], axis=-1)


def _nearest_point(direction: Array, moment: Array) -> tuple[Array, float]:
    """The point c that minimises sum |c x d - m|^2 over unit directions d, and the root mean square of its terms."""
    count = len(direction)
    normal = count * np.eye(3) - direction.T @ direction
    centre = np.linalg.lstsq(normal, np.cross(direction, moment).sum(axis=0), rcond=1e-9)[0]
    misses = np.cross(centre, direction) - moment
    return centre, float(np.sqrt((misses**2).sum(axis=-1).mean()))


def _best_rotation(source: Array, target: Array) -> Array:
    """The rotation R that minimises sum |R source/|source| - target|^2."""
    source = source / np.linalg.norm(source, axis=-1, keepdims=True)
    left, _, right = np.linalg.svd(target.T @ source)
    return np.asarray(left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right)


def _fit_intrinsics(direction: Array, side: int) -> tuple[Array, Array]:
    """Focal (2,) and principal (2,) from the homography between the grid and the ray directions.

    d ~ A (x, y, 1) with A = R K^-1, so the smallest singular vector of the equations [d]x A g = 0 is A, and the
    upper triangle of an RQ decomposition of A^-1 = K R^T is K. R is better fitted to the rays afterwards: noise can
    turn the one found here into a reflection.
    """
    grid = np.concatenate([_ndc_grid(side), np.ones((side * side, 1))], axis=-1)
    x, y, z = direction.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    system = np.einsum("pij,pk->pijk", cross, grid).reshape(-1, 9)
    homography = np.linalg.eigh(system.T @ system)[1][:, 0].reshape(3, 3)
    if abs(np.linalg.det(homography)) < 1e-9:
        raise TaskError("the rays of a view do not spread over a picture; give focal= to estimate its rotation alone")
    # RQ of a matrix is the QR of its rows in reverse order.
    upper = np.linalg.qr(np.linalg.inv(homography)[::-1].T)[1].T[::-1, ::-1]
    upper = upper * np.where(np.diag(upper) < 0, -1.0, 1.0) / abs(upper[2, 2])
    return np.diag(upper)[:2] / 2, (1 - upper[:2, 2]) / 2
