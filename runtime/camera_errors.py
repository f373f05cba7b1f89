"""How far estimated cameras are from true ones, as pose papers report it."""

import numpy as np
from numpy.typing import NDArray

from framert.runtime.cameras import Cameras
from framert.runtime.errors import TaskError


def rotation_errors(estimate: Cameras, truth: Cameras) -> NDArray[np.float64]:
    """Angles in degrees (n - 1,) between the rotations of views 1.. relative to view 0."""
    found, right = _relative_poses(estimate, truth)
    turns = np.swapaxes(found[1:, :3, :3], 1, 2) @ right[1:, :3, :3]
    # From the difference of the matrices rather than the arc cosine of the trace, which loses small angles.
    chord = np.linalg.norm(turns - np.eye(3), axis=(1, 2)) / np.sqrt(8)
    return np.asarray(np.rad2deg(2 * np.arcsin(np.minimum(chord, 1))))


def centre_errors(estimate: Cameras, truth: Cameras) -> NDArray[np.float64]:
    """Distances (n,) between camera centres after the best similarity, in units of the scene.

    The unit is the distance of the true camera farthest from their mean, so "accuracy@0.3" is the share below 0.3.
    Two cameras always align exactly; use three or more.
    """
    found, right = (poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0) for poses in _relative_poses(estimate, truth))
    left, stretch, turned = np.linalg.svd(right.T @ found)
    sign = np.array([1, 1, np.linalg.det(left @ turned)])
    spread = (found**2).sum()
    scale = (stretch * sign).sum() / spread if spread > 0 else 0.0
    aligned = scale * found @ (left @ np.diag(sign) @ turned).T
    unit = np.linalg.norm(right, axis=-1).max()
    if unit == 0:
        raise TaskError("all true cameras stand in one place, which gives centre errors no unit; compare rotations")
    return np.asarray(np.linalg.norm(aligned - right, axis=-1) / unit)


def _relative_poses(estimate: Cameras, truth: Cameras) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(estimate) != len(truth):
        raise TaskError(f"{len(estimate)} cameras were estimated and {len(truth)} are true; compare the same views")
    return estimate.relative().camera_to_world, truth.relative().camera_to_world
