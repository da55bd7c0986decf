"""The localization methods by name."""

from collections.abc import Callable, Sequence

from wsol_jax.localization import cam
from wsol_jax.localization.dgl import dgl
from wsol_jax.localization.gradients import Method
from wsol_jax.names import unknown_name

METHODS: dict[str, Callable[..., Method]] = {
    'dgl': dgl,
    'cam': cam.cam,
    'grad_cam': cam.grad_cam,
    'grad_cam_pp': cam.grad_cam_pp,
    'hires_cam': cam.hires_cam,
    'xgrad_cam': cam.xgrad_cam,
    'layer_cam': cam.layer_cam,
}


def resolve_methods(methods: Sequence[str | Method], alpha: float = 10.0) -> tuple[Method, ...]:
    """Turns names into methods; `alpha` goes to DGL.

    Raises:
        ValueError: no method given, the same name twice, or an unknown name.
    """
    if isinstance(methods, str):
        raise ValueError(f'methods must be a sequence such as ({methods!r},), got the string')
    resolved = tuple(m if isinstance(m, Method) else _by_name(m, alpha) for m in methods)
    names = [m.name for m in resolved]
    if not names:
        raise ValueError(f'no localization method given; choose from {", ".join(METHODS)}')
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'localization method {name!r} is given more than once')
    return resolved


def _by_name(name: str, alpha: float) -> Method:
    if name not in METHODS:
        raise ValueError(unknown_name('localization method', name, METHODS))
    return dgl(alpha) if name == 'dgl' else METHODS[name]()
