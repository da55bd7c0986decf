"""The localization methods by name."""

from collections.abc import Callable, Sequence

from wsol_jax.localization import activation, cam, masking
from wsol_jax.localization.dgl import dgl, sgl_g1, sgl_g2
from wsol_jax.localization.full_grad import full_grad
from wsol_jax.localization.method import Method
from wsol_jax.names import unknown_name

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
    'random_cam': activation.random_cam,
}


def resolve_methods(
    methods: Sequence[str | Method], alpha: float = 10.0
) -> tuple[tuple[Method, ...], ...]:
    """Turns names into methods, 'a+b' into both; `alpha` goes to DGL.

    Raises:
        ValueError: no method given, the same name twice, or an unknown name.
    """
    if isinstance(methods, str):
        raise ValueError(f'methods must be a sequence such as ({methods!r},), got the string')
    for m in methods:
        if not isinstance(m, str | Method):
            raise ValueError(f'{m!r} is no method; METHODS holds functions: METHODS[name]()')
    resolved = tuple(
        (m,) if isinstance(m, Method) else tuple(_by_name(n, alpha) for n in _parts(m))
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


def _by_name(name: str, alpha: float) -> Method:
    if name not in METHODS:
        raise ValueError(unknown_name('localization method', name, METHODS))
    return METHODS[name](alpha) if name in ('dgl', 'sgl_g2') else METHODS[name]()
