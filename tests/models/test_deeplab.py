"""DeepLab's heads against loops, and dilated networks against strided ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.models import build
from wsol_jax.models.deeplab import (
    ASPP,
    RATES,
    Decoder,
    SegmentationHeads,
    SummedASPP,
    log_shares,
)
from wsol_jax.models.resnet import Block

X = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
NORM = 1 / np.sqrt(1 + 1e-5)  # what batch normalization does before the first step


def dilated(x, kernel, rate):
    """Place by place; zeros around the image."""
    found = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i, j in np.ndindex(x.shape[1:3]):
        for a, b in np.ndindex(kernel.shape[:2]):
            row = i + rate * (a - kernel.shape[0] // 2)
            column = j + rate * (b - kernel.shape[1] // 2)
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                found[:, i, j] += x[:, row, column] @ kernel[a, b]
    return found


def of(layer):
    return np.asarray(layer.kernel[...])


@nnx.jit
def applied(module, *inputs):
    """One program, not one of every operation."""
    return module(*inputs)


def test_version_2_sums_dilated_convolutions():
    head = SummedASPP(3, 4, (1, 2, 4), rngs=nnx.Rngs(0))
    head.branches[1].bias[...] = jnp.arange(4.0)
    expected = sum(dilated(X, of(b), r) for b, r in zip(head.branches, (1, 2, 4), strict=True))
    np.testing.assert_allclose(applied(head, X), expected + np.arange(4), atol=1e-5)
    assert RATES == {'v2': (6, 12, 18, 24), 'v3+': (6, 12, 18)}


def test_version_3_joins_them_with_the_mean_of_the_image():
    head = ASPP(3, 4, (2,), rngs=nnx.Rngs(0))
    head.eval()
    near, far = head.branches
    mean = np.broadcast_to(X.mean((1, 2), keepdims=True), X.shape)
    parts = [(near, X, 1), (far, X, 2), (head.pooling, mean, 1)]
    found = [np.maximum(NORM * dilated(x, of(layer.conv), r), 0) for layer, x, r in parts]
    expected = np.concatenate(found, -1) @ of(head.projection.conv)[0, 0]
    np.testing.assert_allclose(applied(head, X), np.maximum(NORM * expected, 0), atol=1e-5)


@pytest.fixture(scope='module')
def endpoints():
    rng = np.random.default_rng(1)
    shapes = {'stage1': (2, 12, 12, 8), 'stage4': (2, 6, 6, 64)}
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'side'), [('v2', 6), ('v3+', 12)])
def test_maps_are_the_probabilities_of_the_classes_asked_for(resnet, endpoints, kind, side):
    heads = SegmentationHeads(resnet, kind, 'stage1', 4, (1, 2), nnx.Rngs(0))
    heads.eval()
    classes = jnp.array([[0, 6], [3, 3]])
    extras, found = nnx.jit(lambda h, x: (h(x, None, None), h.map(x, classes)))(heads, endpoints)
    maps = np.asarray(extras['segmentation'], np.float64) * 30  # random weights tell little apart
    assert maps.shape == (2, side, side, 8)
    shares = np.exp(maps) / np.exp(maps).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        log_shares(jnp.asarray(maps)), np.log(shares[..., 1:].mean((1, 2))), rtol=1e-4
    )
    probabilities = jax.nn.softmax(extras['segmentation'])
    assert found.shape == (2, 2, side, side) and set(heads.reads) <= set(endpoints)
    np.testing.assert_allclose(found[0, 1], probabilities[0, ..., 7], rtol=1e-5)
    np.testing.assert_allclose(found[1, 0], probabilities[1, ..., 4], rtol=1e-5)


def test_the_decoder_joins_coarse_and_fine_features():
    """Constant coarse ones, whose resizing is known."""
    decoder, coarse = Decoder(3, 2, 4, rngs=nnx.Rngs(0)), np.array([0.5, -2], np.float32)
    decoder.eval()
    x = np.maximum(NORM * X @ of(decoder.reduction.conv)[0, 0], 0)
    x = np.concatenate([x, np.broadcast_to(coarse, (2, 5, 6, 2))], -1)
    for layer in (decoder.conv1, decoder.conv2):
        x = np.maximum(NORM * dilated(x, of(layer.conv), 1), 0)
    expected = x @ of(decoder.classifier)[0, 0]
    found = applied(decoder, X, np.broadcast_to(coarse, (2, 2, 3, 2)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_dilated_network_sees_what_a_strided_one_does():
    """At every other place the last stage is the same, for no weight sees another neighbour."""
    images = np.random.default_rng(2).normal(size=(1, 64, 64, 3)).astype(np.float32)
    found = {}
    for stride, is_dilated in ((32, False), (8, True)):
        options = {'width': 4, 'output_stride': stride, 'dilated': is_dilated}
        network = build('resnet10', 2, nnx.Rngs(0), **options)
        network.eval()
        found[stride, is_dilated] = np.asarray(
            nnx.jit(lambda n, x: n(x)[1]['stage4'])(network, images)
        )
    fine, coarse = found[8, True], found[32, False]
    assert fine.shape[1:3] == (8, 8) and coarse.shape[1:3] == (2, 2)
    np.testing.assert_allclose(fine[:, ::4, ::4], coarse, rtol=1e-4, atol=1e-5)


def test_what_is_dilated_lies_behind_the_stride_that_is_left_out():
    options = {'output_stride': 8, 'dilated': True, 'width': 2}
    network = nnx.eval_shape(lambda: build('resnet18', 2, nnx.Rngs(0), **options))
    stages = [getattr(network, f'layer{k}') for k in (2, 3, 4)]
    found = [[dilations(block, 'conv1', 'conv2') for block in stage] for stage in stages]
    assert found == [[(1, 1), (1, 1)], [(1, 2), (2, 2)], [(2, 4), (4, 4)]]
    bottleneck = nnx.eval_shape(lambda: Block(4, 2, 1, True, (2, 4), rngs=nnx.Rngs(0)))
    assert dilations(bottleneck, 'conv1', 'conv2', 'conv3') == (1, 2, 1)


def dilations(block, *names):
    return tuple(getattr(block, name).conv.kernel_dilation for name in names)
