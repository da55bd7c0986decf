"""Numbers out of reason in Python: one line that names the argument."""

import math

import pytest
from flax import nnx

from wsol_jax.models import build

pytestmark = pytest.mark.faults


@pytest.mark.parametrize('number', [0, -1, 10**12, 2.5, math.nan, math.inf, True, None])
@pytest.mark.parametrize('what', ['num_classes', 'width', 'output_stride'])
def test_networks_of_impossible_sizes(what, number):
    options = {'num_classes': 2, what: number}
    with pytest.raises(ValueError, match=f'^{what} of resnet10 must be a whole number from 1') as e:
        build('resnet10', rngs=nnx.Rngs(0), **options)
    assert '\n' not in str(e.value)


def test_a_text_for_a_width():
    with pytest.raises(ValueError, match=r"^width of resnet10 must be a whole .* got 'wide'"):
        build('resnet10', 2, nnx.Rngs(0), width='wide')
