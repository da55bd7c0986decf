import numpy as np
import pytest

from wsol_jax.data.records import drawn


@pytest.mark.parametrize(
    ('count', 'val'),
    [(0, []), (1, []), (2, [1]), (9, [8]), (10, [9]), (19, [9]), (20, [9, 19]), (35, [9, 19, 29])],
)
def test_every_tenth_is_drawn_for_val(count, val):
    chosen = drawn(count, 'val')
    assert chosen.shape == (count,) and np.flatnonzero(chosen).tolist() == val
    np.testing.assert_array_equal(drawn(count, 'train'), ~chosen)
