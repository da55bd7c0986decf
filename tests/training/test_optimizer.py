import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsol_jax.config import TrainConfig
from wsol_jax.training.optimizer import make_optimizer


def rates(setting, steps):
    """The learning rate of each step: what a gradient of one moves a weight by."""
    optimizer = make_optimizer(setting, steps)
    params = jnp.zeros(1)
    state, moves = optimizer.init(params), []
    for _ in range(steps):
        update, state = optimizer.update(jnp.ones(1), state, params)
        moves.append(-float(update[0]))
    return moves


PLAIN = {'momentum': 0.0, 'weight_decay': 0.0}


def test_warm_up_then_cosine():
    # 2 of 10 steps rise from 0 to the peak; the other 8 fall as half a cosine.
    expected = [0.0, 0.2] + [0.2 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    found = rates(TrainConfig(learning_rate=0.4, warmup=0.2, **PLAIN), 10)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[6] == pytest.approx(0.2)  # half way down


@pytest.mark.parametrize(
    ('warmup', 'steps', 'expected'),
    [
        (0.0, 3, [0.0, 1.0, 0.5]),  # at least one step of warm-up
        (5.0, 3, [0.0, 0.5, 1.0]),  # at most all but one
        (0.5, 1, [1.0]),
    ],
)
def test_short_trainings_have_a_rate(warmup, steps, expected):
    found = rates(TrainConfig(learning_rate=1.0, warmup=warmup, **PLAIN), steps)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_sgd_with_nesterov_momentum_and_decay_of_kernels_only():
    setting = TrainConfig(learning_rate=0.1, warmup=0.0, momentum=0.9, weight_decay=0.01)
    steps, rng = 6, np.random.default_rng(0)
    optimizer = make_optimizer(setting, steps)
    params = {'kernel': rng.normal(size=(3, 2)), 'bias': rng.normal(size=2)}
    state = optimizer.init(jax.tree.map(jnp.float32, params))
    found = jax.tree.map(jnp.float32, params)
    momentum = {name: np.zeros_like(value) for name, value in params.items()}
    for rate in rates(TrainConfig(learning_rate=0.1, warmup=0.0, **PLAIN), steps):
        gradients = {name: rng.normal(size=value.shape) for name, value in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradients), state, found)
        found = optax.apply_updates(found, updates)
        # As torch.optim.SGD(nesterov=True): the decay is part of the gradient.
        gradients['kernel'] = gradients['kernel'] + 0.01 * params['kernel']
        for name, gradient in gradients.items():
            momentum[name] = 0.9 * momentum[name] + gradient
            params[name] = params[name] - rate * (gradient + 0.9 * momentum[name])
    for name, value in params.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
