"""A function whose ReLUs hand back what guided backpropagation lets through, whatever wrote them.

The function is traced to JAX's own intermediate form, and evaluated from there with another
backward rule in place of every ReLU. So it works for any network, and changes none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Calls whose body can be evaluated in their place; what they are for is lost in there.
_CALLS = {'jit': 'jaxpr', 'remat2': 'jaxpr', 'checkpoint': 'jaxpr', 'custom_jvp_call': 'call_jaxpr'}


def guided(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> Callable:
    """The same function, each ReLU of which hands back positive gradients at positive inputs alone.

    A ReLU is max(x, 0) of floating-point numbers: that of `jax.nn.relu`, `relu6`, `nnx.relu` ...

    Args:
        function: of one array.
        x: an argument like those that it will get.

    Raises:
        ValueError: there is no ReLU, or one inside of a loop or a condition.
    """
    traced = jax.make_jaxpr(function)(x)
    if not _has_relu(traced.jaxpr):
        raise ValueError(
            'guided_backprop changes the ReLUs of a network, jax.nn.relu, relu6 or max(x, 0), and '
            'this one has none: ask for saliency instead'
        )
    return lambda x: _evaluated(traced.jaxpr, traced.consts, [x])[0]


@jax.custom_vjp
def _guided_relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


_guided_relu.defvjp(
    lambda x: (jnp.maximum(x, 0), x > 0), lambda on, g: (jnp.where(on, jnp.maximum(g, 0), 0),)
)


def _evaluated(jaxpr: core.Jaxpr, consts: list[Any], arguments: list[Any]) -> list[Any]:
    """What the program returns; see JAX's guide to interpreters of its intermediate form."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        found = _of_equation(eqn, [value(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, found, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _of_equation(eqn: core.JaxprEqn, arguments: list[Any]) -> list[Any]:
    if _is_relu(eqn):
        (x,) = (a for a, atom in zip(arguments, eqn.invars, strict=True) if not _is_zero(atom))
        return [_guided_relu(x)]
    if not any(
        map(_has_relu, core.jaxprs_in_params(eqn.params))
    ):  # as it is, with whatever backward rule it has
        found = eqn.primitive.bind(*arguments, **eqn.primitive.get_bind_params(eqn.params))
        return list(found) if eqn.primitive.multiple_results else [found]
    if eqn.primitive.name not in _CALLS:
        raise ValueError(
            f'guided_backprop cannot change the ReLU inside of a {eqn.primitive.name} of the '
            'network: ask for saliency instead'
        )
    body = eqn.params[_CALLS[eqn.primitive.name]]
    closed = isinstance(body, core.ClosedJaxpr)
    return _evaluated(body.jaxpr if closed else body, body.consts if closed else [], arguments)


def _is_relu(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive.name == 'max' and any(map(_is_zero, eqn.invars))


def _is_zero(atom: Any) -> bool:
    """Whether it is the literal 0.0; that of integers is none."""
    if not isinstance(atom, core.Literal) or jnp.ndim(atom.val):
        return False
    return jnp.issubdtype(jnp.result_type(atom.val), jnp.floating) and atom.val == 0


def _has_relu(jaxpr: core.Jaxpr) -> bool:
    inside = (body for eqn in jaxpr.eqns for body in core.jaxprs_in_params(eqn.params))
    return any(map(_is_relu, jaxpr.eqns)) or any(map(_has_relu, inside))
