"""The localization methods by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from wsol_jax.localization import activation, attention, cam, input_gradients, masking
from wsol_jax.localization.dgl import dgl, sgl_g1, sgl_g2
from wsol_jax.localization.full_grad import full_grad
from wsol_jax.localization.method import HEAD, Method, Run
from wsol_jax.names import unknown_name

if TYPE_CHECKING:  # what is exported runs without the networks
    from wsol_jax.models.network import OwnMap

# The docstring of each is its card in the documentation: 'Title: formula.', the paper, and, from
# 'Weak' on, when it fails.
METHODS: dict[str, Callable[..., Method]] = {
    'dgl': dgl,
    'sgl_g1': sgl_g1,
    'sgl_g2': sgl_g2,
    'cam': cam.cam,
    'grad_cam': cam.grad_cam,
    'grad_cam_pp': cam.grad_cam_pp,
    'smooth_grad_cam_pp': cam.smooth_grad_cam_pp,
    'xgrad_cam': cam.xgrad_cam,
    'hires_cam': cam.hires_cam,
    'grad_cam_elementwise': cam.grad_cam_elementwise,
    'layer_cam': cam.layer_cam,
    'shapley_cam': cam.shapley_cam,
    'eigen_grad_cam': cam.eigen_grad_cam,
    'refine_cam': cam.refine_cam,
    'full_grad': full_grad,
    'eigen_cam': activation.eigen_cam,
    'kpca_cam': activation.kpca_cam,
    'fem': activation.fem,
    'dff': activation.dff,
    'score_cam': masking.score_cam,
    'ss_cam': masking.ss_cam,
    'is_cam': masking.is_cam,
    'ablation_cam': masking.ablation_cam,
    'rollout': attention.rollout,
    'saliency': input_gradients.saliency,
    'smooth_grad': input_gradients.smooth_grad,
    'integrated_gradients': input_gradients.integrated_gradients,
    'guided_backprop': input_gradients.guided_backprop,
    'random_cam': activation.random_cam,
}


@dataclass(frozen=True)
class _OfHead:
    own_map: 'OwnMap'

    def __call__(self, run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
        del layers
        if run.classes.dtype == bool:
            name = self.own_map.name
            raise ValueError(f'{name} makes a map of one class: give indices, not bool classes')
        maps = self.own_map.function(run.state, run.activations, run.classes)
        return {HEAD: jnp.moveaxis(maps, 1, 0)[..., None]}


def of_head(own_map: 'OwnMap') -> Method:
    """The map that a trained head of the network makes, without a gradient."""
    passes, reads = _OfHead(own_map), own_map.endpoints
    return Method(own_map.name, passes=passes, where='head', endpoints=reads)


def resolve_methods(
    methods: Sequence[str | Method], alpha: float = 10.0, own: Method | None = None
) -> tuple[tuple[Method, ...], ...]:
    """Turns names into methods, 'a+b' into both; `alpha` goes to DGL, `own` is the network's.

    Raises:
        ValueError: no method given, the same name twice, or an unknown name.
    """
    if isinstance(methods, str):
        raise ValueError(f'methods must be a sequence such as ({methods!r},), got the string')
    for m in methods:
        if not isinstance(m, str | Method):
            raise ValueError(f'{m!r} is no method; METHODS holds functions: METHODS[name]()')
    resolved = tuple(
        (m,) if isinstance(m, Method) else tuple(_by_name(n, alpha, own) for n in _parts(m))
        for m in methods
    )
    for fused in resolved:
        parts = [m.name for m in fused]
        if len(set(parts)) < len(parts):
            raise ValueError(f'{"+".join(parts)!r} fuses a method with itself')
    names = ['+'.join(m.name for m in fused) for fused in resolved]
    if not names:
        raise ValueError(f'no localization method given; choose from {", ".join(METHODS)}')
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'localization method {name!r} is given more than once')
    return resolved


def _parts(name: str) -> list[str]:
    """Of 'a+b'; Grad-CAM++ is one name, if a wrong one."""
    return [name] if '++' in name else name.split('+')


def _by_name(name: str, alpha: float, own: Method | None) -> Method:
    if own and name == own.name:
        return own
    if name not in METHODS:
        known = [*METHODS, *([own.name] if own else [])]
        without = '' if own else '; the network has no trained head, which would have a map, too'
        raise ValueError(unknown_name('localization method', name, known) + without)
    return METHODS[name](alpha) if name in ('dgl', 'sgl_g2') else METHODS[name]()
