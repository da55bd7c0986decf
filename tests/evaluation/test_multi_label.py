"""Average precision of a multi-label classifier, by hand and against the definition in loops."""

import numpy as np
import pytest

from wsol_jax.evaluation.multi_label import (
    average_precisions,
    mean_average_precision,
    positives,
    precision_recall,
)


def test_average_precision_by_hand():
    # Ranked: yes, no, no, yes, yes. Precision where an image is found: 1, 2/4, 3/5; the second is
    # raised to the third.
    scores = np.array([0.2, 0.9, 0.8, 0.4, 0.3])
    positive = np.array([True, True, False, False, True])
    found = average_precisions(scores[:, None], positive[:, None])
    np.testing.assert_allclose(found, [100 * (1 + 3 / 5 + 3 / 5) / 3])


def test_images_of_the_same_score_pass_together():
    # One threshold at 2 of 4 with the one positive, whichever comes first.
    scores = np.array([1.0, 1.0, 0.0, -1.0])
    for order in ([0, 1, 2, 3], [1, 0, 2, 3]):
        positive = np.array([True, False, False, False])[order]
        np.testing.assert_allclose(average_precisions(scores[:, None], positive[:, None]), [50])
    precision, recall = precision_recall(scores, positive)
    np.testing.assert_allclose(precision, [1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(recall, [1, 1, 1])


def of_definition(scores, positive, raised):
    """Over the ranks of all positives: precision there, or the highest at that recall or above."""
    thresholds = sorted(set(scores), reverse=True)
    points = []
    for threshold in thresholds:
        taken = scores >= threshold
        points.append((positive[taken].mean(), positive[taken].sum() / positive.sum()))
    area, before = 0.0, 0.0
    for precision, recall in points:
        best = max(p for p, r in points if r >= recall) if raised else precision
        area += (recall - before) * best
        before = recall
    return 100 * area


def test_average_precision_against_loops():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, (30, 5)).astype(np.float32)  # with ties
    positive = rng.random((30, 5)) < (0.1, 0.3, 0.5, 0.9, 0.0)
    found = average_precisions(scores, positive)
    expected = [
        of_definition(s, p, True) for s, p in zip(scores.T[:4], positive.T[:4], strict=True)
    ]
    np.testing.assert_allclose(found[:4], expected)
    assert np.isnan(found[4])
    assert mean_average_precision(found) == pytest.approx(np.mean(expected))
    assert np.isnan(mean_average_precision(found[4:]))


def test_precision_and_recall_give_the_area_of_sklearn():
    """Of the curve as it is, which its `average_precision_score` takes."""
    metrics = pytest.importorskip('sklearn.metrics')
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 20, 50) / 20, rng.random(50) < 0.3
    precision, recall = precision_recall(scores, positive)
    area = np.sum(np.diff(recall, prepend=0) * precision)
    assert area == pytest.approx(metrics.average_precision_score(positive, scores))
    assert 100 * area == pytest.approx(of_definition(scores, positive, raised=False))


def test_labels_are_padded():
    found = positives(np.array([[2, 0], [1, -1], [-1, -1]]), 3)
    np.testing.assert_array_equal(found, np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], bool))
