"""The sanity check of maps: what it makes random, and how it compares."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from experiments import sanity_check
from wsol_jax.models import as_network, load_module

LAYER = 'stage3'


def random_weights(seed):
    return load_module('resnet10', None, 3, seed=seed, width=4)


@pytest.fixture(scope='module')
def network():
    return as_network('resnet10', random_weights(0), input_size=32)


def test_rank_correlation_by_hand():
    a = np.array([[1, 2], [3, 4]])
    assert sanity_check.rank_correlation(a, a**3) == pytest.approx(1)
    assert sanity_check.rank_correlation(a, -a) == pytest.approx(-1)
    # Ranks 1, 2, 3, 4 and 2, 1, 3, 4: 1 - 6 * 2 / (4 * 15)
    assert sanity_check.rank_correlation(a, [[2, 1], [3, 4]]) == pytest.approx(0.8)
    assert sanity_check.rank_correlation(a, np.ones((2, 2))) == 0


def test_parts_are_random_from_the_classifier_down(network):
    module = random_weights(1)
    parts = sanity_check.parts_of(module, network.state)
    assert parts[0] == ['fc'] and sorted(chain(*parts)) == sorted(network.state)
    other = as_network('resnet10', module, input_size=32)
    broken = sanity_check.randomized(network, other, ['fc'])
    for name in network.state:
        expected = nnx.to_flat_state((other if name == 'fc' else network).state[name])
        found = nnx.to_flat_state(broken.state[name])
        for (_, a), (_, b) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a[...], b[...])


@pytest.mark.slow
def test_the_same_weights_leave_the_same_maps(network, monkeypatch):
    monkeypatch.setattr(sanity_check, '_LAYERS', SimpleNamespace(value=(LAYER,)))
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    other = as_network('resnet10', random_weights(1), input_size=32)
    same = sanity_check.measure(network, network, [['fc']], images)
    changed = sanity_check.measure(network, other, [['fc'], ['stage4']], images)
    assert {method for method, _ in same} == set(sanity_check.METHODS)
    for key, values in same.items():
        np.testing.assert_allclose(values, np.ones((2, 1)), atol=1e-6)
        assert changed[key].shape == (2, 2)
    assert (changed['saliency', 'input'] < 0.999).all()
    text = sanity_check.table(['fc', 'stage4'], changed)
    assert f'{changed["saliency", "input"][:, 1].mean():.2f}' in text.splitlines()[-1]
