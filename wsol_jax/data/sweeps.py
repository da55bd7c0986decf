"""A sweep of a LiDAR as it lies on disk, and its points."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsol_jax.data.boxes_3d import Array
from wsol_jax.data.files import may_pass, printable, read_file, reason
from wsol_jax.data.records import BadImage, Encoded, ReadError

Matrix = tuple[tuple[float, ...], ...]
COLUMNS = 5  # of a point: x, y, z, intensity, time lag


class Sweep(NamedTuple):
    """One turn of a LiDAR: float32 rows that begin with x, y, z, intensity.

    Attributes:
        points: file, or the bytes themselves.
        columns: numbers in a row, 4 or more.
        full: intensity of a full return.
        near: metres; what returns within them in x and y is the vehicle itself.
        lag: seconds that it was taken before its frame.
        transform: [3, 4] from its own LiDAR frame to that of its frame; () for the same.
    """

    points: Encoded
    columns: int = 4
    full: float = 1.0
    near: float = 0.0
    lag: float = 0.0
    transform: Matrix = ()


def read_sweep(sweep: Sweep, roots: tuple[Path, ...]) -> Array:
    """Its points.

    Args:
        sweep: whose file is read.
        roots: real paths of folders, in one of which it must lie; () for anywhere.

    Returns:
        float32 [P, 5]: x, y, z in the LiDAR frame of its frame, intensity (1 for a full return),
        and the time lag in seconds.

    Raises:
        BadImage: it is missing, of a wrong length, or holds what is no number.
        ReadError: the system failed to read it.
    """
    content, name = sweep.points, 'sweep'
    if isinstance(content, Path):
        name = printable(str(content))
        try:
            content = read_file(content, roots)
        except OSError as error:
            kind = ReadError if may_pass(error) else BadImage
            raise kind(f'{name}: {reason(error)}') from None
    if not content:
        raise BadImage(f'{name}: is empty; a sweep has points')
    row = 4 * sweep.columns
    if len(content) % row:
        right = f'a multiple of {row}, {sweep.columns} floats a point'
        raise BadImage(f'{name}: has {len(content)} bytes; a sweep has {right}')
    rows = np.frombuffer(content, '<f4').reshape(-1, sweep.columns)[:, :4]
    if not np.isfinite(rows).all():
        raise BadImage(f'{name}: has values that are no numbers')
    return _placed(rows[(abs(rows[:, :2]) >= sweep.near).any(1)], sweep)


def _placed(rows: Array, sweep: Sweep) -> Array:
    points = np.empty((len(rows), COLUMNS), np.float32)
    points[:, :3] = rows[:, :3]
    if sweep.transform:
        transform = np.array(sweep.transform)
        points[:, :3] = rows[:, :3] @ transform[:, :3].T + transform[:, 3]
    points[:, 3] = rows[:, 3] / sweep.full
    points[:, 4] = sweep.lag
    return points
