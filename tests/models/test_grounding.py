"""Every equation of DTMR's heads against plain loops over proposals and pairs."""

from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.models.grounding import (
    FACTORS,
    GroundingHeads,
    ScaledNorm,
    attended_pairs,
    roi_align,
)

RNG = np.random.default_rng(0)
K, D, WIDTH = 5, 6, 4
SEEN = RNG.normal(size=(2, 6, 8, K)).astype(np.float32)
CORNERS = np.sort(RNG.uniform(size=(2, 3, 2, 2)), axis=2)
BOXES = CORNERS.reshape(2, 3, 4).astype(np.float32)
PROPOSALS = np.array([[True, True, True], [True, True, False]])
PHRASES = RNG.normal(size=(2, 2, 4, D)).astype(np.float32)


NETWORK = SimpleNamespace(shapes={'layer': (6, 8, K)})


def heads_of(**options):
    made = {'place': True, 'attention': 'raw', 'factors': FACTORS, **options}
    heads = GroundingHeads(NETWORK, 'layer', D, WIDTH, **made, rngs=nnx.Rngs(0))
    heads.norm.scale[...] = jnp.asarray(RNG.uniform(1, 2, K), jnp.float32)
    for name in ('single', 'pair'):  # no bias may be zero, where a test looks at all of it
        for layer in (getattr(heads, name).words, getattr(heads, name).hidden):
            layer.bias[...] = jnp.asarray(RNG.normal(size=layer.bias.shape), jnp.float32)
    return heads


@pytest.fixture(scope='module')
def heads():
    return heads_of()


def ground(heads, *given):
    graph, state = nnx.split(heads)
    return jax.jit(lambda s, *x: nnx.merge(graph, s).ground(*x))(state, *given)


@pytest.fixture(scope='module')
def found(heads):
    return ground(heads, SEEN, BOXES, PROPOSALS, PHRASES)


def bilinear(features, y, x):
    """At (y, x) in places, whose centres are the whole numbers."""
    height, width, _ = features.shape
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    low, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = (1 - x + left) * features[top, left] + (x - left) * features[top, right]
    lower = (1 - x + left) * features[low, left] + (x - left) * features[low, right]
    return (1 - y + top) * upper + (y - top) * lower


def test_roi_align_is_a_mean_of_points():
    found = roi_align(SEEN, BOXES, side=3)
    for b, n, row, column in np.ndindex(2, 3, 3, 3):
        x0, y0, x1, y1 = BOXES[b, n]
        points = [
            bilinear(
                SEEN[b],
                (y0 + (y1 - y0) * (row + down) / 3) * 6 - 0.5,
                (x0 + (x1 - x0) * (column + aside) / 3) * 8 - 0.5,
            )
            for down, aside in product((0.25, 0.75), repeat=2)
        ]
        np.testing.assert_allclose(found[b, n, row, column], np.mean(points, axis=0), atol=1e-5)


def test_all_of_an_image_at_its_own_resolution_is_itself():
    whole = np.array([[[0, 0, 1, 1]]], np.float32)
    square = SEEN[:1, :6, :6]
    np.testing.assert_allclose(roi_align(square, whole, side=6, samples=1)[:, 0], square, atol=1e-6)


def normed(scale, vector):
    return vector / np.linalg.norm(vector) * np.asarray(scale)


def linear(layer, x):
    return x @ np.asarray(layer.kernel) + np.asarray(layer.bias)


def relu(x):
    return np.maximum(x, 0)


def score(attention, joined):
    """The first layer as one matrix of all that is joined."""
    kernels = [attention.words.kernel, *(part.kernel for part in attention.parts)]
    first = joined @ np.concatenate([np.asarray(k) for k in kernels])
    x = relu(first + np.asarray(attention.words.bias))
    return linear(attention.score, relu(linear(attention.hidden, x)))[0]


def told(reconstruction, x):
    x = relu(linear(reconstruction.second, relu(linear(reconstruction.first, x))))
    return linear(reconstruction.words, x)


def place_of(heads, known):
    if heads.place is None:
        return np.zeros(0)
    return linear(heads.place.linear, normed(heads.place.norm.scale[...], np.array(known)))


def expected(heads, b, s, softmax=False):
    """What is found for one sentence, pair by pair."""
    align = np.asarray(roi_align(SEEN, BOXES))[b].astype(float)
    count = int(PROPOSALS[b].sum())
    seen = [
        np.mean([normed(heads.norm.scale[...], v) for v in align[n].reshape(-1, K)], axis=0)
        for n in range(count)
    ]
    boxes = BOXES[b].astype(float)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    places = [place_of(heads, [*boxes[n], areas[n]]) for n in range(count)]
    e_s, e_c, e_o, e_r = PHRASES[b, s].astype(float)
    e_f = 0.1 * e_s + 0.9 * e_c
    pairs = {
        (i, j): np.concatenate([seen[i], places[i], seen[j], places[j]])
        for i, j in product(range(count), repeat=2)
    }
    a_sub = np.array([score(heads.single, np.concatenate([e_f, v])) for v in seen])
    a_obj = np.array([score(heads.single, np.concatenate([e_o, v])) for v in seen])
    words = np.concatenate([e_f, e_o, e_r])
    a_pair = {key: score(heads.pair, np.concatenate([words, p])) for key, p in pairs.items()}

    def weights(scores):
        return np.exp(scores) / np.exp(scores).sum() if softmax else scores

    w_pair = dict(zip(a_pair, weights(np.array([*a_pair.values()])), strict=True))
    return {
        'subject_scores': a_sub,
        'object_scores': a_obj,
        'pair_scores': np.array([*a_pair.values()]).reshape(count, count),
        'subject': told(heads.told, weights(a_sub) @ np.array(seen)),
        'object': told(heads.told, weights(a_obj) @ np.array(seen)),
        'relation': told(heads.related, sum(w_pair[key] * pairs[key] for key in pairs)),
    }


def compare(found, heads, softmax=False):
    for b, s in np.ndindex(2, 2):
        count = int(PROPOSALS[b].sum())
        for name, value in expected(heads, b, s, softmax).items():
            own = np.asarray(found[name])[b, s]
            if name.endswith('_scores'):
                outside = own.copy()
                outside[(slice(count),) * own.ndim] = 0
                assert not outside.any()
                own = own[(slice(count),) * own.ndim]
            np.testing.assert_allclose(own, value, rtol=2e-4, atol=2e-4, err_msg=name)


def test_scores_and_words_told_are_those_of_a_loop_over_pairs(heads, found):
    compare(found, heads)


def test_attention_may_be_shares_and_places_be_left_out():
    heads = heads_of(attention='softmax', place=False)
    compare(ground(heads, SEEN, BOXES, PROPOSALS, PHRASES), heads, softmax=True)


def test_the_pair_is_chosen_by_all_three_scores(found):
    scores = np.asarray(found['scores'])
    for b, s, i, j in np.ndindex(scores.shape):
        parts = [found[f'{name}_scores'][b, s] for name in ('subject', 'object', 'pair')]
        there = PROPOSALS[b, i] and PROPOSALS[b, j]
        wanted = 2 * parts[0][i] + parts[1][j] + parts[2][i, j] if there else -np.inf
        assert scores[b, s, i, j] == pytest.approx(float(wanted), rel=1e-5, abs=1e-6)


def test_padding_changes_nothing(heads, found):
    boxes = np.concatenate([BOXES, RNG.uniform(size=(2, 2, 4))], axis=1).astype(np.float32)
    proposals = np.concatenate([PROPOSALS, np.zeros((2, 2), bool)], axis=1)
    phrases = np.concatenate([PHRASES, np.ones((2, 1, 4, D), np.float32)], axis=1)
    padded = ground(heads, SEEN, boxes, proposals, phrases)
    for name, value in found.items():
        inside = tuple(map(slice, value.shape))
        np.testing.assert_allclose(padded[name][inside], value, rtol=1e-5, atol=1e-5)


def test_nothing_tells_which_of_a_pair_is_the_subject(heads, found):
    """Exchanged in the scores and in what tells the relation, the words told are the same."""
    heads = nnx.clone(heads)
    first, second = heads.pair.parts
    kernels = first.kernel[...], second.kernel[...]
    second.kernel[...], first.kernel[...] = kernels
    told = heads.related.first.kernel
    told[...] = jnp.concatenate(jnp.split(told[...], 2)[::-1])
    swapped = ground(heads, SEEN, BOXES, PROPOSALS, PHRASES)
    np.testing.assert_allclose(swapped['relation'], found['relation'], rtol=1e-4, atol=1e-4)
    turned = jnp.swapaxes(found['pair_scores'], 2, 3)
    np.testing.assert_allclose(swapped['pair_scores'], turned, rtol=1e-4, atol=1e-4)
    assert not np.allclose(turned, found['pair_scores'], atol=1e-3)


def test_the_weighted_sum_of_pairs_is_never_made_of_pairs():
    weights, features = RNG.normal(size=(1, 1, 3, 3)), RNG.normal(size=(1, 3, 2))
    wanted = sum(
        weights[0, 0, i, j] * np.concatenate([features[0, i], features[0, j]])
        for i, j in product(range(3), repeat=2)
    )
    np.testing.assert_allclose(attended_pairs(weights, features)[0, 0], wanted, atol=1e-5)


def test_nothing_seen_has_no_direction():
    norm = ScaledNorm(2)
    values, gradient = jax.value_and_grad(lambda x: jnp.sum(norm(x)))(jnp.zeros((3, 2)))
    assert values == 0 and not np.any(gradient)
    assert norm(jnp.array([3.0, 4.0])).tolist() == pytest.approx([12, 16])


def test_without_sentences_there_is_nothing_to_find(heads):
    assert heads({}, None, SimpleNamespace(targets={})) == {}
