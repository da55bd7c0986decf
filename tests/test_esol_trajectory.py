"""Recall, precision and IoU of class maps over their epochs, by hand."""

import numpy as np
import pytest

from experiments.esol_trajectory import THRESHOLDS, counts, scores, table


def test_pixels_and_scores_by_hand():
    # Class 1: 4 of 8 pixels, of which 3 are found at 0.3 beside 1 more; class 3: 1, found.
    truth = np.array([[2, 2, 2, 2], [0, 0, 0, 4]])
    first = np.array([[8, 4, 4, 1], [0, 0, 4, 0]], np.float32)
    second = np.array([[0, 0, 0, 0], [0, 0, 0, 5]], np.float32)
    found = counts(np.stack([first, second]), [1, 3], truth)
    at = list(THRESHOLDS).index(0.3)
    assert found[:, at].tolist() == [4, 5, 5]
    # At 0.1 the pixel of 1/8 is found, too: 5 of 6 are right.
    expected = {'recall': 80, 'precision': 80, 'IoU': 100 * 5 / 6}
    assert scores(*found) == pytest.approx(expected)
    nothing = counts(np.zeros((1, 2, 4), np.float32), [1], truth)
    assert not nothing[:2].any() and nothing[2].tolist() == [4] * len(THRESHOLDS)


def test_the_table_has_a_row_for_each_epoch():
    lines = table((60, 50, 40), {'expansion': [(70, 40, 35)], 'shrinkage': [(65, 55, 45)]})
    rows = [line.split('|')[1:-1] for line in lines.splitlines() if line.startswith('|')]
    assert [[cell.strip() for cell in row[:3]] for row in rows[2:]] == [
        ['cam', '', '60.0'],
        ['expansion', '1', '70.0'],
        ['shrinkage', '1', '65.0'],
    ]
