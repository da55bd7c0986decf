"""All contours of a map in one pass, against OpenCV's of each cut."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import wsol_jax
from wsol_jax.evaluation import box_metrics
from wsol_jax.evaluation.box_metrics import best_boxes

pytest.importorskip('numba', reason='the one pass over all cuts needs numba (extra: fast)')

from wsol_jax.maps.components import contours


def smooth(rng, side, size, power=1):
    scores = cv2.resize(rng.random((side, side)) ** power, size, interpolation=cv2.INTER_CUBIC)
    scores -= scores.min()
    return scores / scores.max()


def rings(size):
    y, x = np.mgrid[:size, :size] - size / 2
    return (np.cos(np.hypot(x, y)) + 1) / 2


def maps_of(seed):
    rng = np.random.default_rng(seed)
    yield from (smooth(rng, side, (61, 47), 1 + side % 3) for side in (3, 7, 14, 28))
    yield rng.random((33, 40))  # noise: ties, holes in islands in holes
    yield np.round(smooth(rng, 9, (50, 50)) * 5) / 5  # plateaus
    yield (rng.random((24, 31)) > 0.6).astype(float)
    yield rings(45)
    yield 1 - rings(30)
    yield np.kron(np.indices((7, 7)).sum(0) % 2, np.ones((3, 3)))  # squares that touch at corners
    yield np.linspace(0, 1, 12)[None]
    yield np.linspace(0, 1, 12)[:, None]
    yield np.ones((4, 5))
    yield np.pad(np.zeros((3, 3)), 2, constant_values=1.0)


def plain_contours(grey, cut):
    """Boxes of every contour of one cut, and the area of each."""
    found, _ = cv2.findContours(
        (grey > cut).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE
    )
    boxes = [cv2.boundingRect(contour) for contour in found]
    return [(x, y, x + w - 1, y + h - 1) for x, y, w, h in boxes], list(map(cv2.contourArea, found))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_contours_are_those_of_opencv_at_every_cut(seed):
    for scores in maps_of(seed):
        grey = (scores * 255).astype(np.uint8)
        found = contours(grey)
        assert len(found.largest) == grey.max()
        for cut in range(grey.max()):
            boxes, areas = plain_contours(grey, cut)
            there = (found.cuts[:, 0] <= cut) & (found.cuts[:, 1] >= cut)
            assert sorted(map(tuple, found.boxes[there].tolist())) == sorted(boxes)
            if not found.unclear[cut]:  # of several, OpenCV's first one
                assert tuple(found.largest[cut].tolist()) == boxes[np.argmax(areas)]


@pytest.mark.slow
def test_what_is_unclear_is_seldom():
    rng = np.random.default_rng(9)
    found = [contours((smooth(rng, 14, (224, 224)) * 255).astype(np.uint8)) for _ in range(4)]
    assert np.mean([one.unclear.mean() for one in found]) < 0.05


def test_a_hole_by_hand():
    grey = np.array(
        [
            [9, 9, 9, 9, 0, 0],
            [9, 2, 5, 9, 0, 7],
            [9, 9, 9, 9, 0, 0],
        ],
        np.uint8,
    )
    found = contours(grey)
    rows = sorted(zip(found.cuts.tolist(), found.boxes.tolist(), strict=True))
    assert rows == [
        ([0, 1], [0, 0, 3, 2]),  # filled
        ([0, 6], [5, 1, 5, 1]),
        ([2, 4], [0, 0, 2, 2]),  # the contour of the hole where the 5 is foreground
        ([2, 4], [0, 0, 3, 2]),
        ([5, 8], [0, 0, 3, 2]),  # around two holes that are one, and its contour
        ([5, 8], [0, 0, 3, 2]),
    ]
    assert found.largest.tolist() == [[0, 0, 3, 2]] * 9


@pytest.mark.slow
@pytest.mark.parametrize('thresholds', [np.arange(0, 1, 0.001), np.arange(0, 1, 0.05), [0.2]])
def test_scores_are_those_without_numba_to_the_last_bit(thresholds, monkeypatch):
    truths = np.array([[5, 3, 30, 28], [0, 0, 9, 9]]), np.zeros((0, 4), int)
    maps = list(maps_of(7))
    found = [best_boxes(scores, thresholds, truth) for scores in maps for truth in truths]
    monkeypatch.setattr(box_metrics, '_compiled', lambda: False)
    plain = [best_boxes(scores, thresholds, truth) for scores in maps for truth in truths]
    for one, other in zip(found, plain, strict=True):
        for got, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(got, expected)


SCORE = """
import numpy as np
from wsol_jax.evaluation.box_metrics import best_boxes
boxes = best_boxes(np.load('scores.npy'), np.arange(0, 1, 0.01), np.array([[5, 3, 30, 28]]))
np.savez('boxes.npz', *boxes)
"""


def test_where_nothing_compiled_can_be_kept_contours_are_sought_without(tmp_path):
    scores = smooth(np.random.default_rng(3), 6, (40, 40))
    np.save(tmp_path / 'scores.npy', scores)
    root = str(Path(wsol_jax.__file__).parents[1])
    env = os.environ | {'NUMBA_CACHE_DIR': '/dev/null/full', 'PYTHONPATH': root}
    command = [sys.executable, '-c', SCORE]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=100)
    expected = best_boxes(scores, np.arange(0, 1, 0.01), np.array([[5, 3, 30, 28]]))
    found = np.load(tmp_path / 'boxes.npz')
    for name, values in zip(found, expected, strict=True):
        np.testing.assert_array_equal(found[name], values)
