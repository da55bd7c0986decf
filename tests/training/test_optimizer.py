import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wsol_jax.config import ConfigError, TrainConfig
from wsol_jax.models import build
from wsol_jax.training.optimizer import (
    check_patterns,
    is_frozen,
    make_optimizer,
    make_schedule,
    parameter_name,
)

PLAIN = {'learning_rate': 1.0, 'schedule': 'constant', 'warmup': 0.0, 'weight_decay': 0.0}
RNG = np.random.default_rng(0)
PARAMS = {
    'conv1': {'kernel': RNG.normal(size=(3, 2)), 'bias': RNG.normal(size=2)},
    'fc': {'kernel': RNG.normal(size=(2, 4)), 'bias': RNG.normal(size=4)},
}
NAMES = ['conv1.kernel', 'conv1.bias', 'fc.kernel', 'fc.bias']


def single(tree):
    return jax.tree.map(jnp.float32, tree)


def run(setting, steps, gradients_of, total=100):
    """Parameters after each step."""
    optimizer = make_optimizer(setting, NAMES, total, 10)
    params = single(PARAMS)
    state, found = optimizer.init(params), []
    for step in range(steps):
        updates, state = optimizer.update(single(gradients_of(step)), state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def random_gradients(step):
    rng = np.random.default_rng(step + 1)
    return jax.tree.map(lambda p: rng.normal(size=p.shape), PARAMS)


def by_hand(steps, update):
    """Parameters after `update(slot, parameter, gradient, step)` for every step and parameter."""
    flat, slots = jax.tree.map(np.array, PARAMS), {}
    for step in range(steps):
        gradients = random_gradients(step)
        for group, leaves in flat.items():
            for name, value in leaves.items():
                slot = slots.setdefault((group, name), [0.0, 0.0])
                leaves[name] = value + update(slot, value, gradients[group][name], step)
    return flat


def assert_close(found, expected):
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-5, atol=2e-6)


def test_sgd_with_nesterov_momentum_and_decay_of_kernels_only():
    setting = TrainConfig(**PLAIN | {'learning_rate': 0.1, 'momentum': 0.8, 'weight_decay': 0.05})

    def update(slot, value, gradient, step):
        # As torch.optim.SGD(nesterov=True): the decay is part of the gradient.
        gradient = gradient + (0.05 * value if value.ndim > 1 else 0)
        slot[0] = 0.8 * slot[0] + gradient
        return -0.1 * (gradient + 0.8 * slot[0])

    assert_close(run(setting, 6, random_gradients)[-1], by_hand(6, update))


def test_adamw_with_decoupled_decay_of_kernels_only():
    # Loshchilov and Hutter 2019, algorithm 2, with beta 0.9 and 0.999.
    setting = TrainConfig(
        **PLAIN | {'optimizer': 'adamw', 'learning_rate': 0.02, 'weight_decay': 0.3}
    )

    def update(slot, value, gradient, step):
        slot[0] = 0.9 * slot[0] + 0.1 * gradient
        slot[1] = 0.999 * slot[1] + 0.001 * gradient**2
        mean, square = slot[0] / (1 - 0.9 ** (step + 1)), slot[1] / (1 - 0.999 ** (step + 1))
        decay = 0.3 * value if value.ndim > 1 else 0
        return -0.02 * (mean / (np.sqrt(square) + 1e-8) + decay)

    assert_close(run(setting, 6, random_gradients)[-1], by_hand(6, update))


def rates(steps, epoch_steps=1, **changed):
    setting = TrainConfig(**PLAIN | changed)
    schedule = make_schedule(setting, steps, epoch_steps)
    return [float(schedule(jnp.int32(step))) for step in range(steps)]


COSINE = [0.2 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]


@pytest.mark.parametrize(
    ('setting', 'expected'),
    [
        # 2 of 10 steps rise from 0 to the peak; the other 8 fall as half a cosine.
        ({'schedule': 'cosine', 'learning_rate': 0.4, 'warmup': 0.2}, [0.0, 0.2, *COSINE]),
        ({'schedule': 'constant'}, 10 * [1.0]),
        ({'schedule': 'constant', 'warmup': 0.4}, [0, 0.25, 0.5, 0.75] + 6 * [1.0]),
        ({'schedule': 'poly', 'power': 0.9}, [(1 - k / 10) ** 0.9 for k in range(10)]),
        (
            {'schedule': 'poly', 'power': 2.0, 'warmup': 0.2},
            [0, 0.5, *((1 - k / 8) ** 2 for k in range(8))],
        ),
        # Epochs count from the start of the training, its warm-up among them.
        (
            {'schedule': 'step', 'step_epochs': (3.0, 7.0), 'step_factor': 0.1, 'warmup': 0.2},
            [0, 0.5, 1, *4 * [0.1], *3 * [0.01]],
        ),
        ({'schedule': 'step', 'step_epochs': (5.0,), 'step_factor': 0.5}, 5 * [1.0] + 5 * [0.5]),
        ({'schedule': 'constant', 'step_epochs': (5.0,)}, 10 * [1.0]),
    ],
)
def test_schedules(setting, expected):
    np.testing.assert_allclose(rates(10, **setting), expected, atol=1e-6)


def test_drops_come_at_parts_of_epochs():
    found = rates(9, epoch_steps=3, schedule='step', step_epochs=(4 / 3, 2.0), step_factor=0.5)
    np.testing.assert_allclose(found, [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25])


def test_drops_that_fall_on_one_step_multiply():
    found = rates(4, schedule='step', step_epochs=(0.9, 1.4, 3.0), step_factor=0.5)
    np.testing.assert_allclose(found, [1, 0.25, 0.25, 0.125])


@pytest.mark.parametrize(
    ('warmup', 'steps', 'expected'),
    [
        (5.0, 3, [0.0, 0.5, 1.0]),  # at most all but one
        (0.5, 1, [1.0]),
    ],
)
def test_short_trainings_have_a_rate(warmup, steps, expected):
    found = rates(steps, schedule='cosine', warmup=warmup)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_the_rate_of_the_schedule_is_that_of_the_optimizer(optimizer):
    setting = TrainConfig(
        **PLAIN | {'optimizer': optimizer, 'schedule': 'poly', 'warmup': 0.2, 'momentum': 0.0}
    )
    found = run(setting, 10, lambda step: jax.tree.map(np.ones_like, PARAMS), total=10)
    bias = [float(PARAMS['fc']['bias'][0]), *(float(p['fc']['bias'][0]) for p in found)]
    # A constant gradient of one moves by the rate, in Adam, too.
    expected = rates(10, schedule='poly', warmup=0.2)
    np.testing.assert_allclose(-np.diff(bias), expected, atol=1e-5)


def moves(setting, gradients=None):
    """What one step of gradients of one moves every parameter by, relative to the plain rate."""
    gradients = gradients or jax.tree.map(np.ones_like, PARAMS)
    after = run(setting, 1, lambda _: gradients)[0]
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, after, PARAMS)


PUBLISHED = (('^fc', 10.0), ('bias$', 2.0))


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_factors_on_the_rate_multiply(optimizer):
    changed = {'optimizer': optimizer, 'momentum': 0.0, 'learning_rate': 0.01}
    found = moves(TrainConfig(**PLAIN | changed, multipliers=PUBLISHED))
    expected = {
        'conv1': {'kernel': -0.01, 'bias': -0.02},
        'fc': {'kernel': -0.1, 'bias': -0.2},
    }
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_factors_are_found_anywhere_in_a_name():
    found = moves(TrainConfig(**PLAIN | {'momentum': 0.0}, multipliers=(('ern', 0.0),)))
    for group in found.values():
        np.testing.assert_allclose(group['kernel'], 0.0, atol=1e-6)
        np.testing.assert_allclose(group['bias'], -1.0, atol=1e-6)


def test_the_gradient_is_clipped_to_its_global_norm():
    gradients = random_gradients(0)
    norm = math.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
    for clip, scale in ((0.5, 0.5 / norm), (2 * norm, 1.0), (0.0, 1.0)):
        found = moves(TrainConfig(**PLAIN | {'momentum': 0.0}, clip=clip), gradients)
        expected = jax.tree.map(lambda g, scale=scale: -scale * g, gradients)
        for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (
            {'multipliers': (('fc', 2.0), ('fcc', 10.0))},
            "config.train.multipliers: 'fcc' finds no parameter; they start with conv1, fc",
        ),
        (
            {'freeze': ('kernel',)},
            "config.train.freeze: 'kernel' finds no parameter; they start with conv1, fc",
        ),
        ({'freeze': ('conv1', 'fc')}, 'config.train.freeze leaves no parameter to train'),
        ({'freeze': ('',)}, 'config.train.freeze leaves no parameter to train'),
    ],
)
def test_wrong_patterns_are_named(setting, message):
    with pytest.raises(ConfigError, match=f'^{re.escape(message)}') as caught:
        check_patterns(TrainConfig(**setting), NAMES)
    assert '\n' not in str(caught.value)


def test_right_patterns_pass():
    check_patterns(TrainConfig(freeze=('conv',), multipliers=PUBLISHED), NAMES)
    assert is_frozen('conv1.bias', ('fc', 'conv')) and not is_frozen('conv1.bias', ('bias',))


def test_names_are_those_of_the_state():
    params = nnx.state(nnx.eval_shape(lambda: build('resnet10', 3, nnx.Rngs(0))), nnx.Param)
    names = [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert names == [parameter_name(path) for path, _ in nnx.to_flat_state(params)]
    assert {'conv1.conv.kernel', 'layer1.0.conv2.bn.bias', 'fc.kernel'} < set(names)
