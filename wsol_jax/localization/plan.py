"""What to compute, fixed at compile time and checked against the network."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from inspect import signature
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from wsol_jax.fields import Range, documented, setting, settings_of
from wsol_jax.localization.factors import principal_component
from wsol_jax.localization.method import ALL, HEAD, INPUT, Method, channel_sum
from wsol_jax.localization.methods import of_head, resolve_methods
from wsol_jax.localization.targets import FinerCAM, Score, logit, resolve_score, softmax
from wsol_jax.localization.views import AS_IT_IS, GAINS, View
from wsol_jax.maps import Key
from wsol_jax.maps.fuse import FUSIONS
from wsol_jax.names import shown, unknown_name
from wsol_jax.settings import SEEDS, MapOptions

if TYPE_CHECKING:  # what is exported runs without the networks
    from wsol_jax.models import Network


@documented
@dataclass(frozen=True)
class Options(MapOptions):
    """How maps are made: the options of `localize`, `export` and `make_plan`."""

    rectify: bool = setting(False, 'set negative values of the maps to zero', 'nothing')
    size: tuple[int, int] | None = setting(
        None,
        '(height, width) in pixels that maps are resized to, bilinearly; None leaves them as they '
        'are',
        'nothing',
    )
    normalize: bool = setting(False, 'scale each map to [0, 1], after resizing', 'nothing')
    seed: int = setting(
        0,
        'of the noise and of random maps; every image draws its own, wherever it stands',
        'nothing',
        SEEDS,
    )


@dataclass(frozen=True, kw_only=True)
class MapPlan(Options):
    """What to compute: the options, resolved, and what they are applied to.

    Logits and predicted classes are those of scale 1. Maps of several views are min-max scaled,
    resized to the largest and averaged; see `seeds` for another way.

    Attributes:
        methods: the localization methods; the maps of several in one tuple are fused.
        layers: layer names; 'a+b' is the fusion of the maps at a and b.
        last_layer: the endpoint before pooling, where the methods for that layer only apply.
        main_layers: of the network, for the methods that need them all.
        score: what is explained of a class.
        probability: what the network's logits [B,C] stand for.
        seeds: views are rectified, resized to the largest and averaged as they are, where their
            values mean the same in all of them: those of CAM and of trained heads, probabilities
            among them. Gradients shrink as an input grows: other maps are divided by the maximum
            of each view before.
    """

    methods: tuple[tuple[Method, ...], ...]
    layers: tuple[str, ...]
    last_layer: str
    main_layers: tuple[str, ...]
    score: Score = logit
    probability: Callable[[jax.Array], jax.Array] = jax.nn.softmax
    seeds: bool = False

    @property
    def parts(self) -> dict[Key, tuple[tuple[Method, str], ...]]:
        """The (method, layer) of the raw maps that each map is made of, in order."""
        return {
            ('+'.join(m.name for m in fused), layer): tuple(
                (m, part) for m in fused for part in self._places(m, layer)
            )
            for fused in self.methods
            for layer in self._layers_of(fused)
        }

    def _layers_of(self, fused: tuple[Method, ...]) -> tuple[str, ...]:
        if any(m.where == 'any' for m in fused):
            return self.layers
        return ('+'.join(dict.fromkeys(self._places(m, '')[0] for m in fused)),)

    def _places(self, method: Method, layer: str) -> tuple[str, ...]:
        fixed = {'last': (self.last_layer,), 'all': (ALL,), 'head': (HEAD,), 'input': (INPUT,)}
        return fixed.get(method.where) or tuple(layer.split('+'))

    @property
    def keys(self) -> list[Key]:
        """The (method, layer) of every map, in order."""
        return list(self.parts)

    @property
    def layers_of(self) -> dict[Method, tuple[str, ...]]:
        """The layers, or ALL, at which raw maps of each method are needed."""
        pairs = dict.fromkeys(pair for parts in self.parts.values() for pair in parts)
        return {m: tuple(n for other, n in pairs if other == m) for m, _ in pairs}

    @property
    def relu(self) -> dict[Key, bool]:
        """Whether scoring the map starts with a ReLU; fused maps are beyond it."""
        plain = len(self.views) == 1
        return {
            k: plain and len(parts) == 1 and parts[0][0].relu for k, parts in self.parts.items()
        }

    def of_one_unit(self, key: Key) -> bool:
        """Whether the values of a map mean the same whatever the size of the input is."""
        return all(method.where in ('last', 'head') for method, _ in self.parts[key])

    @property
    def views(self) -> list[View]:
        """The views that are averaged; that of the image as it is comes first, if it is there."""
        mirrors = (False, True) if self.flip or self.aug_smooth else (False,)
        gains = GAINS if self.aug_smooth else (1.0,)
        views = [
            View(scale, mirror, gain, sample)
            for scale in self.scales
            for mirror in mirrors
            for gain in gains
            for sample in range(self.noise + 1)
        ]
        return sorted(views, key=lambda view: view != AS_IT_IS)


def make_plan(
    network: 'Network',
    methods: Sequence[str | Method] = ('dgl',),
    layers: Sequence[str] | None = None,
    **options: Any,
) -> MapPlan:
    """Checks names against the network and fixes what to compute.

    Args:
        network: the classifier.
        methods: names, 'a+b' for the fusion of two methods, or `Method`s; the map of a head that
            the network was trained with goes by the name of that training.
        layers: endpoints of the network; 'a+b' fuses the maps at a and b; None: all main layers.
        **options: see `Options`.

    Raises:
        ValueError: an unknown method, layer, score or fusion, or a number out of range.
        TypeError: an unknown option.
    """
    check_options(make_plan, options)
    asked = _checked(Options(**options))
    score = resolve_score(asked.score)
    if network.num_classes == 1 and (score is softmax or isinstance(score, FinerCAM)):
        raise ValueError(
            f"score={asked.score!r} compares classes and {network.name} has one logit; use 'logit'"
        )
    own = network.own_map
    resolved = resolve_methods(methods, asked.alpha, of_head(own) if own else None)
    _check_distinct(resolved)
    for method in (m for fused in resolved for m in fused):
        _check_has(method, network)
    if asked.eigen_smooth:
        resolved = tuple(tuple(map(_smoothed, fused)) for fused in resolved)
    return MapPlan(
        **vars(replace(asked, score=score)),
        methods=resolved,
        layers=_known_layers(network, layers),
        last_layer=network.last_layer,
        main_layers=network.layers(),
        probability=network.probabilities,
    )


def check_options(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Raises TypeError if a function that takes `Options` is given one too many."""
    further = [field.name for field in fields(Options)]
    for name in options:
        if name not in further:
            own = [name for name in signature(function).parameters if name != 'options']
            raise TypeError(unknown_name(f'argument of {function.__name__}', name, own + further))


def _checked(options: Options) -> Options:
    """The options, hashable.

    Raises:
        ValueError: one of them is wrong.
    """
    scales, size = options.scales, options.size
    if options.fusion not in FUSIONS:
        raise ValueError(unknown_name('fusion', options.fusion, FUSIONS))
    if isinstance(scales, float | int):
        raise ValueError(f'scales must be a sequence such as ({scales},), got the number')
    if not scales:
        raise ValueError(f'scales must be positive factors of the input size, got {scales}')
    for name, known in settings_of(Options).items():
        if known.range:
            _check_numbers(name, getattr(options, name), known.range)
    if size is None:
        return replace(options, scales=tuple(scales))
    if np.shape(size) != (2,) or min(size) < 1:
        raise ValueError(f'size must be (height, width) in pixels, got {size}')
    return replace(options, scales=tuple(scales), size=(int(size[0]), int(size[1])))


def _known_layers(network: 'Network', layers: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(layers, str):
        raise ValueError(f'layers must be a sequence such as ({layers!r},), got the string')
    chosen = tuple(layers) if layers else network.layers()
    known = list(network.endpoints())
    for layer in chosen:
        if not isinstance(layer, str):
            raise ValueError(
                f'layers are names such as {known[-1]!r}, got a {type(layer).__name__}'
            )
        parts = layer.split('+')
        for name in parts:
            if name not in known:
                raise ValueError(unknown_name(f'layer of {network.name}', name, known))
        if len(set(parts)) < len(parts):
            raise ValueError(f'{layer!r} fuses a layer with itself')
    return chosen


@contextmanager
def backward_rules_told(plan: MapPlan) -> Iterator[None]:
    """While a plan is compiled: names the methods that a model with backward rules cannot have.

    JAX finds it out last of all, and names neither.

    Raises:
        ValueError: a method takes forward-mode derivatives of a model with a `jax.custom_vjp`.
    """
    try:
        yield
    except TypeError as error:
        if 'custom_vjp' not in str(error):
            raise
        names = ' and '.join(m.name for fused in plan.methods for m in fused if m.forward_mode)
        raise ValueError(
            f'{names or "a method"} takes forward-mode derivatives, and the model has a '
            'jax.custom_vjp, which has none: write that as a jax.custom_jvp, or ask for others'
        ) from error


def _check_numbers(name: str, value: Any, allowed: Range) -> None:
    """As the setting of that name is checked."""
    default = getattr(Options, name)
    kind: type[Any] = Integral if isinstance(default, int) else Real
    for number in value if isinstance(default, tuple) else (value,):
        if not isinstance(number, kind):
            what = 'whole numbers' if kind is Integral else 'numbers'
            raise ValueError(f'{name} must be {what}, got {shown(number)}')
        if fault := allowed.fault(number):
            raise ValueError(f'{name} must {fault}, got {shown(number)}')


def _check_distinct(methods: tuple[tuple[Method, ...], ...]) -> None:
    # Raw maps go by the names of their methods.
    by_name: dict[str, Method] = {}
    for method in (m for fused in methods for m in fused):
        if by_name.setdefault(method.name, method) != method:
            raise ValueError(f'two different methods are called {method.name!r}; rename one')


def _check_has(method: Method, network: 'Network') -> None:
    """Checks that the network has what the definition of a method needs."""
    if method.where == 'last' and network.last_layer in network.unread:
        raise ValueError(
            f'{method.name} is defined on the layer before global average pooling, and '
            f'{network.name} classifies by its class token: ask for grad_cam instead'
        )
    if method.part and not any(n.endswith(f'/{method.part}') for n in network.shapes):
        raise ValueError(
            f'{method.name} reads the {method.part} of each block, and {network.name} shows none: '
            'it is for vision transformers, such as deit_tiny'
        )


def _smoothed(method: Method) -> Method:
    """With eigen_smooth; what is no sum over channels stays."""
    # Signed, whatever the method: its ReLU is that of a principal component.
    if method.reduce is not channel_sum:
        return method
    return replace(
        method, reduce=_principal, relu=method.relu or method.where not in ('all', 'head')
    )


def _principal(terms: jax.Array) -> jax.Array:
    # A single channel is a map already; centring it would shift it, or turn it upside down.
    return terms[..., 0] if terms.shape[-1] == 1 else principal_component(terms)
