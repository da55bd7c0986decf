"""The experiment with phrases of captions."""

import numpy as np

from experiments.concepts import Images, learn, pointing
from wsol_jax.evaluation.multi_label import average_precisions


def test_whole_words_of_captions_count():
    images = Images([], np.zeros(0), ['red car . dog', 'scar', 'dog left of car'])
    assert images.speaking_of('car').tolist() == [True, False, True]
    assert images.speaking_of('left of').tolist() == [False, False, True]


def test_average_precision_by_hand():
    # In order of the scores: right, wrong, right: (1 + 2/3) / 2.
    scores, positive = np.array([0.5, 0.9, 0.1]), np.array([False, True, True])
    (found,) = average_precisions(scores[:, None], positive[:, None])
    np.testing.assert_allclose(found, 100 * 5 / 6)


def test_pointing_by_hand():
    cam = np.zeros((2, 2))
    cam[0, 1] = 1  # at (.75, .25)
    boxes = np.array([[0.5, 0, 1, 0.5], [0.5, 0, 1, 0.25]])
    assert pointing(cam, boxes) == (1.0, 0.25)
    assert pointing(cam, np.array([[0, 0.5, 0.5, 1.0]]))[0] == 0


def test_hard_negatives_end_above_no_positive():
    """Drawn negatives are easy; one hard negative stands beside the positives, and is found."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 3)) * 0.1
    features[:5, 0] += 3
    features[5, :2] += (3, 3)  # told apart by its second feature alone
    features[6:, 0] -= 3
    positive = np.arange(60) < 5
    drawn = np.random.default_rng(1)
    easy, hard = (learn(features, positive, rounds, drawn)[0] for rounds in (0, 3))
    margins = [features[:5] @ w - features[5] @ w for w in (easy, hard)]
    assert margins[1].min() > max(0, margins[0].min())
