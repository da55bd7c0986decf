"""Class activation maps from the gradient of the class score.

S [B,h,w,K] are the activations of a layer, g [B,h,w,K] the gradient of the score (by default the
logit) with respect to them. All maps are raw, before any normalization and resizing; where the
definition ends in a ReLU, the method says so and scoring applies it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from wsol_jax.localization.factors import principal_component
from wsol_jax.localization.method import ALL, Method, Run, class_score
from wsol_jax.localization.targets import score_gradients
from wsol_jax.localization.views import noisy, other_keys
from wsol_jax.maps.fuse import fuse

_SPACE = (-3, -2)


def cam() -> Method:
    """CAM: sum_k w_k^c S_k with the weights of the linear classifier on pooled features.

    Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. Behind
    global average pooling and a linear layer g_k = w_k^c / (hw) at every position, so the weights
    are read off the gradient; hence only on the last layer.

    Weak where a part of the object tells its class: the map covers that part.
    """
    return Method('cam', (class_score,), _cam, where='last')


def grad_cam() -> Method:
    """Grad-CAM: sum_k mean(g_k) S_k.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, eq. 1 and 2.

    Weak where a channel matters at some places and not at others, as in early layers: its weight is
    a mean over all places.
    """
    return Method('grad_cam', (class_score,), _grad_cam, relu=True)


def grad_cam_pp() -> Method:
    """Grad-CAM++: sum_k w_k S_k, w = sum_xy a relu(g), a = g^2 / (2 g^2 + sum_xy(S) g^3).

    Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
    Convolutional Networks", WACV 2018, eq. 19 (exponential score). a = 0 where g = 0.

    Weak at telling classes apart: behind a ReLU no channel has a negative weight, so what speaks
    against the class does not count.
    """
    return Method('grad_cam_pp', (class_score,), _grad_cam_pp, relu=True)


def smooth_grad_cam_pp(samples: int = 4, sigma: float = 0.3) -> Method:
    """Smooth Grad-CAM++: sum_k w_k S_k, as Grad-CAM++, g, g^2 and g^3 averaged over noisy inputs.

    Omeiza et al., "Smooth Grad-CAM++", 2019, eq. 10 to 12. The raw map is in units of its own: the
    gradients are scaled by the largest one of each image.

    Weak where Grad-CAM++ is, at a forward and a backward pass for each noisy input.

    Args:
        samples: how many noisy inputs.
        sigma: of the noise, see `noisy`.
    """
    passes = _Smooth(samples, sigma)
    return Method('smooth_grad_cam_pp', (class_score,), passes=passes, relu=True)


def xgrad_cam() -> Method:
    """XGrad-CAM: sum_k w_k S_k, w = sum_xy(g S) / sum_xy(S).

    Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC
    2020, eq. 8.

    Weak where the activations of a channel sum to nearly nothing, as signed ones may: the weight
    is divided by their sum.
    """
    return Method('xgrad_cam', (class_score,), _xgrad_cam, relu=True)


def layer_cam() -> Method:
    """LayerCAM: sum_k relu(g_k) S_k.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
    TIP 2021, eq. 6. Its fusion over layers (eq. 8 and 9) is `fusion='layer_cam'`.

    Weak on activations that may be negative, as those of transformers: it was made for layers
    behind a ReLU.
    """
    return Method('layer_cam', (class_score,), _layer_cam)


def hires_cam() -> Method:
    """HiResCAM: sum_k g_k S_k.

    Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
    neural networks", 2020. The gradient is not averaged; behind global average pooling and a linear
    layer it is CAM up to a factor.

    Weak in early layers, whose single gradients are noisy.
    """
    return Method('hires_cam', (class_score,), _hires_cam)


def grad_cam_elementwise() -> Method:
    """Element-wise Grad-CAM: sum_k relu(g_k S_k).

    As in the library pytorch-grad-cam. Behind a ReLU it is LayerCAM.

    Weak where what speaks against the class would have to be subtracted: it is left out.
    """
    return Method('grad_cam_elementwise', (class_score,), _elementwise)


def eigen_grad_cam() -> Method:
    """EigenGrad-CAM: (g S) v, v the first principal component of g S, centred.

    As in the library pytorch-grad-cam. A component has no sign of its own: it is turned so that the
    value farthest from zero is positive.

    Weak where the ground varies more than the object: the first component is the ground's then.
    """
    return Method(
        'eigen_grad_cam', (class_score,), _hires_cam, reduce=principal_component, relu=True
    )


def shapley_cam() -> Method:
    """Shapley-CAM: sum_k w_k S_k, w = mean_xy(g - H S / 2), H the Hessian of the score in S.

    Cai, "CAMs as Shapley Value-based Explainers", 2025. H S is the derivative of the gradient in
    the direction S. In a network that is linear by parts the Hessian of a logit is zero and the
    map is Grad-CAM's; with `score='softmax'` it is not.

    Weak where Grad-CAM is, at one derivative more for each layer.
    """
    return Method('shapley_cam', (class_score,), passes=_shapley, relu=True, forward_mode=True)


def refine_cam() -> Method:
    """Refine-CAM: product over all main layers of the [0, 1] maps of Grad-CAM++.

    As in the library pytorch-grad-cam; one map from all layers.

    Weak where a single layer is: what one map leaves out, the product leaves out.
    """
    return Method('refine_cam', (class_score,), passes=_refine, where='all')


def _cam(s: jax.Array, g: jax.Array) -> jax.Array:
    return s * jnp.sum(g, axis=_SPACE, keepdims=True)


def _grad_cam(s: jax.Array, g: jax.Array) -> jax.Array:
    return s * jnp.mean(g, axis=_SPACE, keepdims=True)


def _grad_cam_pp(s: jax.Array, g: jax.Array) -> jax.Array:
    # g^2 cancels: a = 1 / (2 + sum(S) g). The uncancelled form with a fixed epsilon is dominated
    # by it where gradients are small.
    denominator = 2.0 + jnp.sum(s, axis=_SPACE, keepdims=True) * g
    a = jnp.where((g == 0) | (denominator == 0), 0.0, 1.0 / jnp.where(denominator, denominator, 1))
    return s * jnp.sum(a * jax.nn.relu(g), axis=_SPACE, keepdims=True)


def _hires_cam(s: jax.Array, g: jax.Array) -> jax.Array:
    return g * s


def _elementwise(s: jax.Array, g: jax.Array) -> jax.Array:
    return jax.nn.relu(g * s)


def _xgrad_cam(s: jax.Array, g: jax.Array) -> jax.Array:
    total = jnp.sum(s, axis=_SPACE, keepdims=True)
    return s * jnp.sum(g * s, axis=_SPACE, keepdims=True) / jnp.where(total, total, 1)


def _layer_cam(s: jax.Array, g: jax.Array) -> jax.Array:
    return jax.nn.relu(g) * s


# {layer: means of the gradients, their squares and their cubes, each [K,B,h,w,K']}
Moments = dict[str, tuple[jax.Array, ...]]


@dataclass(frozen=True)
class _Smooth:
    samples: int
    sigma: float

    def __call__(self, run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
        def moments(sample: jax.Array) -> Moments:
            inputs = noisy(run.inputs, self.sigma, other_keys(run.keys, sample))
            gradients = _score_gradients(run, layers, inputs)
            # In units of each image's largest gradient: cubes of small ones would be lost.
            return {
                n: tuple((g / _largest(run.gradients[n])) ** p for p in (1, 2, 3))
                for n, g in gradients.items()
            }

        def add(total: Moments, sample: jax.Array) -> tuple[Moments, None]:
            return jax.tree.map(jnp.add, total, moments(sample)), None

        first = moments(jnp.int32(0))
        total, _ = jax.lax.scan(add, first, jnp.arange(1, self.samples))
        means = jax.tree.map(lambda x: x / self.samples, total)
        return {n: self._weighted(run, n, *means[n]) for n in layers}

    def _weighted(
        self, run: Run, layer: str, first: jax.Array, second: jax.Array, third: jax.Array
    ) -> jax.Array:
        s = run.activations[layer]
        unit = _largest(run.gradients[layer])
        bottom = 2 * second + jnp.sum(s, axis=_SPACE, keepdims=True) * third * unit
        a = jnp.where((second == 0) | (bottom == 0), 0, second / jnp.where(bottom, bottom, 1))
        return s * jnp.sum(a * jax.nn.relu(first), axis=_SPACE, keepdims=True)


def _largest(g: jax.Array) -> jax.Array:
    top = jnp.max(jnp.abs(g), axis=(-3, -2, -1), keepdims=True)
    return jnp.where(top, top, 1)


def _score_gradients(run: Run, layers: Sequence[str], inputs: jax.Array) -> dict[str, jax.Array]:
    """Gradients {layer: [K,B,h,w,K']} of the scores at other inputs."""
    zeros = {n: jnp.zeros_like(run.activations[n]) for n in layers}
    return score_gradients(lambda perturb: run.scores(run.forward(inputs, perturb)[0]), zeros)


def _shapley(run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
    zeros = {n: jnp.zeros_like(run.activations[n]) for n in layers}

    def mean_gradients(perturb: dict[str, jax.Array]) -> dict[str, jax.Array]:
        g = score_gradients(lambda p: run.scores(run.forward(run.inputs, p)[0]), perturb)
        return {n: jnp.mean(x, axis=_SPACE, keepdims=True) for n, x in g.items()}

    def curvature(number: jax.Array) -> dict[str, jax.Array]:
        """The mean of H S of one layer; the other layers' entries are of no use."""
        along = {n: run.activations[n] * (number == i) for i, n in enumerate(layers)}
        return jax.jvp(mean_gradients, (zeros,), (along,))[1]

    # One program for all layers, run after one another: the derivative of all of them at once
    # would mix the layers' directions.
    curved = jax.lax.map(curvature, jnp.arange(len(layers)))
    means = {n: jnp.mean(run.gradients[n], axis=_SPACE, keepdims=True) for n in layers}
    return {n: run.activations[n] * (means[n] - curved[n][i] / 2) for i, n in enumerate(layers)}


def _refine(run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
    del layers
    maps = [
        jax.nn.relu(jnp.sum(_grad_cam_pp(run.activations[n], run.gradients[n]), axis=-1))
        for n in run.main_layers
    ]
    return {ALL: fuse(maps, 'product')[..., None]}
