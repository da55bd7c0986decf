"""Faithfulness against NumPy loops per image and per step, closed forms, and known best maps."""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d

from wsol_jax.data.images import batches, listed
from wsol_jax.evaluation import faithfulness as module
from wsol_jax.evaluation.faithfulness import SCORES, blur, faithfulness, impute, summarize
from wsol_jax.localization.localize import localize
from wsol_jax.models import Network, Preprocessing

CLASSES = np.array([2, 5, 0, 1])
COMPILED_IMPUTE = jax.jit(impute, static_argnums=2)


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


@pytest.fixture(scope='module')
def maps():
    """A map at the images' size and a coarse one."""
    rng = np.random.default_rng(4)
    draw = {'fine': rng.normal(size=(4, 8, 8)), 'coarse': rng.normal(size=(4, 4, 4))}
    return {key: m.astype(np.float32) for key, m in draw.items()}


@pytest.fixture(scope='module')
def steep(toy):
    """The toy network with larger logits, so that probabilities move by tens of percent.

    A ramp lets it see where a pixel is.
    """

    def apply(state, inputs, perturb=None):
        ramp = jnp.linspace(0.2, 3.0, inputs.shape[2])[:, None]
        logits, endpoints = toy.apply(state, inputs * ramp, perturb)
        return 2 * logits, endpoints

    return replace(toy, apply=apply)


# An independent implementation: one image, one perturbed copy at a time, in float64.


def probability(network, pixels, target):
    logits, _ = network.apply(network.state, jnp.asarray(pixels[None], jnp.float32), None)
    logits = np.asarray(logits[0], float)
    odds = np.exp(logits - logits.max())
    return odds[target] / odds.sum()


def enlarge(coarse, size):
    """Bilinear, pixel centres aligned, as the definition of the sampling positions has it."""

    def line(values, count):
        at = (np.arange(count) + 0.5) * len(values) / count - 0.5
        return np.interp(at, np.arange(len(values)), values)

    rows = np.apply_along_axis(line, 0, coarse, size[0])
    return np.apply_along_axis(line, 1, rows, size[1])


def prepared(raw, size):
    scaled = (raw.astype(float) - raw.min()) / np.ptp(raw.astype(float))
    return enlarge(scaled, size)


def order_of(scaled):
    """Pixels (row, column), the most relevant first, ties from the top left."""
    pixels = [(y, x) for y in range(scaled.shape[0]) for x in range(scaled.shape[1])]
    return sorted(pixels, key=lambda at: -scaled[at])


def blurred_by_scipy(pixels):
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    channels = [convolve2d(pixels[..., c], kernel, mode='same') for c in range(3)]
    return np.stack(channels, axis=-1)


def imputed_by_dense_solve(pixels, unknown):
    """Every unknown pixel is the weighted mean of its neighbours: one dense linear system."""
    index = {at: i for i, at in enumerate(unknown)}
    height, width, _ = pixels.shape
    matrix, right = np.zeros((len(unknown),) * 2), np.zeros((len(unknown), 3))
    for (y, x), i in index.items():
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                at = (y + dy, x + dx)
                inside = 0 <= at[0] < height and 0 <= at[1] < width
                if not inside or (dy == 0 and dx == 0):
                    continue
                weight = 1 / 12 if dy and dx else 1 / 6
                matrix[i, i] += weight
                if at in index:
                    matrix[i, index[at]] -= weight
                else:
                    right[i] += weight * pixels[at]
    out = pixels.astype(float).copy()
    for at, value in zip(unknown, np.linalg.solve(matrix, right), strict=True):
        out[at] = value
    return out


def trapezoids(curve):
    return sum((a + b) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


def looped(network, image, raw, target, steps, noise):
    """Every score of one map of one image."""
    pixels = np.asarray(network.preprocessing(image[None])[0], float)
    scaled = prepared(raw, pixels.shape[:2])
    order = order_of(scaled)
    whole = probability(network, pixels, target)
    explained = probability(network, pixels * scaled[..., None], target)
    deleted, inserted = pixels.copy(), blurred_by_scipy(pixels)
    deletion = [probability(network, deleted, target)]
    insertion = [probability(network, inserted, target)]
    done = 0
    for step in range(1, steps + 1):
        for at in order[done : len(order) * step // steps]:
            deleted[at] = 0
            inserted[at] = pixels[at]
        done = len(order) * step // steps
        deletion.append(probability(network, deleted, target))
        insertion.append(probability(network, inserted, target))
    road = []
    for percent in range(10, 100, 10):
        kept = len(order) * percent // 100
        found = []
        for unknown in (order[kept:], order[: len(order) - kept]):
            filled = imputed_by_dense_solve(pixels, unknown)
            for at in unknown:
                filled[at] += noise[at]
            found.append(probability(network, filled, target))
        road.append((found[0] - found[1]) / 2)
    return {
        'average_drop': 100 * max(whole - explained, 0) / whole,
        'increase': 100.0 * (explained > whole),
        'insertion': trapezoids(insertion),
        'deletion': trapezoids(deletion),
        'road': np.mean(road),
    }


def fixed_noise(network, shape):
    """0.01 on the [0, 1] scale, after preprocessing."""
    draw = np.asarray(jax.random.normal(jax.random.key(0), shape))
    return 0.01 * 255 / np.array(network.preprocessing.std) * draw


@pytest.mark.slow
@pytest.mark.parametrize(('steps', 'chunk_size'), [(20, 10), (7, 4)])
def test_loops_per_image_and_step(steep, toy_images, maps, steps, chunk_size):
    noise = fixed_noise(steep, toy_images.shape[1:])
    found = faithfulness(steep, toy_images, maps, CLASSES, steps=steps, chunk_size=chunk_size)
    assert list(found) == ['fine', 'coarse']
    rises = np.concatenate([found[key]['increase'] for key in maps])
    assert set(rises) == {0.0, 100.0}
    for key, raw in maps.items():
        expected = [
            looped(steep, *case, steps, noise)
            for case in zip(toy_images, raw, CLASSES, strict=True)
        ]
        for score in SCORES:
            reference = np.array([e[score] for e in expected])
            assert np.ptp(reference) > 1e-3 or score == 'increase'
            percent = score in ('average_drop', 'increase')
            assert found[key][score].shape == (4,)
            assert_close(found[key][score], reference, 1e-2 if percent else 1e-4)


# A network that reads one quadrant: logit of class 0 is its mean, the others are zero.


def quadrant_network(gain=1.0, std=64.0, size=8):
    def apply(state, inputs, perturb=None):
        seen = inputs[:, : size // 2, : size // 2].mean((1, 2, 3))
        logits = jnp.stack([state * seen, jnp.zeros_like(seen)], axis=1)
        return logits, {'in': inputs}

    return Network(
        'quadrant',
        apply,
        jnp.float32(gain),
        Preprocessing((0.0,) * 3, (std,) * 3),
        size,
        2,
        'in',
        {'in': (size, size, 3)},
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


@pytest.fixture(scope='module')
def quadrant_maps():
    """The quadrant itself, its inverse and noise, for two images."""
    perfect = np.zeros((2, 8, 8), np.float32)
    perfect[:, :4, :4] = 1
    random = np.random.default_rng(1).random((2, 8, 8)).astype(np.float32)
    return {'perfect': perfect, 'inverse': 1 - perfect, 'random': random}


def test_closed_forms_on_a_flat_image():
    """A flat image of value v: s = sigmoid(gain * v * visible share of the quadrant)."""
    network = quadrant_network(gain=1.5)
    images = np.full((1, 8, 8, 3), 128, np.uint8)  # 2 after preprocessing
    half = np.zeros((1, 8, 8), np.float32)
    half[:, :4, :2] = 4.0  # min-max scaled to 1
    scores = ('average_drop', 'increase', 'deletion')
    found = faithfulness(network, images, {'half': half}, [0], scores=scores, steps=8)['half']
    assert list(found) == list(scores)
    whole, part = sigmoid(3.0), sigmoid(1.5)
    assert_close(found['average_drop'], [100 * (whole - part) / whole], 1e-3)
    assert found['increase'].tolist() == [0.0]
    # Eight pixels a step: the left half of the quadrant, then row by row the six pixels beside it,
    # of which two lie in the quadrant.
    left = np.array([16, 8, 4, 2, 0, 0, 0, 0, 0])
    assert_close(found['deletion'], [trapezoids(sigmoid(3.0 * left / 16))], 1e-5)


def test_the_perfect_map_beats_noise_and_the_inverse(quadrant_maps):
    network = quadrant_network(gain=3.0)
    # A bright quadrant on a dark ground: neither blur nor imputation restores it.
    images = np.random.default_rng(0).integers(0, 30, (2, 8, 8, 3), np.uint8)
    images[:, :4, :4] += 120
    found = faithfulness(network, images, quadrant_maps, [0, 0])
    means = {key: summarize(values) for key, values in found.items()}
    for name, better in (('Insertion', 1), ('ROAD', 1), ('Deletion', -1), ('AverageDrop', -1)):
        ranking = [better * means[key][name] for key in ('perfect', 'random', 'inverse')]
        assert ranking[0] > ranking[1] + 1 and ranking[1] > ranking[2] + 1, name
    assert means['perfect']['AverageDrop'] == 0
    assert means['perfect']['ROAD'] > 10
    assert means['inverse']['ROAD'] == pytest.approx(-means['perfect']['ROAD'], abs=3)


def test_relevance_is_that_of_the_class_asked_for(quadrant_maps):
    network = quadrant_network(gain=3.0)
    images = np.full((2, 8, 8, 3), 100, np.uint8)
    found = faithfulness(network, images, quadrant_maps, [0, 1], scores=('deletion',))
    first, second = np.asarray(found['random']['deletion'])
    arguments = (images[:1], {'m': quadrant_maps['random'][1:]}, [0])
    same = faithfulness(network, *arguments, scores=('deletion',))
    # Two classes: their probabilities add up to 1.
    assert second == pytest.approx(1 - float(same['m']['deletion'][0]), abs=1e-5)
    assert first > second


@pytest.mark.slow
@pytest.mark.parametrize('value', [0.0, -3.0, np.nan])
def test_a_constant_or_nan_map_is_all_zero(steep, toy_images, maps, value):
    useless = maps['fine'].copy()
    useless[1] = value
    # Where every pixel ties, the order is from the top left.
    falling = np.broadcast_to(-np.arange(64, dtype=np.float32).reshape(8, 8), (4, 8, 8))
    batch = {'a': useless, 'ranked': falling, 'fine': maps['fine']}
    found = faithfulness(steep, toy_images, batch, CLASSES)
    pixels = np.asarray(steep.preprocessing(toy_images[1:2])[0])
    whole, blank = (probability(steep, x, CLASSES[1]) for x in (pixels, 0 * pixels))
    assert_close(found['a']['average_drop'][1], 100 * max(whole - blank, 0) / whole, 1e-3)
    for score in ('insertion', 'deletion', 'road'):
        assert_close(found['a'][score][1], found['ranked'][score][1])
    others = np.array([0, 2, 3])
    for score in SCORES:
        assert np.isfinite(found['a'][score]).all()
        assert_close(found['a'][score][others], found['fine'][score][others], 1e-4)


@pytest.mark.slow
def test_batch_equals_singles(steep, toy_images, maps):
    """Noise included: it does not depend on the place in the batch."""
    together = faithfulness(steep, toy_images, maps, CLASSES)
    for i in range(4):
        one = slice(i, i + 1)
        single = {key: m[one] for key, m in maps.items()}
        alone = faithfulness(steep, toy_images[one], single, CLASSES[one])
        for key in maps:
            for score in SCORES:
                assert_close(together[key][score][one], alone[key][score], 1e-4)


@pytest.mark.slow
def test_without_jit(steep, toy_images, maps):
    """The scores that solve nothing: eagerly, the solver's many small programs take long."""
    arguments = (steep, toy_images, {'m': maps['fine']}, CLASSES)
    options = {'scores': ('average_drop', 'deletion'), 'steps': 3}
    compiled = faithfulness(*arguments, **options)['m']
    with jax.disable_jit():
        plain = faithfulness(*arguments, **options)['m']
    for score in options['scores']:
        assert_close(compiled[score], plain[score], 1e-3)


def test_takes_what_localize_returns(toy, toy_images):
    found = localize(toy, toy_images, ('cam', 'dgl'), ('late',))
    values = faithfulness(
        toy, toy_images, found.maps, found.classes, scores=('deletion',), steps=3, chunk_size=1
    )
    assert list(values) == [('cam', 'late'), ('dgl', 'late')]
    assert all(0 < v <= 1 for m in values.values() for v in np.asarray(m['deletion']))


@pytest.mark.parametrize('chunk_size', [4, 100])
def test_forward_passes_and_memory(toy, toy_images, maps, chunk_size):
    """Per map 38 passes of insertion and deletion, never more than chunk_size batches together."""
    batches = []

    def apply(state, inputs, perturb=None):
        jax.debug.callback(lambda x: batches.append(len(x)), inputs)
        return toy.apply(state, inputs, perturb)

    network = replace(toy, apply=apply)
    scores = ('insertion', 'deletion')
    values = faithfulness(network, toy_images, maps, CLASSES, scores=scores, chunk_size=chunk_size)
    jax.block_until_ready(values)
    jax.effects_barrier()
    chunks = -(-38 // chunk_size)
    assert len(batches) == 1 + 2 * chunks
    per_map = sum(batches) - 3 * 4
    assert 2 * 38 * 4 <= per_map < 2 * (38 + chunks) * 4
    assert max(batches) <= 4 * max(chunk_size, 3)


def test_steps_split_the_pixels_evenly():
    passes = module._passes(('deletion', 'insertion'), 3, 10)
    assert passes.tolist() == [[1, 3, 10], [1, 6, 10], [2, 0, 3], [2, 0, 6]]
    road = module._passes(('road',), 3, 100)
    assert road[:, 2].tolist() == [10, 20, 30, 40, 50, 60, 70, 80, 90] + [100] * 9
    assert road[:, 1].tolist() == [0] * 9 + [90, 80, 70, 60, 50, 40, 30, 20, 10]


def test_blur_is_the_published_one():
    pixels = np.random.default_rng(0).normal(size=(2, 15, 13, 3)).astype(np.float32)
    expected = np.stack([blurred_by_scipy(p) for p in pixels])
    assert_close(blur(jnp.asarray(pixels)), expected)


@pytest.mark.parametrize('share', [0.1, 0.5, 0.97])
@pytest.mark.parametrize('shape', [(8, 8), (13, 22)])
def test_impute_against_a_dense_solve(shape, share):
    rng = np.random.default_rng(7)
    pixels = rng.normal(size=(*shape, 3)).astype(np.float32)
    scattered = rng.random(shape)
    blob = enlarge(rng.random((3, 3)), shape)
    for values in (scattered, blob):
        order = order_of(values)
        unknown = order[: int(share * len(order))]
        known = np.ones(shape, bool)
        known[tuple(zip(*unknown, strict=True))] = False
        # What is unknown must not leak in.
        spoiled = np.where(known[..., None], pixels, np.nan)
        found = COMPILED_IMPUTE(spoiled, known)
        assert_close(found, imputed_by_dense_solve(pixels, unknown), 1e-3)
        np.testing.assert_array_equal(np.asarray(found)[known], pixels[known])


@pytest.mark.slow
def test_impute_converges_fast_at_full_size():
    """A linear image solves the equations of inner pixels; a flat one those of all pixels."""
    y, x = np.mgrid[:321, :321] / 160 - 1
    ramp = np.stack([x, y, 0.5 * x - y], axis=-1).astype(np.float32)
    hole = np.ones((321, 321), bool)
    hole[10:311, 10:311] = False
    assert_close(COMPILED_IMPUTE(ramp, hole, 20), ramp, 1e-3)
    flat = np.broadcast_to(np.float32([1, -2, 0.5]), ramp.shape)
    corner = np.zeros((321, 321), bool)
    corner[:30, :30] = True
    assert_close(COMPILED_IMPUTE(flat, corner, 20), flat, 0.05)


def test_a_known_image_is_left_alone():
    pixels = np.random.default_rng(3).normal(size=(8, 8, 3)).astype(np.float32)
    known = np.ones((8, 8), bool)
    np.testing.assert_array_equal(COMPILED_IMPUTE(pixels, known), pixels)


def test_noise_is_on_the_pixel_scale():
    """One pass of ROAD on a flat image: what is imputed is flat, so the noise alone is left."""
    network = quadrant_network(std=32.0)
    flat = network.preprocessing(np.full((1, 8, 8, 3), 64, np.uint8))
    noise = jnp.asarray(fixed_noise(network, (8, 8, 3)), jnp.float32)
    ranks = jnp.arange(64).reshape(1, 8, 8)
    chunk = jnp.array([[module._ROAD, 0, 6]])
    perturbed = module._perturb(flat, flat, noise, flat[..., 0], ranks, chunk)[0, 0]
    assert_close(perturbed.reshape(64, 3)[:6], np.full((6, 3), 2.0))
    residue = np.asarray(perturbed).reshape(64, 3)[6:] - 2.0
    assert residue.std() == pytest.approx(0.01 * 255 / 32, rel=0.2)


def test_summary_averages_over_images_in_percent():
    values = {'average_drop': jnp.array([0.0, 50.0]), 'road': np.array([0.1, -0.3])}
    assert summarize(values) == pytest.approx({'AverageDrop': 25.0, 'ROAD': -10.0})
    full = summarize(dict.fromkeys(SCORES, np.full(2, 0.5)))
    percent = {'AverageDrop': 0.5, 'Increase': 0.5, 'Insertion': 50, 'Deletion': 50, 'ROAD': 50}
    assert full == percent and list(full) == list(percent)


@pytest.mark.slow
def test_a_result_brings_its_classes_and_its_relu(toy, toy_images):
    images = [np.tile(x, (i + 1, 2, 1)) for i, x in enumerate(toy_images)]  # of several sizes
    result = localize(toy, images, ('grad_cam', 'dgl'), ('early',))
    found = faithfulness(toy, images, result, scores=('deletion',), steps=4, batch_size=3)
    ((seen, _),) = batches(listed(images), (8, 8), 4)
    maps = {('grad_cam', 'early'): np.maximum(result.maps['grad_cam'], 0)}
    maps |= {('dgl', 'early'): result.maps['dgl']}
    expected = faithfulness(toy, seen, maps, result.classes, scores=('deletion',), steps=4)
    for key in maps:
        assert_close(found[key]['deletion'], expected[key]['deletion'])


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'images': np.zeros((8, 8, 3), np.uint8)}, r"map 'fine' must be \[1,h,w\]"),
        ({'images': np.zeros((4, 8, 8, 3), int)}, 'images must be uint8'),
        ({'classes': None}, r'classes must be integers of shape \[4\].*got none'),
        ({'maps': {}}, 'at least one map'),
        ({'maps': np.zeros((4, 8, 8))}, 'maps must be a dictionary'),
        ({'maps': {'dgl': np.zeros((3, 8, 8))}}, r"map 'dgl' must be \[4,h,w\].*\[3, 8, 8\]"),
        ({'maps': {'dgl': np.zeros((4, 2, 8, 8))}}, r"map 'dgl' must be \[4,h,w\]"),
        ({'classes': [0, 1, 2]}, r'integers of shape \[4\].*\[3\]'),
        ({'classes': [0.0, 1, 2, 3]}, 'integers of shape'),
        ({'classes': [0, 1, 2, 6]}, r'class 6 is outside 0\.\.5'),
        ({'classes': [0, -1, 2, 3]}, 'class -1: maps of no single class'),
        ({'scores': ('insertoin',)}, "did you mean 'insertion'"),
        ({'scores': 'road'}, r"sequence such as \('road',\)"),
        ({'scores': ()}, 'scores must be a sequence'),
        ({'steps': 1}, 'steps must be an integer of at least 2, got 1'),
        ({'chunk_size': 0}, 'chunk_size must be an integer of at least 1, got 0'),
    ],
)
def test_wrong_input_is_one_clear_line(toy, toy_images, maps, changed, message):
    arguments = {'images': toy_images, 'maps': maps, 'classes': CLASSES} | changed
    with pytest.raises(ValueError, match=message) as error:
        faithfulness(toy, **arguments)
    assert '\n' not in str(error.value)
