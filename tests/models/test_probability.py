"""What the logits stand for: softmax, sigmoid or a function, wherever probabilities are used."""

from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Listed
from flax import nnx

from wsol_jax.config import Config, LocalizeConfig
from wsol_jax.data.records import Record
from wsol_jax.evaluation.faithfulness import faithfulness
from wsol_jax.localization.localize import localize
from wsol_jax.localization.stage import localize_split
from wsol_jax.models import Preprocessing, from_nnx, load_network


def halves(logits):
    """Every class as likely as not, whatever the logits."""
    return jnp.full_like(logits, 0.5)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def unit(x):
    return x / np.sqrt(np.sum(x**2, axis=(1, 2, 3), keepdims=True))


class OneLogit(nnx.Module):
    """A detector: one logit, the weighted mean of a ReLU."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))


@pytest.fixture(scope='module')
def one_logit():
    module = OneLogit(nnx.Rngs(0))
    scale = Preprocessing((128.0,) * 3, (32.0,) * 3)
    return module, from_nnx(module, input_size=8, preprocessing=scale)


@pytest.mark.parametrize('probability', ['softmax', 'sigmoid', halves])
def test_dgl_pulls_back_what_the_logits_stand_for(toy, toy_images, probability):
    """In closed form at `late`: the gradient of a class score is its column of the head / 16."""
    network = replace(toy, probability=probability)
    classes = np.array([3, 0, 4, 1])
    result = localize(network, toy_images, ('dgl', 'sgl_g2'), ('late',), classes)
    head = np.asarray(toy.state['head'], np.float64)
    logits = np.asarray(result.logits, np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = {'softmax': softmax, 'sigmoid': sigmoid(logits)}.get(probability, np.full((4, 6), 0.5))
    s = np.asarray(network(toy_images)[1]['late'], np.float64)
    g = np.broadcast_to(head[:, classes].T[:, None, None] / 16, s.shape)
    q = np.broadcast_to((p @ head.T)[:, None, None] / 16, s.shape)
    expected = np.sum(g * (unit(s) - unit(q - 10 * g)), -1)
    np.testing.assert_allclose(result.maps['dgl', 'late'], expected, rtol=1e-4, atol=1e-6)
    direction = unit(q - 10 * g)
    expected = np.sum(-direction * (unit(s) - direction), -1)
    np.testing.assert_allclose(result.maps['sgl_g2', 'late'], expected, rtol=1e-4, atol=1e-6)


def test_one_logit_is_a_sigmoid(one_logit, toy_images):
    module, network = one_logit
    assert network.probability == 'sigmoid'
    logits, _ = network(toy_images)
    np.testing.assert_allclose(network.probabilities(logits), sigmoid(logits), rtol=1e-5)
    result = localize(network, toy_images, ('dgl', 'grad_cam'), ('conv',))
    top5 = localize(network, toy_images, ('dgl',), ('conv',), 'top5')
    assert top5.classes.tolist() == [[0]] * 4  # as many as there are
    np.testing.assert_allclose(top5.maps['dgl', 'conv'][:, 0], result.maps['dgl', 'conv'])
    # G = (sigmoid(z) - 10) g points against g, whatever the probability.
    s = np.asarray(network(toy_images)[1]['conv'], np.float64)
    g = np.asarray(module.head.kernel[...], np.float64)[:, 0] * (s > 0) / 16
    expected = np.sum(g * (unit(s) + unit(g)), -1)
    np.testing.assert_allclose(result.maps['dgl', 'conv'], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('score', ['softmax', 'finer_cam'])
def test_scores_that_compare_classes_need_several(one_logit, toy_images, score):
    with pytest.raises(ValueError, match=f"score='{score}' compares classes and OneLogit has one"):
        localize(one_logit[1], toy_images, score=score)


def test_faithfulness_of_one_logit_varies(one_logit, toy_images):
    """The curve of deletion ends on the mean colour, which is zero behind preprocessing."""
    module, network = one_logit
    maps = {'m': np.arange(4 * 64.0).reshape(4, 8, 8)}
    scores = faithfulness(network, toy_images, maps, np.zeros(4, int), steps=2)['m']
    x = np.asarray(network.preprocessing(toy_images)).reshape(4, 64, 3)
    # The map rises row by row: deletion at one half has lost the lower four rows.
    half = np.where(np.arange(64)[:, None] < 32, x, 0).reshape(4, 8, 8, 3)
    blank = np.zeros_like(half)
    whole, halved, none = (
        sigmoid(module(jnp.asarray(images.reshape(4, 8, 8, 3), jnp.float32)))[:, 0]
        for images in (x, half, blank)
    )
    expected = (whole / 2 + halved + none / 2) / 2
    np.testing.assert_allclose(scores['deletion'], expected, rtol=1e-4)
    assert np.ptp(scores['deletion']) > 1e-3 and np.ptp(scores['average_drop']) >= 0
    assert any(np.abs(scores['road']) > 1e-4)


@pytest.mark.slow
def test_faithfulness_uses_what_the_network_says(toy, toy_images):
    maps = {'m': np.random.default_rng(0).random((4, 8, 8))}
    classes = np.array([3, 0, 4, 1])
    of = {
        name: faithfulness(
            replace(toy, probability=p),
            toy_images,
            maps,
            classes,
            scores=('insertion', 'increase'),
            steps=2,
        )['m']
        for name, p in (('softmax', None), ('halves', halves), ('sigmoid', 'sigmoid'))
    }
    np.testing.assert_allclose(of['halves']['insertion'], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(of['halves']['increase'], 0)
    assert not np.allclose(of['sigmoid']['insertion'], of['softmax']['insertion'])


@pytest.mark.slow
def test_class_scores_in_the_workdir(tmp_path, toy_images):
    """Of a network with one logit, and of one with a function of its own."""
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    encoded = [cv2.imencode('.png', image[..., ::-1])[1].tobytes() for image in images]
    records = [
        Record(image_id=f'{i}.png', labels=(0,), size=(32, 32), image=png)
        for i, png in enumerate(encoded)
    ]
    source = Listed(records, class_names=())
    config = Config(localize=LocalizeConfig(methods=('fem',), layers=('stage4',), batch_size=3))
    config = replace(config, network=replace(config.network, input_size=32))
    network = load_network('resnet10', num_classes=1, width=4)
    store = localize_split(config, network, source, 'test', tmp_path)
    logits, _ = jax.jit(network.apply)(network.state, network.preprocessing(images))
    np.testing.assert_allclose(store.fact('class_scores'), sigmoid(logits), rtol=1e-5)
    assert np.ptp(store.fact('class_scores')) > 0
    network = replace(network, probability=halves)
    store = localize_split(config, network, source, 'halves', tmp_path)
    np.testing.assert_array_equal(store.fact('class_scores'), 0.5)


@pytest.mark.parametrize(
    ('probability', 'message'),
    [
        ('sigmiod', "unknown probability 'sigmiod'; did you mean 'sigmoid'"),
        (lambda z: z[0], r'must make of logits \[B,C\] as many probabilities, made \(6,\) of'),
        (lambda z: {'p': z}, 'must make of logits'),
    ],
)
def test_what_is_no_probability(toy, probability, message):
    with pytest.raises(ValueError, match=message):
        replace(toy, probability=probability)


def test_the_default(toy):
    assert toy.probability == 'softmax' and toy.probabilities is jax.nn.softmax
