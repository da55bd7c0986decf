"""The experiment of grounding: its variants, its table, and both forms of the pair attention."""

import jax
import numpy as np
from flax import nnx

from experiments.grounding import CONFIGS, VARIANTS, joined, table, variant_of
from wsol_jax.config import read_config
from wsol_jax.grounding.task import GROUNDING
from wsol_jax.models.grounding import SimAttention


def test_variants_are_experiments_of_the_task():
    for make in CONFIGS.values():
        config = read_config(make())
        for variant in VARIANTS:
            changed = variant_of(config, variant, seed=2)
            GROUNDING.check(changed)
            method = GROUNDING.method(changed)
            assert changed.seed == 2 and method.attention in ('softmax', 'raw')
            assert method.place == (variant != 'without place')
    assert variant_of(config, 'without subject', 0).train.options['layer'] == 'pw_11'


def scores(accuracy, other):
    known = {'Chance': 20.0, 'Largest': 10.0, 'ClassOnly': 40.0}
    row = {'split': 'test', 'Accuracy': accuracy, **known}
    groups = [{'relation': 'other class', 'Accuracy': other, **known}]
    val = {**row, 'split': 'val', 'Accuracy': 0.0, 'by_relation': []}
    return {'split': 'test', 'grounding': [val, {**row, 'by_relation': groups}]}


def test_the_table_is_of_test():
    lines = table({'dtmr': [scores(50.0, 60.0), scores(60.0, 80.0)]}).splitlines()
    assert [cell.strip() for cell in lines[2].split('|')[1:-1]] == [
        'dtmr', '55.0 ± 7.1', '', '70.0 ± 14.1', ''
    ]  # fmt: skip
    assert 'ClassOnly' in lines[-1] and '40.0 ± 0.0' in lines[-1]


def test_both_forms_score_alike():
    attention = SimAttention(6, (4, 4), 5, rngs=nnx.Rngs(0))
    words = jax.random.normal(jax.random.key(0), (2, 3, 6))
    one = jax.random.normal(jax.random.key(1), (2, 4, 4))
    np.testing.assert_allclose(joined(attention, words, one), attention(words, one, one), atol=1e-5)
