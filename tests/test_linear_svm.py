"""The experiment with linear SVMs on pooled features."""

import numpy as np
import pytest

from experiments.linear_svm import Svm, box_above, cam_boxes, fit_svm


def test_an_svm_of_two_points_in_closed_form():
    # Points at -1 and 1: f = w x, and w^2 / 2 + 2 c (1 - w)^2 is least at w = 4 c / (1 + 4 c).
    svm = fit_svm(np.array([[-1.0], [1.0]]), np.array([0, 1]), 2, cost=0.5)
    np.testing.assert_allclose(svm.weights, [[-2 / 3, 2 / 3]], rtol=1e-4)
    np.testing.assert_allclose(svm.bias, 0, atol=1e-4)
    assert svm.predict(np.array([[-3.0], [0.2]])).tolist() == [0, 1]


def test_classes_on_the_margin_have_no_part():
    """What is on the right side by more than the margin changes nothing."""
    features, labels = np.array([[-1.0], [1.0], [50.0]]), np.array([0, 1, 1])
    near = fit_svm(features[:2], labels[:2], 2, 100.0)
    far = fit_svm(features, labels, 2, 100.0)
    np.testing.assert_allclose(far.weights, near.weights, atol=0.02)


def test_the_svm_minimises_what_it_says():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    svm = fit_svm(features, labels, 3, 0.1)

    def loss(weights, bias, k):
        y = np.where(labels == k, 1, -1)
        return weights @ weights / 2 + 0.1 * sum(
            max(0, 1 - y[i] * (features[i] @ weights + bias)) ** 2 for i in range(30)
        )

    for k in range(3):
        best = loss(svm.weights[:, k], svm.bias[k], k)
        for _ in range(20):
            step = rng.normal(size=5) * 0.05
            assert loss(svm.weights[:, k] + step[:4], svm.bias[k] + step[4], k) >= best


def test_boxes_of_the_maps_of_the_asked_class():
    maps = np.zeros((1, 4, 4, 2))
    maps[0, 1:3, 1:3, 0] = 1
    maps[0, 0, 0, 1] = 1
    svm = Svm(np.eye(2), np.zeros(2))
    (box,) = cam_boxes(maps, svm, np.array([0]), [(40, 40)])
    assert box[0] in range(6, 11) and box[2] in range(29, 35)
    (other,) = cam_boxes(maps, svm, np.array([1]), [(40, 40)])
    assert other[:2] == (0, 0) and other[2] < 15
    assert box_above(np.zeros((4, 4)), (40, 30), 0.2) == (0, 0, 40, 30)


@pytest.mark.parametrize('cost', [0.01, 1.0])
def test_separable_classes_are_told_apart(cost):
    features = np.eye(3).repeat(4, axis=0)
    labels = np.arange(3).repeat(4)
    assert (fit_svm(features, labels, 3, cost).predict(features) == labels).all()
