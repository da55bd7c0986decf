"""What to compute, fixed at compile time and checked against the network."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from wsol_jax.limits import range_of
from wsol_jax.localization.factors import principal_component
from wsol_jax.localization.method import ALL, Method, channel_sum
from wsol_jax.localization.methods import resolve_methods
from wsol_jax.localization.targets import FinerCAM, Score, logit, resolve_score, softmax
from wsol_jax.localization.views import AS_IT_IS, GAINS, View
from wsol_jax.maps import Key
from wsol_jax.maps.fuse import FUSIONS
from wsol_jax.names import shown, unknown_name

if TYPE_CHECKING:  # what is exported runs without the networks
    from wsol_jax.models import Network


@dataclass(frozen=True)
class MapPlan:
    """What to compute.

    Attributes:
        methods: the localization methods; the maps of several in one tuple are fused.
        layers: layer names; 'a+b' is the fusion of the maps at a and b.
        last_layer: the endpoint before pooling, where the methods for that layer only apply.
        main_layers: of the network, for the methods that need them all.
        score: what is explained of a class.
        fusion: how maps are fused over layers and methods, see `FUSIONS`.
        scales: factors on the input size; logits and predicted classes are those of scale 1.
          Maps of several scales are min-max scaled, resized to the largest and averaged.
        flip: average with the map of the mirrored image in the same way.
        gains: average over these factors on the preprocessed input, too.
        noise: average over the image and this many noisy ones, too.
        sigma: of that noise, see `views.noisy`.
        chunk_size: copies of a batch that methods with passes of their own run at once.
        rectify: set negative values of the maps to zero.
        size: (height, width) that maps are resized to, bilinearly; None leaves them as they are.
        normalize: scale each map to [0, 1], after resizing.
        seed: of the noise and of random maps; every image draws its own, wherever it stands.
        probability: what the network's logits [B,C] stand for.
    """

    methods: tuple[tuple[Method, ...], ...]
    layers: tuple[str, ...]
    last_layer: str
    main_layers: tuple[str, ...]
    score: Score = logit
    fusion: str = 'mean'
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    gains: tuple[float, ...] = (1.0,)
    noise: int = 0
    sigma: float = 0.3
    chunk_size: int = 16
    rectify: bool = False
    size: tuple[int, int] | None = None
    normalize: bool = False
    seed: int = 0
    probability: Callable[[jax.Array], jax.Array] = jax.nn.softmax

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
        fixed = {'last': (self.last_layer,), 'all': (ALL,)}
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

    @property
    def views(self) -> list[View]:
        """The views that are averaged; that of the image as it is comes first, if it is there."""
        mirrors = (False, True) if self.flip else (False,)
        views = [
            View(scale, mirror, gain, sample)
            for scale in self.scales
            for mirror in mirrors
            for gain in self.gains
            for sample in range(self.noise + 1)
        ]
        return sorted(views, key=lambda view: view != AS_IT_IS)


def make_plan(
    network: 'Network',
    methods: Sequence[str | Method] = ('dgl',),
    layers: Sequence[str] | None = None,
    *,
    score: str | Score = 'logit',
    alpha: float = 10.0,
    fusion: str = 'mean',
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    noise: int = 0,
    sigma: float = 0.3,
    chunk_size: int = 16,
    rectify: bool = False,
    size: tuple[int, int] | None = None,
    normalize: bool = False,
    seed: int = 0,
) -> MapPlan:
    """Checks names against the network and fixes what to compute.

    Args:
        network: the classifier.
        methods: names, 'a+b' for the fusion of two methods, or `Method`s.
        layers: endpoints of the network; 'a+b' fuses the maps at a and b; None: all main layers.
        score: 'logit', 'softmax', 'finer_cam', or a function (logits [C], class) -> scalar.
        alpha: weight of the class in DGL's loss gradient.
        fusion: over layers and methods: 'mean', 'max', 'product' or 'layer_cam'.
        scales: factors on the input size, averaged.
        flip: average with the mirrored image.
        aug_smooth: average over flip and brighter and darker inputs (factors 0.9, 1, 1.1).
        eigen_smooth: the first principal component of a map's terms instead of their sum.
        noise: average over the image and this many noisy ones (SmoothGrad).
        sigma: of the noise, in units of the standard deviation of each input.
        chunk_size: copies of the batch at once in Score-, SS-, IS- and Ablation-CAM.
        rectify: set negative values of the maps to zero.
        size: (height, width) to resize the maps to.
        normalize: scale each map to [0, 1].
        seed: of the noise and of random maps.

    Raises:
        ValueError: an unknown method, layer, score or fusion, or a number out of range.
    """
    if isinstance(layers, str):
        raise ValueError(f'layers must be a sequence such as ({layers!r},), got the string')
    chosen = tuple(layers) if layers else network.layers()
    known = list(network.endpoints())
    for layer in chosen:
        if not isinstance(layer, str):
            raise ValueError(
                f'layers are names such as {known[-1]!r}, got a {type(layer).__name__}'
            )
    for name in [part for layer in chosen for part in layer.split('+')]:
        if name not in known:
            raise ValueError(unknown_name(f'layer of {network.name}', name, known))
    for layer in chosen:
        if len(set(layer.split('+'))) < len(layer.split('+')):
            raise ValueError(f'{layer!r} fuses a layer with itself')
    if fusion not in FUSIONS:
        raise ValueError(unknown_name('fusion', fusion, FUSIONS))
    if isinstance(scales, float | int):
        raise ValueError(f'scales must be a sequence such as ({scales},), got the number')
    if not scales:
        raise ValueError(f'scales must be positive factors of the input size, got {scales}')
    numbers = {'scales': scales, 'noise': (noise,), 'sigma': (sigma,), 'chunk_size': (chunk_size,)}
    for name, values in (numbers | {'alpha': (alpha,)}).items():
        _check_numbers(name, values)
    if size is not None and (np.shape(size) != (2,) or min(size) < 1):
        raise ValueError(f'size must be (height, width) in pixels, got {size}')
    explained = resolve_score(score)
    if network.num_classes == 1 and (explained is softmax or isinstance(explained, FinerCAM)):
        raise ValueError(
            f"score={score!r} compares classes and {network.name} has one logit; use 'logit'"
        )
    resolved = resolve_methods(methods, alpha)
    _check_distinct(resolved)
    if eigen_smooth:
        resolved = tuple(tuple(map(_smoothed, fused)) for fused in resolved)
    return MapPlan(
        resolved,
        chosen,
        network.last_layer,
        network.layers(),
        explained,
        fusion,
        tuple(scales),
        flip or aug_smooth,
        GAINS if aug_smooth else (1.0,),
        noise,
        sigma,
        chunk_size,
        rectify,
        None if size is None else (int(size[0]), int(size[1])),
        normalize,
        seed,
        network.probabilities,
    )


def check_options(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Raises TypeError if a function that passes options on to `make_plan` has one too many."""
    further = [*(make_plan.__kwdefaults__ or {})]
    for name in options:
        if name not in further:
            own = [name for name in signature(function).parameters if name != 'options']
            raise TypeError(unknown_name(f'argument of {function.__name__}', name, own + further))


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


def _check_numbers(name: str, values: Sequence[Any]) -> None:
    """As the setting of that name is checked."""
    kind = Integral if name in ('noise', 'chunk_size') else Real
    for value in values:
        if not isinstance(value, kind):
            what = 'whole numbers' if kind is Integral else 'numbers'
            raise ValueError(f'{name} must be {what}, got {shown(value)}')
    for value in values:
        if fault := range_of(f'localize.{name}').fault(value):
            raise ValueError(f'{name} must {fault}, got {shown(value)}')


def _check_distinct(methods: tuple[tuple[Method, ...], ...]) -> None:
    # Raw maps go by the names of their methods.
    by_name: dict[str, Method] = {}
    for method in (m for fused in methods for m in fused):
        if by_name.setdefault(method.name, method) != method:
            raise ValueError(f'two different methods are called {method.name!r}; rename one')


def _smoothed(method: Method) -> Method:
    """With eigen_smooth; what is no sum over channels stays."""
    # Signed, whatever the method: its ReLU is that of a principal component.
    if method.reduce is not channel_sum:
        return method
    return replace(method, reduce=_principal, relu=method.relu or method.where != 'all')


def _principal(terms: jax.Array) -> jax.Array:
    # A single channel is a map already; centring it would shift it, or turn it upside down.
    return terms[..., 0] if terms.shape[-1] == 1 else principal_component(terms)
