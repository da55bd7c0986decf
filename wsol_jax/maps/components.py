"""Contours of a grey map at all cuts in one pass, compiled by numba (`pip install wsol_jax[fast]`).

The connected components of {grey > cut} only grow and merge as the cut falls: pixels are added from
the brightest on, and a union-find knows the components of every cut on its way. Holes are the
components of the background, as the cut rises.

Tarjan, "Efficiency of a good but not linear set union algorithm", 1975; Najman and Couprie,
"Building the component tree in quasi-linear time", 2006.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

_LEVELS = 256  # of grey
_FEW = 16  # cuts that are not worth another pass


@dataclass(frozen=True)
class Contours:
    """The n contours of {grey > cut}, each as it is over a range of cuts.

    Attributes:
        cuts: [n, 2] the lowest and the highest cut that it is so at.
        boxes: [n, 4] x0, y0, x1, y1 of its pixels, both ends inclusive.
        largest: [T, 4] the box of the one that encloses most, at each cut below the maximum.
        unclear: bool [T], it may be another one: several enclose as much, or holes in them make it
            hard to tell.
    """

    cuts: np.ndarray
    boxes: np.ndarray
    largest: np.ndarray
    unclear: np.ndarray

    def best(self, values: np.ndarray) -> np.ndarray:
        """[T] the highest of values [n] in [0, 1] among the contours of each cut."""
        return _highest(self.cuts, values, len(self.unclear))


class _Components(NamedTuple):
    """Components of {values > cut}.

    `cuts` [n, 2] and `boxes` [n, 4] as above; `areas` [n] in half square pixels that the outline
    through the centres of the pixels encloses, without those of `holes` [n], of which there are so
    many; `pixels` [n] are the index of one pixel of each.
    """

    cuts: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    holes: np.ndarray
    pixels: np.ndarray


def contours(grey: np.ndarray) -> Contours:
    """The contours that `cv2.findContours` has of {grey > cut}, at every cut below the maximum.

    Args:
        grey: [h, w] uint8, not all of it 0.
    """
    outer, filled, count = _components(grey, True), _filled(grey), int(grey.max())
    cuts, boxes = _holes(grey, filled)
    wide, high = (outer.boxes[:, 2:] - outer.boxes[:, :2]).T
    most = np.where(outer.holes > 0, 2 * wide * high, outer.areas)
    # A hole can enclose as much as what is around it, which then comes first.
    largest, unclear = _largest(outer.cuts, outer.boxes, outer.areas, most, count)
    if unclear.sum() > _FEW and len(cuts):
        top = _components(filled, True)  # what lies in a hole of another is smaller
        largest, unclear = _largest(top.cuts, top.boxes, top.areas, top.areas, count)
    cuts, boxes = np.concatenate([outer.cuts, cuts]), np.concatenate([outer.boxes, boxes])
    return Contours(cuts, boxes, largest, unclear)


def _holes(grey: np.ndarray, filled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts and boxes of the contours of holes: background that does not reach the border."""
    basins = filled > grey  # what is in a hole at some cut
    if not basins.any():
        return np.zeros((0, 2), int), np.zeros((0, 4), int)
    # {grey <= cut} is {255 - grey > 254 - cut}.
    found = _components(np.where(basins, _LEVELS - 1 - grey, 0).astype(np.uint8), False)
    cuts = _LEVELS - 2 - found.cuts[:, ::-1]
    spilling = filled.ravel()[found.pixels].astype(int)
    cuts[:, 1] = np.minimum(cuts[:, 1], spilling - 1)
    there = cuts[:, 0] <= cuts[:, 1]
    # The contour runs through the pixels around the hole.
    return cuts[there], found.boxes[there] + np.array([-1, -1, 1, 1])


@njit(cache=True)
def _highest(cuts, values, count):  # type: ignore[no-untyped-def]
    best = np.zeros(count)
    for i in range(len(values)):
        for cut in range(cuts[i, 0], min(cuts[i, 1] + 1, count)):
            best[cut] = max(best[cut], values[i])
    return best


@njit(cache=True)
def _largest(cuts, boxes, areas, most, count):  # type: ignore[no-untyped-def]
    """The box [count, 4] of the largest component at each cut, and whether another may be it.

    Each encloses at least its `areas`, and at most its `most`.
    """
    best = np.full(count, -1)
    for i in range(len(areas)):
        for cut in range(cuts[i, 0], cuts[i, 1] + 1):
            if best[cut] < 0 or areas[i] > areas[best[cut]]:
                best[cut] = i
    unclear = np.zeros(count, np.bool_)
    for i in range(len(areas)):
        for cut in range(cuts[i, 0], cuts[i, 1] + 1):
            if most[i] >= areas[best[cut]] and (boxes[i] != boxes[best[cut]]).any():
                unclear[cut] = True
    return boxes[best], unclear


# The eight pixels around one, (down, right), clockwise: bit k of a set of neighbours is the k-th.
_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def _near(one: tuple[int, int], two: tuple[int, int], diagonal: bool) -> bool:
    down, right = abs(one[0] - two[0]), abs(one[1] - two[1])
    return max(down, right) == 1 if diagonal else down + right == 1


def _groups(diagonal: bool) -> np.ndarray:
    """[256, 7] of every set of neighbours: what a pixel among them changes.

    How many groups of them hang together without the pixel, and a place in _RING of each (at most
    4); how many half squares more are enclosed: three corners of a square enclose half of it, the
    fourth the other half; and whether the pixel was a hole itself.
    """
    table = np.zeros((256, 7), np.int64)
    for number in range(256):
        there = [k for k in range(8) if number >> k & 1]
        groups: list[list[int]] = []
        for k in there:
            near = [g for g in groups if any(_near(_RING[k], _RING[j], diagonal) for j in g)]
            groups = [g for g in groups if g not in near] + [[k, *(j for g in near for j in g)]]
        nearest = [min(g, key=lambda k: k % 2) for g in groups]  # even places share a side with it
        joined = [k for k in nearest if diagonal or k % 2 == 0]
        table[number, : len(joined) + 1] = len(joined), *joined
        squares = ({k - 1, k, (k + 1) % 8} for k in (1, 3, 5, 7))
        table[number, 5] = sum(len(square.intersection(there)) >= 2 for square in squares)
        table[number, 6] = {0, 2, 4, 6}.issubset(there)
    return table


_GROUPS = {diagonal: _groups(diagonal) for diagonal in (True, False)}


def _components(values: np.ndarray, diagonal: bool) -> _Components:
    """Those of {values > cut} by 8-connectivity, or by 4-connectivity; the cuts start at 0."""
    rows = _swept(values, _GROUPS[diagonal], np.array(_RING))
    return _Components(rows[:, :2], rows[:, 2:6], *rows[:, 6:].T)


@njit(cache=True)
def _swept(values, groups, ring):  # type: ignore[no-untyped-def]
    """The columns [n, 9] of the components."""
    wide = values.shape[1] + 2  # a frame around it spares questions about the border
    steps = ring[:, 0] * wide + ring[:, 1]
    parent = np.full(wide * (values.shape[0] + 2), -1, np.int32)  # -1: not in the foreground yet
    # Of a root: its box, area, holes and pixel; the level from which on it is so; its pixels.
    state = np.empty((len(parent), 9), np.int32)
    ended, count = np.empty((len(parent), 9), np.int32), 0
    for pixel in _brightest_first(values):
        y, x = pixel // values.shape[1], pixel % values.shape[1]
        level, here = values[y, x], (y + 1) * wide + x + 1
        there = 0
        for k in range(8):
            there |= (parent[here + steps[k]] >= 0) << k
        root, more = -1, -groups[there, 6]
        for k in range(1, groups[there, 0] + 1):
            other = here + steps[groups[there, k]]
            while parent[other] != other:
                parent[other] = parent[parent[other]]
                other = parent[other]
            if other == root:
                more += 1  # the pixel closes a ring
                continue
            count = _changed(state, other, level, ended, count)
            root = other if root < 0 else _united(root, other, parent, state)
        if root < 0:
            root = here
            state[root, 0], state[root, 1], state[root, 6], state[root, 7] = x, y, pixel, level
            state[root, 2:6] = state[root, 8] = 0  # the box grows by this pixel below
        parent[here] = root
        state[root, 0], state[root, 1] = min(state[root, 0], x), min(state[root, 1], y)
        state[root, 2], state[root, 3] = max(state[root, 2], x), max(state[root, 3], y)
        state[root, 4] += groups[there, 5]
        state[root, 5] += more
        state[root, 8] += 1
    for root in range(len(parent)):
        if parent[root] == root:
            count = _changed(state, root, 0, ended, count)
    return ended[:count]


@njit(cache=True)
def _changed(state, root, level, ended, count):  # type: ignore[no-untyped-def]
    """Notes a component that is another one from this level on downwards; how many are noted."""
    if state[root, 7] <= level:
        return count
    ended[count, 0], ended[count, 1] = level, state[root, 7] - 1
    for k in range(7):
        ended[count, 2 + k] = state[root, k]
    state[root, 7] = level
    return count + 1


@njit(cache=True)
def _united(one, two, parent, state):  # type: ignore[no-untyped-def]
    """Joins two components; the root of both, that of the larger one."""
    if state[one, 8] > state[two, 8]:
        one, two = two, one
    parent[one] = two
    for k in range(2):
        state[two, k] = min(state[one, k], state[two, k])
        state[two, k + 2] = max(state[one, k + 2], state[two, k + 2])
        state[two, k + 4] += state[one, k + 4]
    state[two, 8] += state[one, 8]
    return two


@njit(cache=True)
def _brightest_first(values):  # type: ignore[no-untyped-def]
    """Indices of the pixels above 0, by falling value."""
    flat = values.ravel()
    starts = np.zeros(_LEVELS + 1, np.int64)
    for value in flat:
        starts[_LEVELS - value] += 1  # how many there are of each, one place on
    starts = np.cumsum(starts)
    positive = starts[_LEVELS - 1]
    order = np.empty(len(flat), np.int32)
    for pixel in range(len(flat)):
        place = _LEVELS - 1 - flat[pixel]
        order[starts[place]] = pixel
        starts[place] += 1
    return order[:positive]


@njit(cache=True)
def _filled(grey):  # type: ignore[no-untyped-def]
    """The map with its holes filled at every cut: the lowest rim on the way to the border.

    Flooded from the border, the lowest level first (Barnes et al., "Priority-flood", 2014).
    """
    height, width = grey.shape
    filled = np.full(grey.shape, -1, np.int16)
    waiting = np.full(_LEVELS, -1, np.int32)  # the last pixel that waits at each level
    before = np.empty(grey.size, np.int32)  # and the one before each
    for y in range(height):
        for x in range(width):
            if y in (0, height - 1) or x in (0, width - 1):
                filled[y, x] = grey[y, x]
                before[y * width + x] = waiting[grey[y, x]]
                waiting[grey[y, x]] = y * width + x
    for level in range(_LEVELS):
        while waiting[level] >= 0:
            pixel = waiting[level]
            waiting[level] = before[pixel]
            y, x = pixel // width, pixel % width
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                v, u = y + down, x + right
                if 0 <= v < height and 0 <= u < width and filled[v, u] < 0:
                    rim = max(level, grey[v, u])
                    filled[v, u] = rim
                    before[v * width + u] = waiting[rim]
                    waiting[rim] = v * width + u
    return filled.astype(np.uint8)
