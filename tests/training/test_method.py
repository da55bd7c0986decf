"""The loss of the plain classifier by hand: softmax, sigmoid, class weights; accuracy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Listed

from wsol_jax.config import ConfigError, TrainConfig
from wsol_jax.data.records import DataError, Record
from wsol_jax.models.heads import Outputs
from wsol_jax.training.method import Shard, TrainedMethod, Update, accuracy
from wsol_jax.training.methods import make_method
from wsol_jax.training.methods.acol import ACoL

UPDATE = Update(jnp.int32(0), lambda sums: sums)
LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [-1.0, 3.0, 1.0]])


def batch_of(labels):
    labels = np.array(labels, np.int32)
    return Shard(None, {'labels': labels}, np.ones(len(labels), bool), np.arange(len(labels)))


def losses(method, labels, logits=LOGITS):
    return method.loss(Outputs(logits, {}, {}), batch_of(labels), UPDATE)


def test_sigmoid_cross_entropy_of_several_labels_by_hand():
    found, values = losses(TrainedMethod(sigmoid=True), [[0, 2], [1, -1], [-1, -1]])
    # -log sigmoid(z) = log(1 + e^-z) where a class is set, else log(1 + e^z); mean of three.
    signs = np.array([[1, -1, 1], [-1, 1, -1], [-1, -1, -1]])
    np.testing.assert_allclose(found, np.log1p(np.exp(-signs * LOGITS)).mean(1), rtol=1e-6)
    # The highest logits are of the classes 0, 1 and 1; the last image has none.
    assert values['accuracy'].tolist() == [100, 100, 0]


def test_sigmoid_with_smoothing_and_weights_by_hand():
    method = TrainedMethod(sigmoid=True, label_smoothing=0.2, class_weights=(3.0, 0.0, 0.5))
    found = losses(method, [[0, 2]], LOGITS[:1])[0]
    right, wrong = np.log1p(np.exp(-LOGITS[0])), np.log1p(np.exp(LOGITS[0]))
    targets = np.array([0.9, 0.1, 0.9])
    terms = np.array([3.0, 0.0, 0.5]) * (targets * right + (1 - targets) * wrong)
    np.testing.assert_allclose(found, [terms.sum() / 3], rtol=1e-6)


def test_class_weights_by_hand():
    found, values = losses(TrainedMethod(class_weights=(2.0, 1.0, 0.25)), [[0], [2], [1]])
    logp = np.asarray(LOGITS) - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    expected = [-2 * logp[0, 0], -0.25 * logp[1, 2], -logp[2, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert values['accuracy'].tolist() == [100, 0, 100]


@pytest.mark.slow
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_a_whole_weight_is_as_many_copies_of_the_images(smoothing):
    """In the loss summed over images, and so in its gradient."""

    def total(logits, method, labels):
        return losses(method, labels, logits)[0].sum()

    weighted = TrainedMethod(class_weights=(1.0, 3.0, 0.0), label_smoothing=smoothing)
    plain = TrainedMethod(label_smoothing=smoothing)
    found, gradient = jax.value_and_grad(total)(LOGITS, weighted, [[0], [1], [2]])
    copies = np.array([0, 1, 1, 1])
    expected, of_copies = jax.value_and_grad(total)(LOGITS[copies], plain, [[0], [1], [1], [1]])
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    summed = np.stack([of_copies[0], of_copies[1:].sum(0), np.zeros(3)])
    np.testing.assert_allclose(gradient, summed, rtol=1e-5, atol=1e-7)


def test_weights_reach_every_classification_of_a_method():
    given = {'logits_b': LOGITS[::-1], 'erased': jnp.zeros(3)}
    outputs, batch = Outputs(LOGITS, {}, given), batch_of([[0], [2], [1]])
    found = ACoL(class_weights=(2.0, 1.0, 4.0)).loss(outputs, batch, UPDATE)[0]
    weights, plain = np.array([2.0, 4.0, 1.0]), ACoL().loss(outputs, batch, UPDATE)[0]
    np.testing.assert_allclose(found, weights * plain, rtol=1e-6)


def test_accuracy_is_of_any_label():
    assert accuracy(LOGITS, jnp.array([0, 0, 1])).tolist() == [100, 0, 100]
    several = jnp.array([[2, 0], [0, 2], [-1, -1]])
    assert accuracy(LOGITS, several).tolist() == [100, 0, 0]


def source_of(*labels, names='abc'):
    return Listed([Record(f'{i}.png', b'', some, None) for i, some in enumerate(labels)], names)


def test_settings_become_the_method():
    setting = TrainConfig(loss='sigmoid', class_weights=(1.0, 2.0, 3.0), method='acol')
    assert make_method(setting) == ACoL(sigmoid=True, class_weights=(1.0, 2.0, 3.0))
    source = source_of((0, 2), (1,))
    labels = make_method(setting).targets(source, required=True)(source[1])['labels']
    assert labels.tolist() == [1, -1]
    one_each = make_method(TrainConfig()).targets(source, required=True)
    with pytest.raises(DataError, match=r'has 2 labels \(0, 2\), but can have 1 here'):
        one_each(source[0])


@pytest.mark.parametrize('method', ['', 'has', 'acol'])
def test_there_is_a_weight_for_each_class(method):
    source = source_of((0,), (1,))
    setting = TrainConfig(method=method, class_weights=(1.0, 2.0))
    message = 'config.train.class_weights must have a weight for each of the 3 classes, got 2'
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_method(setting).num_logits(source)
    assert make_method(setting).num_logits(source_of((0,), (1,), names='ab')) == 2
