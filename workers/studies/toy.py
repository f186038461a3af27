"""The two-dimensional example (WASH, figure 3 and appendix, equations 7 and 8). Pure NumPy.

Pairs of points start at (0, 5) and (5, 0). They take noisy gradient steps on a loss with two local
minima and a global one. Two points go separately, are pulled together (PAPA), or shuffle their
coordinates (WASH).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""An array of points: the last axis has the two coordinates."""

MINIMA = (((10.0, 10.0), 10.0, 0.1), ((8.0, 3.0), 5.0, 0.3), ((3.0, 8.0), 5.0, 0.3))
"""Place, depth and lambda of each term of equation 8."""
GLOBAL = np.array(MINIMA[0][0])
STARTS = np.array([[0.0, 5.0], [5.0, 0.0]])
METHODS = ("none", "papa", "wash")
STEPS, LR, ALPHA, P = 1000, 0.1, 0.99, 0.01
REACHED = 1.5
"""How near to (10, 10) a point must end to have reached it."""


def loss(points: Points) -> Points:
    """Equation 8 at `points` (... x 2)."""
    total = np.zeros(points.shape[:-1])
    for place, depth, steepness in MINIMA:
        total -= depth * np.exp(-steepness * _distance(points, place))
    return total


def gradient(points: Points) -> Points:
    """The gradient of `loss` at `points` (... x 2). The term of a minimum is 0 at its own cusp."""
    total = np.zeros_like(points)
    for place, depth, steepness in MINIMA:
        distance = _distance(points, place)[..., None]
        away = 0.5 * (points - np.array(place))
        direction = np.divide(away, distance, out=np.zeros_like(points), where=distance > 0)
        total += depth * steepness * np.exp(-steepness * distance) * direction
    return total


def trajectories(method: str, *, runs: int, noise: float, seed: int = 0) -> Points:
    """The paths of `runs` pairs of points: (STEPS + 1) x runs x 2 points x 2 coordinates.

    `noise` is the standard deviation of the noise on each coordinate of a gradient.
    """
    generator = np.random.default_rng(seed)
    points = np.tile(STARTS, (runs, 1, 1))
    path = [points]
    for _ in range(STEPS):
        points = points - LR * (gradient(points) + noise * generator.normal(size=points.shape))
        if method == "papa":
            points = ALPHA * points + (1 - ALPHA) * points.mean(axis=1, keepdims=True)
        elif method == "wash":
            selected = generator.random((runs, 1, 2)) < P
            exchanged = generator.random((runs, 1, 2)) < 0.5  # one of two permutations
            points = np.where(selected & exchanged, points[:, ::-1], points)
        path.append(points)
    return np.array(path)


def reached(path: Points) -> npt.NDArray[np.bool_]:
    """Whether both points of each run end near the global minimum."""
    away = np.linalg.norm(path[-1] - GLOBAL, axis=-1)
    both: npt.NDArray[np.bool_] = (away < REACHED).all(axis=-1)
    return both


def _distance(points: Points, place: tuple[float, float]) -> Points:
    """The root of half the squared distance from `points` (... x 2) to `place` (equation 7)."""
    squares: Points = 0.5 * ((points - np.array(place)) ** 2).sum(axis=-1)
    return np.sqrt(squares)
