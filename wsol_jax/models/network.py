"""A trained network as the rest of the library sees it: pure functions and names."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.models.heads import Heads, Outputs, outputs_of
from wsol_jax.models.layers import Perturbations
from wsol_jax.models.preprocessing import Preprocessing
from wsol_jax.names import unknown_name

# Side of a square in pixels, or (height, width).
Size = int | tuple[int, int]
# A name of `PROBABILITIES`, or a function logits [B,C] -> probabilities [B,C].
Probability = str | Callable[[jax.Array], jax.Array]
PROBABILITIES: Mapping[Any, Callable[[jax.Array], jax.Array]] = {
    'softmax': jax.nn.softmax,
    'sigmoid': jax.nn.sigmoid,
}


@dataclass(frozen=True)
class OwnMap:
    """The localization map that the heads of a network make.

    Attributes:
        name: what it is asked for by, like a localization method.
        function: pure (state, endpoints, classes [B,K]) -> maps [B,K,h,w].
        endpoints: those that it reads.
        classifies: the heads make the logits, too, in place of the network's last layers.
    """

    name: str
    function: Callable[[Any, Mapping[str, jax.Array], jax.Array], jax.Array]
    endpoints: tuple[str, ...]
    classifies: bool = True


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A classifier in inference mode that shows its endpoints.

    Attributes:
        name: for messages and reports.
        apply: pure `apply(state, inputs, perturb=None) -> (logits [B,C], endpoints)` on
            preprocessed inputs; `perturb[name]` is added at the endpoint `name`, every
            endpoint is [B,H,W,K]. `jax.jit` sorts the endpoints by name: take their order
            from `endpoints()`.
        state: the pytree of weights and batch statistics that `apply` takes.
        preprocessing: from images to inputs.
        input_size: the side in pixels of the squares the network was made for, or (height, width).
        num_classes: the length of the logits.
        last_layer: the endpoint directly before global average pooling and classifier.
        shapes: (H,W,K) of every endpoint at `input_size`, from input to output.
        main: the main endpoints, from input to output; None: those that are no part (branch,
            block) of another, by their names: 'stage1/block1' is a part of 'stage1'.
        probability: what the logits stand for: 'softmax' (one class of several), 'sigmoid' (every
            class for itself), or a function logits [B,C] -> probabilities [B,C], defined once:
            programs are compiled anew for every other function. None is 'sigmoid' for one logit,
            else 'softmax'.
        own_map: of the heads that it was trained with; None for none.
        class_names: of the logits, in their order; None where they are not known.
        outputs: where heads are attached, pure (state, inputs, targets) -> `Outputs` of both, with
            what is given of the images beside them, see `Trunk`.
        unread: endpoints that no logit depends on, which are no main ones: those of the patches
            behind the last attention where the classifier reads the class token alone.

    Raises:
        ValueError: `probability` is none of these.
    """

    name: str
    apply: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    state: Any
    preprocessing: Preprocessing
    input_size: Size
    num_classes: int
    last_layer: str
    shapes: dict[str, tuple[int, int, int]]
    main: tuple[str, ...] | None = None
    probability: Probability | None = None
    own_map: OwnMap | None = None
    unread: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    outputs: Callable[[Any, jax.Array, Mapping[str, jax.Array]], Outputs] | None = None

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f'{len(self.class_names)} class_names for {self.num_classes} classes')
        usual = 'sigmoid' if self.num_classes == 1 else 'softmax'
        object.__setattr__(self, 'probability', self.probability or usual)
        if isinstance(self.probability, str) and self.probability not in PROBABILITIES:
            raise ValueError(unknown_name('probability', self.probability, PROBABILITIES))
        logits = jax.ShapeDtypeStruct((2, self.num_classes), jnp.float32)
        given = jax.eval_shape(self.probabilities, logits)
        if getattr(given, 'shape', None) != logits.shape:
            raise ValueError(
                'probability must make of logits [B,C] as many probabilities, made '
                f'{jax.tree.map(lambda x: x.shape, given)} of {logits.shape}'
            )

    @classmethod
    def from_apply(
        cls,
        apply: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
        state: Any,
        *,
        name: str,
        preprocessing: Preprocessing,
        input_size: Size,
        main: tuple[str, ...] | None = None,
        last_layer: str | None = None,
        probability: Probability | None = None,
        own_map: OwnMap | None = None,
        unread: tuple[str, ...] = (),
    ) -> 'Network':
        """A network of its pure function; the arguments are the attributes of the same name.

        Number of classes and shapes come from an abstract run; `last_layer=None` is the last
        main endpoint.

        Raises:
            ValueError: the logits are not [B,C], an endpoint is not [B,H,W,K], there is none, or
                `last_layer` is none of them.
        """
        shape = (*sides(input_size), preprocessing.channels)
        num_classes, shapes = _shapes(apply, state, shape)
        for endpoint, found in shapes.items():
            if len(found) != 3:
                raise ValueError(
                    f'endpoint {endpoint!r} of {name} is {["B", *found]}, not [B,H,W,K]'
                )
        if not shapes:
            raise ValueError(f'{name} has no endpoints')
        last_layer = last_layer or (main or main_endpoints(shapes))[-1]
        if last_layer not in shapes:
            raise ValueError(unknown_name(f'layer of {name}', last_layer, shapes))
        return cls(
            name,
            apply,
            state,
            preprocessing,
            input_size,
            num_classes,
            last_layer,
            shapes,
            main,
            probability,
            own_map,
            unread,
        )

    @classmethod
    def from_module(
        cls,
        module: nnx.Module,
        *,
        name: str,
        preprocessing: Preprocessing,
        input_size: Size,
        probability: Probability | None = None,
    ) -> 'Network':
        """Freezes a module whose call is `module(inputs, perturb=None) -> (logits, endpoints)`.

        The module itself keeps its mode; the network holds its values of now. Where `Heads` are
        attached to it, their logits and their map are the network's.
        """
        thaw, state = freeze(module)
        heads = getattr(module, 'heads', None)
        heads = heads if isinstance(heads, Heads) else Heads()
        own_map = None
        if heads.map_name:
            function = by_identity_unless_hashable(_HeadsMap(thaw))
            own_map = OwnMap(heads.map_name, function, heads.reads, heads.classifies)
        unread = getattr(module, 'unread', ())
        if not set(heads.reads).isdisjoint(unread):
            unread = ()
        network = cls.from_apply(
            by_identity_unless_hashable(_ModuleApply(thaw)),
            state,
            name=name,
            preprocessing=preprocessing,
            input_size=input_size,
            probability=probability,
            own_map=own_map,
            unread=unread,
        )
        if isinstance(getattr(module, 'heads', None), Heads):
            outputs = by_identity_unless_hashable(_HeadsOutputs(thaw))
            network = replace(network, outputs=outputs)
        return network._ending_at(heads.last) if heads.last else network

    def _ending_at(self, layer: str) -> 'Network':
        """As heads leave it that classify by an endpoint before the last."""
        names = tuple(self.shapes)
        after = names[names.index(layer) + 1 :]
        return replace(self, last_layer=layer, unread=(*self.unread, *after))

    def __call__(
        self, images: Any, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Images, uint8 or float in [0,1], [B,H,W,3] -> (logits [B,C], endpoints)."""
        return self.apply(self.state, self.preprocessing(images), perturb)

    def __repr__(self) -> str:
        size = ' x '.join(map(str, self.input_shape))
        layers = self.layers()
        shown = ' … '.join(dict.fromkeys((layers[0], layers[-1])))
        return (
            f'Network {self.name!r}: input {size}, {self.num_classes} classes, '
            f'{_parameters(self.state):,} parameters, layers {shown}'
        )

    @property
    def probabilities(self) -> Callable[[jax.Array], jax.Array]:
        """The function logits [B,C] -> probabilities [B,C] that `probability` stands for."""
        if callable(self.probability):
            return self.probability
        return PROBABILITIES[self.probability]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the images it was made for."""
        return *sides(self.input_size), self.preprocessing.channels

    def endpoints(self, size: Size | None = None) -> dict[str, tuple[int, int, int]]:
        """Every endpoint and its (H,W,K), from input to output.

        Args:
            size: side of the input in pixels, or (height, width); None is the network's own.
        """
        if size is None or sides(size) == self.input_shape[:2]:
            return dict(self.shapes)
        return _shapes(self.apply, self.state, (*sides(size), self.preprocessing.channels))[1]

    def module(self) -> Any:
        """A module of its own that computes the same, in inference mode.

        Raises:
            ValueError: the network was not made of a module.
        """
        apply = self.apply.func if isinstance(self.apply, partial) else self.apply
        if not isinstance(apply, _ModuleApply):
            raise ValueError(f'{self.name} was made of a function: there is no module to copy')
        return apply.thaw(self.state)

    def explaining(
        self, output: Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
    ) -> 'Network':
        """The same network, other outputs of which are explained in place of the logits.

        Args:
            output: (logits [B,C], {endpoint: [B,H,W,K]}) -> outputs [B,...], of each image alone,
                such as `lambda logits, endpoints: endpoints['pw_13'].mean((1, 2))`. They stand,
                flattened, where the logits were. Defined once: programs are compiled anew for every
                other function.

        Raises:
            ValueError: it returns no array [B,...].
        """
        apply = by_identity_unless_hashable(_Explaining(self.apply, output))
        num_classes, _ = _shapes(apply, self.state, self.input_shape)
        facts: dict[str, Any] = {'probability': None, 'own_map': None, 'class_names': None}
        return replace(self, apply=apply, num_classes=num_classes, **facts)

    def layers(self) -> tuple[str, ...]:
        """The main endpoints, from input to output: all layers that are used by default."""
        main = self.main or main_endpoints(self.shapes)
        return tuple(name for name in main if name not in self.unread)


@dataclass(frozen=True)
class Thaw:
    """`thaw(state) -> module` in inference mode; equal for modules that compute the same.

    Programs are compiled for it, not for the values of one module: the same module after more
    training, or another one of the same make, finds them again.

    Attributes:
        graph: the module without its values.
        random: structure of the random number generators, and shape and type of their values.
    """

    graph: nnx.GraphDef
    random: tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]

    def __call__(self, state: Any) -> Any:
        """The module with the values of `state`."""
        structure, facts = self.random
        # Nothing is drawn in inference: any values do, and constants keep programs the same.
        unread = jax.tree.unflatten(structure, [jnp.zeros(*fact) for fact in facts])
        # Variables of its own: those of another trace could not be set.
        return nnx.merge(self.graph, *jax.tree.map(lambda leaf: leaf, (unread, state)))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Once: it takes milliseconds for a large module, and every call of a program asks for it.
        return hash((self.graph, self.random))


@dataclass(frozen=True)
class _ModuleApply:
    """`apply` of a module that shows its endpoints itself."""

    thaw: Thaw

    def __call__(self, state: Any, inputs: jax.Array, perturb: Perturbations | None = None) -> Any:
        logits, endpoints, _ = outputs_of(self.thaw(state), inputs, perturb)
        return logits, endpoints


@dataclass(frozen=True)
class _Explaining:
    """`apply` of a network with other outputs in place of the logits."""

    apply: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    output: Callable[[jax.Array, dict[str, jax.Array]], jax.Array]

    def __call__(self, state: Any, inputs: jax.Array, perturb: Perturbations | None = None) -> Any:
        logits, endpoints = self.apply(state, inputs, perturb)
        return flat(self.output(logits, endpoints), logits.shape[0]), endpoints


@dataclass(frozen=True)
class _HeadsOutputs:
    """`outputs` of a module with heads."""

    thaw: Thaw

    def __call__(self, state: Any, inputs: jax.Array, targets: Mapping[str, jax.Array]) -> Outputs:
        return outputs_of(self.thaw(state), inputs, None, None, targets)


@dataclass(frozen=True)
class _HeadsMap:
    """`function` of the own map of a module with heads."""

    thaw: Thaw

    def __call__(
        self, state: Any, endpoints: Mapping[str, jax.Array], classes: jax.Array
    ) -> jax.Array:
        return self.thaw(state).heads.map(endpoints, classes)


def flat(outputs: Any, batch: int) -> jax.Array:
    """Outputs [B,...] as [B,N].

    Raises:
        ValueError: they are no array of so many images.
    """
    if not isinstance(outputs, jax.Array) or not outputs.ndim or outputs.shape[0] != batch:
        shapes = [list(jnp.shape(x)) for x in jax.tree.leaves(outputs) if hasattr(x, 'shape')]
        raise ValueError(
            f'what is explained is {type(outputs).__name__} with arrays {shapes}, not outputs '
            f'[{batch},...] of {batch} images'
        )
    return outputs.reshape(batch, -1)


def by_identity_unless_hashable(apply: Callable) -> Callable:
    """`apply` itself, or the same function as an object that equals nothing else.

    Programs are keyed by `apply`. What it is made of may be unhashable, such as a list among the
    attributes of somebody's module; then every network has programs of its own.
    """
    try:
        hash(apply)
    except TypeError:
        return partial(apply)
    return apply


def freeze(module: nnx.Module) -> tuple[Thaw, Any]:
    """A module in inference mode, as a function and the state it takes.

    The module itself keeps its mode; the state holds its values of now.

    Args:
        module: any NNX module.

    Returns:
        `thaw(state) -> copy of the module`, and the state: every variable except the random
        number generators, which are dead in inference.
    """
    shared: tuple[Any, ...] = nnx.split(module)
    # The copy has variables of its own: training the module must not reach it.
    frozen = nnx.merge(*jax.tree.map(lambda leaf: leaf, shared))
    frozen.eval()
    graph, *parts = nnx.split(frozen, nnx.RngState, ...)
    random, state = parts
    leaves, structure = jax.tree.flatten(random)
    facts = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return Thaw(graph, (structure, facts)), state


def main_endpoints(names: Iterable[str]) -> tuple[str, ...]:
    """Those whose name is no path below another one."""
    known = tuple(names)
    return tuple(n for n in known if not any(n.startswith(f'{other}/') for other in known))


def sides(size: Size) -> tuple[int, int]:
    """(height, width) of a side of a square, or of (height, width).

    Raises:
        ValueError: it is neither.
    """
    both = np.asarray(size)
    if both.dtype.kind in 'iu' and both.shape in ((), (2,)) and both.min() > 0:
        height, width = map(int, np.broadcast_to(both, 2))
        return height, width
    raise ValueError(f'input_size must be a side in pixels or (height, width), got {size!r}')


def _parameters(state: Any) -> int:
    """How many weights there are; without batch statistics, where these are told apart."""
    if isinstance(state, nnx.State):
        state = nnx.filter_state(state, nnx.Param)
    elif isinstance(state, Mapping):
        state = state.get('params', state)
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(state))


def _shapes(
    apply: Callable, state: Any, shape: tuple[int, int, int]
) -> tuple[int, dict[str, tuple[int, int, int]]]:
    """The number of classes and every endpoint's shape, without computing anything."""
    names: list[str] = []

    def ordered(state: Any, inputs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        logits, endpoints = apply(state, inputs)
        # A dict would come back from the trace sorted by name; the list keeps the order.
        names.extend(endpoints)
        return logits, list(endpoints.values())

    inputs = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    logits, arrays = jax.eval_shape(ordered, state, inputs)
    if logits.ndim != 2:
        raise ValueError(f'the logits are {list(logits.shape)}, not [B,C]')
    return logits.shape[-1], {n: a.shape[1:] for n, a in zip(names, arrays, strict=True)}
