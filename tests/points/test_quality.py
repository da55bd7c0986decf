"""Quality over distance by hand; scores of a frame's boxes within their region."""

from types import SimpleNamespace

import numpy as np
import pytest

from wsol_jax.data.frames import Camera, Frame, frame_record
from wsol_jax.data.records import Decoding
from wsol_jax.points.quality import QualityTable, match_quality, quality_rows
from wsol_jax.points.score import joined, score_frames

REGION = (0, -20, -3, 40, 20, 3)


def box(x, y=0.0, z=0.0, yaw=0.0):
    return [x, y, z, 4, 2, 2, yaw]


def test_detections_take_what_is_near_and_free():
    true = np.array([box(5), box(15), box(25)])
    found = np.array([box(5.5), box(6), box(15), box(28)])
    table = match_quality(
        found, np.array([0, 0, 1, 0]), np.array([0.5, 0.9, 0.8, 0.7]), true, np.array([0, 0, 0])
    )
    np.testing.assert_allclose(
        table.errors, [1.0, np.nan, np.nan]
    )  # the higher score, not the nearest
    np.testing.assert_allclose(table.overlaps, [3 / 5, 0, 0])
    assert table.distances.tolist() == [5, 15, 25] and table.objects == 3


def test_rings_by_hand():
    table = QualityTable(
        np.array(4),
        np.array([5.0, 9, 25, 70]),
        np.array([0.5, np.nan, 1.0, np.nan]),
        np.array([0.8, 0, 0.4, 0]),
    )
    near, middle, far = quality_rows(table)
    assert near == {'from': 0, 'boxes': 2, 'recall': 50, 'IoU': pytest.approx(40), 'error': 0.5}
    assert middle['from'] == 20 and middle['recall'] == 100
    assert far == {'from': 30, 'boxes': 1, 'recall': 0, 'IoU': 0}


def test_frames_are_scored_within_their_region_and_join():
    camera = Camera(b'', ((1.0, 0, 0, 0),) * 3, (8, 4))
    frame = Frame((), (camera,), (tuple(box(5)), tuple(box(60))), (1, 1))
    record = frame_record('a', frame, Decoding())
    columns = {
        'boxes': np.array([[box(5.4), box(0)]], np.float32),
        'classes': np.array([[1, -1]]),
        'scores': np.array([[0.9, 0.0]]),
    }
    part = SimpleNamespace(records=[record], columns=columns)
    scored = score_frames(part, None, None, names=('a', 'b'), region=REGION)
    assert scored.detections.objects.tolist() == [0, 1] and len(scored.detections.scores) == 1
    assert scored.quality.errors == pytest.approx([0.4], abs=1e-5)
    nothing = score_frames(
        SimpleNamespace(records=[], columns={}), None, None, names=('a', 'b'), region=REGION
    )
    both = joined([scored, nothing, scored])
    assert both.detections.objects.tolist() == [0, 2] and both.quality.objects == 2


def test_ranges_are_measured_from_the_vehicle():
    """A barrier counts within 30 m: 31 m from the LiDAR it does, from a vehicle 2 m ahead."""
    camera = Camera(b'', ((1.0, 0, 0, 0),) * 3, (8, 4))
    columns = {
        'boxes': np.array([[box(31)]], np.float32),
        'classes': np.array([[0]]),
        'scores': np.array([[0.9]]),
    }
    for ahead, counted in ((0.0, 0), (2.0, 1)):
        frame = Frame((), (camera,), (tuple(box(31)),), (0,), vehicle=(ahead, 0.0))
        part = SimpleNamespace(records=[frame_record('a', frame, Decoding())], columns=columns)
        scored = score_frames(part, None, None, names=('barrier',), region=REGION)
        assert scored.detections.objects.tolist() == [counted]
        assert len(scored.detections.scores) == counted
