"""Maps from the activations alone, without a class: Eigen-CAM, KPCA-CAM, FEM; DFF and chance.

S [B,h,w,K] are the activations of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import jax
import jax.numpy as jnp

from wsol_jax.localization.factors import (
    exceedance_weights,
    first_component,
    kernel_component,
    nmf,
    principal_component,
)
from wsol_jax.localization.method import Method, Run, class_score
from wsol_jax.localization.views import other_keys


def eigen_cam(centred: bool = False) -> Method:
    """Eigen-CAM: S v, v the first right singular vector of S as an (hw) x K matrix.

    Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020.
    The sign of v is fixed so that activations without negative values give none.

    Weak where something else than the object is active: it knows no class.

    Args:
        centred: subtract the channel means over positions first, as pytorch-grad-cam does.
    """
    reduce = principal_component if centred else first_component
    return Method('eigen_cam', (), _as_they_are, reduce=reduce, relu=centred)


def kpca_cam() -> Method:
    """KPCA-CAM: sqrt(l) u, (l, u) the first eigenpair of a centred sigmoid kernel of S.

    Karmani et al., "KPCA-CAM: Visual Explainability of Deep Computer Vision Models Using Kernel
    PCA", 2024: Eigen-CAM with a kernel over the positions.

    Weak where something else than the object is active: it knows no class.
    """
    return Method('kpca_cam', (), _as_they_are, reduce=kernel_component, relu=True)


def fem() -> Method:
    """FEM: sum_k w_k S_k, w_k the share of positions where S_k > mean_k + 2 std_k.

    Fuad et al., "Features Understanding in 3D CNNs for Actions Recognition in Video", IPTA 2020.

    Weak on objects that fill much of the image, which exceed no mean by much; it knows no class.
    """
    return Method('fem', (), _fem)


def dff(components: int = 8, steps: int = 100) -> Method:
    """Deep Feature Factorization: W_j, the part of relu(S) ~ W H that speaks most for the class.

    Collins, Achanta, Süsstrunk, "Deep Feature Factorization for Concept Discovery", ECCV 2018:
    non-negative factors, here of each image by itself. Of the parts W_j H_j the map is the W_j
    with the largest sum_xy W_j (H_j . g), g the gradient of the score. All parts: `nmf`.

    Weak where an object falls into several parts: the map is one of them.

    Args:
        components: how many parts.
        steps: of the factorization.
    """
    return Method('dff', (class_score,), passes=_Parts(components, steps))


def random_cam(seed: int = 0) -> Method:
    """RandomCAM: sum_k w_k S_k with w_k uniform in [-1, 1].

    What chance reaches, which nobody published as a method: a method that is hardly better has
    found nothing.

    Weak everywhere.

    Args:
        seed: of the weights; every image and layer has its own.
    """
    return Method('random_cam', passes=_Random(seed), relu=True)


def _as_they_are(s: jax.Array) -> jax.Array:
    return s


def _fem(s: jax.Array) -> jax.Array:
    return s * exceedance_weights(s)[:, None, None]


@dataclass(frozen=True)
class _Parts:
    components: int
    steps: int

    def __call__(self, run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
        return {n: self._part(run.activations[n], run.gradients[n]) for n in layers}

    def _part(self, s: jax.Array, g: jax.Array) -> jax.Array:
        """[B,h,w,K'], [K,B,h,w,K'] -> the part of each target [K,B,h,w,1]."""
        parts, factors = nmf(s, self.components, steps=self.steps)
        speaks = jnp.einsum('bhwj,bjk,tbhwk->tbj', parts, factors, g)
        best = jnp.argmax(speaks, axis=-1)[:, :, None, None, None]
        return jnp.take_along_axis(parts[None], best, axis=-1)


@dataclass(frozen=True)
class _Random:
    seed: int

    def __call__(self, run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
        keys = other_keys(run.keys, self.seed)
        return {n: self._terms(run.activations[n], keys, n) for n in layers}

    def _terms(self, s: jax.Array, keys: jax.Array, layer: str) -> jax.Array:
        number = crc32(layer.encode())

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(key, number), s.shape[-1:], minval=-1)

        return (s * jax.vmap(draw)(keys)[:, None, None])[None]
