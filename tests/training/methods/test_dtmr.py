"""The loss of DTMR against a loop, what trains, and runs that are killed or have more devices."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.models.grounding import CLASS, OBJECT, RELATION
from wsol_jax.models.heads import Outputs
from wsol_jax.training.method import Shard, Update
from wsol_jax.training.methods.dtmr import DTMR, grounded
from wsol_jax.training.optimizer import is_frozen, parameter_name

ALONE = Update(jnp.int32(0), lambda sums: sums)
RNG = np.random.default_rng(0)
B, S, N, D = 2, 3, 4, 5
TOLD = {n: RNG.normal(size=(B, S, D)).astype(np.float32) for n in ('subject', 'object', 'relation')}
SCORES = RNG.normal(size=(B, S, N, N)).astype(np.float32)
TARGETS = {
    'phrases': RNG.normal(size=(B, S, 4, D)).astype(np.float32),
    'sentences': np.array([[True, True, False], [True, False, False]]),
    'right': RNG.random((B, S, N)) < 0.5,
}
NETWORK = SimpleNamespace(name='tiny', last_layer='b', shapes={'a': (6, 6, 3), 'b': (3, 3, 4)})


def loss_of(targets, **options):
    outputs = Outputs(None, {}, {**TOLD, 'scores': jnp.asarray(SCORES)})
    batch = Shard(None, targets, jnp.ones(B, bool), None)
    return DTMR(**options).loss(outputs, batch, ALONE)


def test_the_loss_is_the_errors_of_three_words():
    losses, values = loss_of(TARGETS, subject=2.0, relation=0.5)
    for b in range(B):
        said = [s for s in range(S) if TARGETS['sentences'][b, s]]
        errors = {
            name: np.mean([
                (TOLD[name][b, s, d] - TARGETS['phrases'][b, s, place, d]) ** 2
                for s in said for d in range(D)
            ])
            for name, place in (('subject', CLASS), ('object', OBJECT), ('relation', RELATION))
        }  # fmt: skip
        for name, error in errors.items():
            assert values[f'{name}_error'][b] == pytest.approx(error, rel=1e-5)
        wanted = 2 * errors['subject'] + errors['object'] + 0.5 * errors['relation']
        assert losses[b] == pytest.approx(wanted, rel=1e-5)
        right = [TARGETS['right'][b, s, np.argmax(SCORES[b, s]) // N] for s in said]
        assert values['grounded'][b] == pytest.approx(100 * np.mean(right))


def test_an_image_without_sentences_counts_nothing():
    none = {**TARGETS, 'sentences': np.zeros((B, S), bool)}
    losses, values = loss_of(none)
    assert not np.any(losses) and not np.any(values['grounded'])


def test_training_has_no_truth_to_look_at():
    blind = {name: value for name, value in TARGETS.items() if name != 'right'}
    losses, values = loss_of(blind)
    np.testing.assert_array_equal(losses, loss_of(TARGETS)[0])
    assert 'grounded' not in values and DTMR().criterion == ('loss', 'min')


def test_a_place_that_is_not_there_is_never_chosen():
    scores = np.full((1, 1, 3, 3), -np.inf, np.float32)
    scores[0, 0, 1, 0] = -50.0
    targets = {'right': np.array([[[0, 1, 0]]]), 'sentences': np.ones((1, 1), bool)}
    assert grounded(jnp.asarray(scores), targets).tolist() == [100]


def test_heads_are_as_the_options_say():
    heads = DTMR(layer='a', width=8, place=False).heads(NETWORK, nnx.Rngs(0))
    assert heads.reads == ('a',) and heads.place is None and heads.factors == (2, 1, 1)
    assert heads.told.first.kernel.shape == (3, 16) and heads.told.words.kernel.shape == (8, 300)
    assert DTMR(relation=0.0, width=8).heads(NETWORK, nnx.Rngs(0)).factors == (2, 1, 0)
    with pytest.raises(ConfigError, match=r"'c'; .*known: a, b"):
        DTMR(layer='c').heads(NETWORK, nnx.Rngs(0))


def test_vectors_of_a_file_tell_their_length(tmp_path):
    (tmp_path / 'glove.txt').write_text('dog 1 2 3\ncat 0 1 0\n')
    heads = DTMR(vectors=str(tmp_path / 'glove.txt'), width=8).heads(NETWORK, nnx.Rngs(0))
    assert heads.told.words.kernel.shape == (8, 3)


def test_heads_alone_learn_and_features_do_not_matter_where_nothing_is():
    """Every weight of the heads has a gradient; a proposal that is padding gives none."""
    heads = DTMR(width=4).heads(NETWORK, nnx.Rngs(0))
    graph, weights = nnx.split(heads)
    boxes = jnp.array([[[0.1, 0.1, 0.6, 0.7], [0.4, 0.2, 0.9, 0.9], [0.2, 0.5, 0.3, 0.8]]])
    proposals = jnp.array([[True, True, False]])
    phrases = jnp.asarray(RNG.normal(size=(1, 2, 4, 300)), jnp.float32)
    targets = {'phrases': phrases, 'sentences': jnp.ones((1, 2), bool)}

    def loss(weights, boxes):
        features = jnp.asarray(RNG.normal(size=(1, 3, 3, 4)), jnp.float32)
        found = nnx.merge(graph, weights).ground(features, boxes, proposals, phrases)
        batch = Shard(None, targets, jnp.ones(1, bool), None)
        return DTMR().loss(Outputs(None, {}, found), batch, ALONE)[0].sum()

    by_weights, by_boxes = jax.jit(jax.grad(loss, (0, 1)))(weights, boxes)
    for path, leaf in nnx.to_flat_state(by_weights):
        assert np.isfinite(leaf[...]).all() and np.any(leaf[...]), parameter_name(path)
    assert np.any(by_boxes[0, :2]) and not np.any(by_boxes[0, 2])


def test_the_network_is_frozen_unless_asked():
    names = ('stage1.conv.kernel', 'fc.bias', 'heads.pair.score.kernel')
    assert [is_frozen(n, DTMR().freeze) for n in names] == [True, True, False]
    assert DTMR(frozen=False).freeze == () and not DTMR(sigmoid=True).several
