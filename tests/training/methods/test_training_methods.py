"""Training methods by name, with their options; heads beside a network whose names stay."""

import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import ConfigError, TrainConfig
from wsol_jax.models import build
from wsol_jax.training.method import TrainedMethod
from wsol_jax.training.methods import add_heads, make_method
from wsol_jax.training.methods.acol import ACoL
from wsol_jax.training.methods.bas import BAS
from wsol_jax.training.methods.has import HaS


def test_methods_by_name():
    smooth = TrainConfig(label_smoothing=0.1)
    assert make_method(smooth) == TrainedMethod(label_smoothing=0.1)
    setting = TrainConfig(method='has', options={'drop': 1, 'grid': 7}, label_smoothing=0.1)
    assert make_method(setting) == HaS(grid=7, drop=1.0, label_smoothing=0.1)
    assert make_method(TrainConfig(method='acol')) == ACoL(delta=0.6, width=1024)
    setting = TrainConfig(method='bas', options={'beta': 2, 'top_k': 80})
    assert make_method(setting) == BAS(beta=2.0, top_k=80, alpha=0.5, cap=1.0)


@pytest.mark.parametrize(
    ('method', 'options', 'message'),
    [
        ('acoll', {}, "unknown method in config.train.method 'acoll'; did you mean 'acol'? known"),
        (
            'acol',
            {'dleta': 0.7},
            "unknown option of acol in config.train.options 'dleta'; did you ",
        ),
        ('', {'delta': 0.7}, "unknown option of the plain classifier in config.train.options 'de"),
        ('acol', {'delta': '0.7'}, "config.train.options.delta must be of type float, got '0.7'"),
        ('acol', {'delta': 1.5}, 'config.train.options.delta must be at most 1, got 1.5'),
        ('has', {'grid': True}, 'config.train.options.grid must be of type int, got True'),
        ('has', {'label_smoothing': 0.1}, "unknown option of has in config.train.options 'label_"),
    ],
)
def test_wrong_methods_and_options_are_one_line(method, options, message):
    with pytest.raises(ConfigError) as caught:
        make_method(TrainConfig(method=method, options=options))
    assert str(caught.value).startswith(message) and '\n' not in str(caught.value)


def weights(module):
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {'.'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


@pytest.mark.slow
def test_heads_leave_the_network_as_it_is():
    plain = build('resnet10', 3, nnx.Rngs(4), width=2)
    headed = build('resnet10', 3, nnx.Rngs(4), width=2)
    add_heads('resnet10', headed, HaS(), 4)
    assert not hasattr(headed, 'heads')
    add_heads('resnet10', headed, ACoL(width=4), 4)
    found = weights(headed)
    for name, value in weights(plain).items():
        np.testing.assert_array_equal(found.pop(name), value)
    assert sorted({name.rsplit('.', 1)[0] for name in found}) == [
        f'heads.{head}.{layer}' for head in 'ab' for layer in ('classifier', 'conv1', 'conv2')
    ]
    assert not np.array_equal(found['heads.a.conv1.kernel'], found['heads.b.conv1.kernel'])
    other = build('resnet10', 3, nnx.Rngs(4), width=2)
    add_heads('resnet10', other, ACoL(width=4), 5)
    moved = weights(other)['heads.a.conv1.kernel']
    assert not np.array_equal(found['heads.a.conv1.kernel'], moved)  # the seed's
