"""Localization maps of any network: the compiled program, and the call for notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.localization.gradients import Apply, Classes, Method, raw_maps
from wsol_jax.localization.maps import FUSIONS, fuse
from wsol_jax.localization.methods import resolve_methods
from wsol_jax.models import Network, Preprocessing
from wsol_jax.names import unknown_name

Predicted = Literal['top1', 'top5']


@dataclass(frozen=True)
class MapPlan:
    """What to compute, fixed at compile time.

    Attributes:
        methods: the localization methods.
        layers: layer names; 'a+b' is the fusion of the maps at a and b.
        last_layer: the endpoint before pooling, where the methods for that layer only apply.
        fusion: how maps are fused over layers: 'mean', 'max' or 'product'.
        scales: factors on the input size; logits and predicted classes are those of scale 1.
          Maps of several scales are min-max scaled, resized to the largest and averaged.
        flip: average with the map of the mirrored image in the same way.
    """

    methods: tuple[Method, ...]
    layers: tuple[str, ...]
    last_layer: str
    fusion: str = 'mean'
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def layers_of(self, method: Method) -> tuple[str, ...]:
        """The layers, fused ones included, that a method is computed at."""
        return (self.last_layer,) if method.last_layer_only else self.layers

    @property
    def pairs(self) -> list[tuple[Method, str]]:
        """(method, layer) of every map, in order."""
        return [(m, layer) for m in self.methods for layer in self.layers_of(m)]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """`pairs` with the methods' names: the keys of the maps."""
        return [(method.name, layer) for method, layer in self.pairs]

    @property
    def relu(self) -> dict[tuple[str, str], bool]:
        """Whether scoring the map starts with a ReLU; fused maps are beyond it."""
        return {(m.name, layer): m.relu and not self.fuses(layer) for m, layer in self.pairs}

    def fuses(self, layer: str) -> bool:
        """Whether the map at this layer is made of several min-max scaled ones."""
        return '+' in layer or self.flip or len(self.scales) > 1


@dataclass(frozen=True)
class Localization:
    """What `localize` returns; device arrays.

    Attributes:
        maps: {(method, layer): [B,h,w]} raw maps at feature resolution ([B,K,h,w] if K classes
          were asked for): no ReLU, no min-max, no resizing, unless fused over layers, scales or
          flips, where the parts are min-max scaled first.
        logits: [B,C].
        classes: [B] (or [B,K]) the class each map is for.
    """

    maps: dict[tuple[str, str], jax.Array]
    logits: jax.Array
    classes: jax.Array


def make_plan(
    network: Network,
    methods: Sequence[str | Method] = ('dgl',),
    layers: Sequence[str] | None = None,
    *,
    alpha: float = 10.0,
    fusion: str = 'mean',
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> MapPlan:
    """Checks names against the network and fixes what to compute; see `MapPlan`.

    Raises:
        ValueError: an unknown method, layer or fusion, or a scale that is not positive.
    """
    if isinstance(layers, str):
        raise ValueError(f'layers must be a sequence such as ({layers!r},), got the string')
    chosen = tuple(layers) if layers else network.layers()
    known = list(network.endpoints())
    for name in [part for layer in chosen for part in layer.split('+')]:
        if name not in known:
            raise ValueError(unknown_name(f'layer of {network.name}', name, known))
    if fusion not in FUSIONS:
        raise ValueError(unknown_name('fusion', fusion, FUSIONS))
    if not scales or min(scales) <= 0:
        raise ValueError(f'scales must be positive factors of the input size, got {scales}')
    resolved = resolve_methods(methods, alpha)
    return MapPlan(resolved, chosen, network.last_layer, fusion, tuple(scales), flip)


@partial(jax.jit, static_argnums=(0, 1, 2, 5))
def compute_maps(
    apply: Apply,
    preprocessing: Preprocessing,
    plan: MapPlan,
    state: Any,
    images: jax.Array,
    predicted: Predicted | None = None,
    classes: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[tuple[str, str], jax.Array], dict[str, jax.Array]]:
    """The one compiled program from images to maps.

    Args:
        apply: the network as a pure function.
        preprocessing: what turns images into its input.
        plan: what to compute.
        state: the network's state.
        images: [B,H,W,3] RGB, uint8 or float in [0, 1].
        predicted: 'top1' or 'top5' to take the classes from the logits, or None.
        classes: [B,K] where `predicted` is None.

    Returns:
        logits [B,C], classes [B,K], maps {(method, layer): [B,K,h,w]} and {layer: [B] bool},
        whether the gradient is zero everywhere on that layer.
    """
    inputs = preprocessing(images)
    target: Classes = partial(_top_classes, how=predicted) if predicted else jnp.asarray(classes)
    mirrors = (False, True) if plan.flip else (False,)
    # Logits and predicted classes are those of the image as it is: that view comes first.
    first, *others = sorted([(s, m) for s in plan.scales for m in mirrors], key=_differs)
    as_is = apply(state, inputs, None)[0] if _differs(first) else None
    if as_is is not None and callable(target):
        target = target(as_is)
    logits, chosen, maps, dead = _view_maps(apply, plan, state, inputs, target, *first)
    logits = logits if as_is is None else as_is
    views = [maps, *(_view_maps(apply, plan, state, inputs, chosen, *v)[2] for v in others)]
    maps = {
        (m.name, layer): _fuse([view[m.name, layer] for view in views], m, 'mean')
        for m, layer in plan.pairs
    }
    return logits, chosen, maps, dead


def _differs(view: tuple[float, bool]) -> bool:
    return view != (1.0, False)


def _view_maps(apply, plan: MapPlan, state, inputs, classes, scale: float, mirror: bool):
    """`raw_maps` of the images scaled and mirrored, mirrored back and fused over layers."""
    height, width = (round(side * scale) for side in inputs.shape[1:3])
    shape = (len(inputs), height, width, inputs.shape[3])
    inputs = inputs if scale == 1 else jax.image.resize(inputs, shape, 'linear')
    inputs = inputs[:, :, ::-1] if mirror else inputs
    layers_of = {
        m: tuple(dict.fromkeys(part for layer in plan.layers_of(m) for part in layer.split('+')))
        for m in plan.methods
    }
    logits, chosen, maps, dead = raw_maps(apply, state, inputs, classes, layers_of)
    maps = {key: m[..., ::-1] if mirror else m for key, m in maps.items()}
    fused = {
        (m.name, layer): _fuse([maps[m.name, part] for part in layer.split('+')], m, plan.fusion)
        for m, layer in plan.pairs
    }
    return logits, chosen, fused, dead


def _fuse(maps: list[jax.Array], method: Method, how: str) -> jax.Array:
    """One map stays raw; several are rectified where the method says so, then fused."""
    if len(maps) == 1:
        return maps[0]
    return fuse([jax.nn.relu(m) if method.relu else m for m in maps], how)


def _top_classes(logits: jax.Array, how: Predicted) -> jax.Array:
    count = min({'top1': 1, 'top5': 5}[how], logits.shape[-1])
    return jax.lax.top_k(logits, count)[1]


def localize(
    network: Network,
    images: np.ndarray | jax.Array,
    methods: Sequence[str | Method] = ('dgl',),
    layers: Sequence[str] | None = None,
    classes: Predicted | int | Sequence[int] | np.ndarray | jax.Array | None = None,
    **options: Any,
) -> Localization:
    """Localization maps of a batch of images, every method and layer from one forward pass.

    Args:
        network: from `load_network`.
        images: [B,H,W,3] RGB of any size the network takes; uint8, or float in [0, 1]. The
          network's own preprocessing is applied.
        methods: names or `Method`s; the names are the keys of `METHODS`.
        layers: endpoints of the network (`network.endpoints()`); 'a+b' fuses the maps at a and b.
          None: all main layers. CAM is always at the last layer.
        classes: what to localize: None or 'top1' for the predicted class, 'top5', one class index,
          or indices [B] or [B,K].
        **options: alpha, fusion, scales, flip, see `make_plan`.

    Returns:
        `Localization` with raw maps, logits and classes.

    Raises:
        ValueError: a wrong name, shape, range or class, or a layer that no class score depends on.
    """
    _check_images(images)
    plan = make_plan(network, methods, layers, **options)
    predicted, indices = _target(classes, len(images), network.num_classes)
    logits, chosen, maps, dead = compute_maps(
        network.apply, network.preprocessing, plan, network.state, images, predicted, indices
    )
    check_gradients(dead)
    if predicted == 'top1' or (indices is not None and np.ndim(np.asarray(classes)) < 2):
        chosen, maps = chosen[:, 0], {k: m[:, 0] for k, m in maps.items()}
    return Localization({key: maps[key] for key in plan.keys}, logits, chosen)


def _check_images(images) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f'images must be [B,H,W,3], got {list(images.shape)}; for one image pass image[None]'
        )
    if images.dtype != np.uint8:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f'float images must be RGB in [0, 1], got [{low:g}, {high:g}]; '
                'pass 0..255 images as uint8, without normalization of your own'
            )


def _target(classes, batch: int, num_classes: int):
    """(predicted, [B,K] indices): one of them None."""
    if classes is None or isinstance(classes, str):
        if classes not in (None, 'top1', 'top5'):
            raise ValueError(f"classes must be 'top1', 'top5' or indices, got {classes!r}")
        return classes or 'top1', None
    indices = np.asarray(classes)
    if indices.ndim == 0:
        indices = np.full(batch, indices)
    if indices.dtype.kind not in 'iu' or indices.ndim > 2 or len(indices) != batch:
        raise ValueError(
            f'classes must be integers of shape [{batch}] or [{batch},K], '
            f'got {indices.dtype} {list(indices.shape)}'
        )
    if indices.min() < 0 or indices.max() >= num_classes:
        wrong = indices[(indices < 0) | (indices >= num_classes)][0]
        raise ValueError(f'class {wrong} is outside 0..{num_classes - 1}')
    return None, indices.reshape(batch, -1).astype(np.int32)


def check_gradients(dead: dict[str, jax.Array], valid: np.ndarray | None = None) -> None:
    """Raises if the gradient is zero everywhere on a layer, for every (valid) image.

    Args:
        dead: {layer: [B] bool} from `compute_maps`.
        valid: [B] bool, the images that count; None for all.

    Raises:
        ValueError: naming the layer.
    """
    for layer, flags in dead.items():
        counted = np.asarray(flags) if valid is None else np.asarray(flags)[valid]
        if counted.size and counted.all():
            raise ValueError(
                f'the gradient at layer {layer!r} is zero everywhere: the class score does not '
                'depend on it; choose an earlier or a later layer'
            )
