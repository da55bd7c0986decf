"""Localization maps of any network: the compiled program, and the call for notebooks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.data.images import batches, listed, resized_shape
from wsol_jax.localization.gradients import UNEVEN, ZERO, raw_maps
from wsol_jax.localization.method import Apply, Classes, Method
from wsol_jax.localization.plan import MapPlan, backward_rules_told, check_options, make_plan
from wsol_jax.localization.targets import FreeScore
from wsol_jax.localization.views import AS_IT_IS, View, image_keys, mirrored, scaled, seen
from wsol_jax.maps import NO_CLASS, Key, Maps
from wsol_jax.maps.fuse import fuse, mean_of, min_max, of_maximum, resize
from wsol_jax.maps.result import Localization
from wsol_jax.names import shown
from wsol_jax.parallel import BATCH, in_batches

if TYPE_CHECKING:  # what is exported runs without the networks
    from wsol_jax.models import Network, Preprocessing


@partial(jax.jit, static_argnums=(0, 1, 2, 5))
def compute_maps(
    apply: Apply,
    preprocessing: 'Preprocessing',
    plan: MapPlan,
    state: Any,
    images: jax.Array,
    top: int = 0,
    classes: jax.Array | None = None,
    arrays: Sequence[Any] = (),
) -> tuple[jax.Array, jax.Array, dict[Key, jax.Array], dict[str, jax.Array]]:
    """The one compiled program from images to maps.

    Args:
        apply: the network as a pure function.
        preprocessing: what turns images into its input.
        plan: what to compute.
        state: the network's state.
        images: [B,H,W,3] RGB, uint8 or float in [0, 1].
        top: explain this many classes, those with the highest logits; 0 for `classes`.
        classes: [B,K], or bool [B,C] for the sum of several, where `top` is 0.
        arrays: of a `FreeScore` that was split.

    Returns:
        logits [B,C], classes [B,K] (NO_CLASS for bool ones), maps {(method, layer): [B,K,h,w]}
        and {layer: [B]}, ZERO where the gradient is zero everywhere on that layer, UNEVEN where it
        should be the same at all positions and is not, else 0; only for layers with gradients.
    """
    if isinstance(plan.score, FreeScore):
        plan = replace(plan, score=plan.score.whole(arrays))
    inputs, keys = preprocessing(images), image_keys(jnp.asarray(images), plan.seed)
    views = plan.views
    # Logits and predicted classes are those of the image as it is: that view comes first.
    as_is = None if views[0] == AS_IT_IS else apply(state, inputs, None)[0]
    target: Classes = partial(_top_classes, count=top) if top else jnp.asarray(classes)
    if as_is is not None and callable(target):
        target = target(as_is)
    logits, chosen, first, faults = _view_maps(apply, plan, state, inputs, keys, target, views[0])
    others = _other_views(apply, plan, state, inputs, keys, chosen, views[1:])
    maps = {key: _finish(plan, key, [m[key] for m in (first, *others)]) for key in plan.keys}
    if chosen.dtype == bool:
        chosen = jnp.full((chosen.shape[0], 1), NO_CLASS)
    return logits if as_is is None else as_is, chosen, maps, faults


def _top_classes(logits: jax.Array, count: int) -> jax.Array:
    return jax.lax.top_k(logits, count)[1]


def _other_views(
    apply: Apply,
    plan: MapPlan,
    state: Any,
    inputs: jax.Array,
    keys: jax.Array,
    classes: jax.Array,
    views: Sequence[View],
) -> list[dict[Key, jax.Array]]:
    """Maps of each view; those of one scale go through one copy of the network in the program."""

    def one(view: View) -> dict[Key, jax.Array]:
        return _view_maps(apply, plan, state, inputs, keys, classes, view)[2]

    found: list[dict[Key, jax.Array]] = []
    for scale in dict.fromkeys(view.scale for view in views):
        group = [view for view in views if view.scale == scale]
        if len(group) == 1:
            found.append(one(group[0]))
            continue
        # What all views of the group share stays out of the loop: no noise is drawn for nothing.
        facts = {n: [getattr(v, n) for v in group] for n in ('mirror', 'gain', 'sample')}
        varied = {n: jnp.array(values) for n, values in facts.items() if len(set(values)) > 1}
        stacked = jax.lax.map(lambda facts, shared=group[0]: one(replace(shared, **facts)), varied)
        found += [jax.tree.map(lambda m, i=i: m[i], stacked) for i in range(len(group))]
    return found


def _view_maps(
    apply: Apply,
    plan: MapPlan,
    state: Any,
    inputs: jax.Array,
    keys: jax.Array,
    classes: Classes,
    view: View,
) -> tuple[jax.Array, jax.Array, dict[Key, jax.Array], dict[str, jax.Array]]:
    """Logits, classes, maps of one view, turned back and fused over layers and methods, faults."""
    inputs = seen(scaled(inputs, view.scale), view, plan.sigma, keys)
    logits, chosen, raw, faults = raw_maps(
        apply,
        state,
        inputs,
        classes,
        plan.layers_of,
        keys,
        score=plan.score,
        probability=plan.probability,
        main_layers=plan.main_layers,
        chunk_size=plan.chunk_size,
    )
    maps = {key: mirrored(m, view.mirror, axis=-1) for key, m in raw.items()}
    fused = {
        key: _fuse(plan, [(maps[m.name, part], m) for m, part in parts])
        for key, parts in plan.parts.items()
    }
    return logits, chosen, fused, faults


def _fuse(plan: MapPlan, maps: Sequence[tuple[jax.Array, Method]]) -> jax.Array:
    """One map alone stays raw; others are rectified where their methods say so, then fused."""
    if len(plan.views) == 1 and len(maps) == 1:
        return maps[0][0]
    every = plan.rectify or plan.seeds
    rectified = [jax.nn.relu(m) if method.relu or every else m for m, method in maps]
    return fuse(rectified, plan.fusion) if len(maps) > 1 else rectified[0]


def _finish(plan: MapPlan, key: Key, views: list[jax.Array]) -> jax.Array:
    maps = _joined(plan, key, views) if len(views) > 1 else views[0]
    maps = jax.nn.relu(maps) if plan.rectify else maps
    maps = resize(maps, plan.size) if plan.size else maps
    return min_max(maps) if plan.normalize else maps


def _joined(plan: MapPlan, key: Key, views: list[jax.Array]) -> jax.Array:
    if not plan.seeds:
        return fuse(views, 'mean')
    return mean_of(views if plan.of_one_unit(key) else list(map(of_maximum, views)))


def localize(
    network: 'Network',
    images: Any,
    methods: Sequence[str | Method] = ('dgl',),
    layers: Sequence[str] | None = None,
    classes: str | int | Sequence[Any] | np.ndarray | jax.Array | Callable | None = None,
    *,
    resize: bool | int | tuple[int, int] = True,
    batch_size: int = BATCH,
    **options: Any,
) -> Localization:
    """Localization maps of images; gradient methods from one forward pass.

    Args:
        network: from `load_network`, or a model of yours by `from_nnx` or `from_linen`.
        images: RGB images of any sizes: a list of files, PIL images or arrays [H,W,3], one such
          image, or an array [B,H,W,3]; uint8, or float in [0, 1]. Files and PIL images are turned
          as their EXIF orientation says. The network's own preprocessing is applied.
        methods: names or `Method`s; the names are the keys of `METHODS`; 'a+b' fuses two methods.
        layers: endpoints of the network (`network.endpoints()`); 'a+b' fuses the maps at a and b.
          None: all main layers. CAM is always at the last layer; the layer of a method that makes
          one map of all main layers is called 'all', that of a trained head 'head', that of one at
          the input 'input'.
        classes: what to localize: None or 'top1' for the predicted class, 'top5' or any other
          number, one class index, indices [B] or [B,K], a list of indices for every image, each as
          long as it needs (K is that of the longest), bool [B,C] for the sum of the scores of
          several classes, or a function logits [C] -> score (define it once: the program is
          compiled anew for every other function; arrays that it needs go with it as
          `jax.tree_util.Partial(function, array)`, and may change).
        resize: images become as large as the network's input, as in the command, for the class
          changes with the size; or side or (height, width) in pixels; False: they stay as they
          are, all of one size.
        batch_size: images that are computed at once. A list of two or more is filled up to it, so
          that one program does for lists of any length: lower it where images are few and methods
          slow. An array of the right size is computed in one piece.
        **options: score, alpha, scales, flip, ...: see `wsol_jax.localization.plan.Options`.

    Returns:
        `Localization` with raw maps, logits and classes, and boxes in the pixels of each image.

    Raises:
        ValueError: a wrong name, shape, range or class, an image that cannot be read, or a layer
            that no class score depends on.
    """
    check_options(localize, options)
    classes = given_classes(classes)
    plan = plan_of_call(network, methods, layers, classes, options)
    channels, shape = network.input_shape[2], resized_shape(network.input_shape[:2], resize)
    given = listed(images, channels)
    each = batches(given, shape, batch_size, channels)
    result, faults = run_plan(network, plan, classes, each, len(given))
    check_gradients(faults)
    return result


def plan_of_call(
    network: 'Network',
    methods: Sequence[str | Method],
    layers: Sequence[str] | None,
    classes: Any,
    options: dict[str, Any],
) -> MapPlan:
    """What is to be computed of images, of the arguments of `localize`.

    Raises:
        ValueError: see `make_plan`; or a trained head is asked for what is no class.
    """
    check_network(network)
    plan = make_plan(network, methods, layers, **options)
    if not callable(classes):
        return plan
    if own := [m.name for fused in plan.methods for m in fused if m.where == 'head']:
        raise ValueError(f'{own[0]} makes maps of classes: give indices, not a function')
    return replace(plan, score=FreeScore.split(classes)[0])


def run_plan(
    network: 'Network', plan: MapPlan, classes: Any, each: Iterable[tuple[Any, list]], count: int
) -> tuple[Localization, dict[str, jax.Array]]:
    """Computes what is planned, without waiting for it.

    Args:
        network: the classifier.
        plan: from `plan_of_call`.
        classes: as for `localize`, from `given_classes`.
        each: batches of `wsol_jax.data.images`.
        count: how many images they hold.

    Returns:
        The result, and what is wrong with the gradients, for `check_gradients`.

    Raises:
        ValueError: wrong classes, or an image that cannot be read.
    """
    top, indices = _target(classes, count, network.num_classes)
    arrays = FreeScore.split(classes)[1] if callable(classes) else []

    def program(images: Any, indices: np.ndarray | None) -> tuple:
        arguments = (network.apply, network.preprocessing, plan, network.state)
        with backward_rules_told(plan):
            return compute_maps(*arguments, images, top, indices, arrays)

    asked = None if indices is None else filled_up(indices)
    (logits, chosen, maps, faults), sizes = in_batches(program, each, asked)
    chosen, maps = emptied(indices, chosen, maps)
    if callable(classes):
        chosen = jnp.full_like(chosen, NO_CLASS)
    if is_single(classes):
        chosen, maps = chosen[:, 0], {k: m[:, 0] for k, m in maps.items()}
    maps = Maps((key, maps[key]) for key in plan.keys)
    names, probability = network.class_names or (), network.probabilities
    return Localization(maps, logits, chosen, plan.relu, sizes, names, probability), faults


def check_network(network: Any) -> None:
    """Raises ValueError for what is no network, such as its file or a bare model."""
    if not hasattr(network, 'apply') or not hasattr(network, 'preprocessing'):
        raise ValueError(
            'network must come from load_network, from_nnx, from_linen or from_function, '
            f'got a {type(network).__name__}'
        )


def is_single(classes: Any) -> bool:
    """Whether one target an image was asked for, so that its axis is left out."""
    if classes is None or isinstance(classes, str):
        return classes in (None, 'top1')
    if callable(classes):
        return True
    return not _is_ragged(classes) and (np.ndim(classes) < 2 or np.asarray(classes).dtype == bool)


def _target(classes: Any, batch: int, num_classes: int) -> tuple[int, np.ndarray | None]:
    """(how many of the highest logits, or 0; the classes for `compute_maps` where it is 0)."""
    if callable(classes):
        return 0, np.zeros((batch, 1), np.int32)
    if classes is None or isinstance(classes, str):
        return min(top_count(classes or 'top1'), num_classes), None
    if not _is_ragged(classes) and np.asarray(classes).dtype == bool:
        return 0, _several(np.asarray(classes), (batch, num_classes))
    return 0, class_indices(classes, batch, num_classes)


def class_indices(classes: Any, batch: int, num_classes: int) -> np.ndarray:
    """Given classes, one for all images, [B], [B,K] or a list for each, as int32 [B,K].

    Images with fewer classes than others have NO_CLASS in the end.

    Raises:
        ValueError: another shape or type, or a class that there is not.
    """
    ragged = _is_ragged(classes)
    indices = _padded(classes) if ragged else np.asarray(classes)
    if indices.ndim == 0:
        indices = np.full(batch, indices)
    shaped = indices.ndim <= 2 and len(indices) == batch and indices.size
    if indices.dtype.kind not in 'iu' or not shaped:
        raise ValueError(
            f'classes must be integers of shape [{batch}] or [{batch},K], '
            f'got {indices.dtype} {list(indices.shape)}'
            + ('; a network knows classes by number' if indices.dtype.kind in 'OUS' else '')
        )
    outside = (indices >= num_classes) | (indices < (NO_CLASS if ragged else 0))
    if outside.any():
        raise ValueError(f'class {indices[outside][0]} is outside 0..{num_classes - 1}')
    return indices.reshape(batch, -1).astype(np.int32)


def given_classes(classes: Any) -> Any:
    """Classes as `class_indices` takes them: lists for iterators and for arrays of objects."""
    if isinstance(classes, np.ndarray) and classes.dtype == object:
        return classes.tolist()
    return list(classes) if isinstance(classes, Iterator) else classes


def _is_ragged(classes: Any) -> bool:
    """Whether some images have more classes than others."""
    return isinstance(classes, list | tuple) and _array(classes) is None


def _array(values: Any) -> np.ndarray | None:
    """None of what is no array: its parts differ in length."""
    try:
        return np.asarray(values)
    except ValueError:
        return None


def _padded(classes: Sequence[Any]) -> np.ndarray:
    rows: list[np.ndarray] = []
    for i, some in enumerate(classes):
        row = None if (array := _array(some)) is None else np.atleast_1d(array)
        whole = row is not None and row.ndim == 1 and row.dtype.kind in 'iu'
        if row is None or not (whole and row.size and row.min() >= 0):
            raise ValueError(f'classes[{i}] must be one class index or several, got {shown(some)}')
        rows.append(row)
    padded = np.full((len(rows), max(map(len, rows))), NO_CLASS)
    for row, place in zip(rows, padded, strict=True):
        place[: len(row)] = row
    return padded


def filled_up(classes: np.ndarray) -> np.ndarray:
    """Classes [B,K] for `compute_maps`: the first one of an image in place of NO_CLASS.

    It is computed twice then, which changes nothing of what the others give.
    """
    return np.where(classes == NO_CLASS, classes[:, :1], classes)


def emptied(classes: np.ndarray | None, chosen: Any, maps: Any) -> tuple[Any, Any]:
    """What `compute_maps` made of `filled_up` classes, with nothing where there is no class.

    Args:
        classes: [B,K], with NO_CLASS; or those that have none.
        chosen: [B,K], what the maps are for.
        maps: any arrays [B,K,h,w].

    Returns:
        `chosen` with NO_CLASS, and the maps with zeros.
    """
    if classes is None or not (none := classes == NO_CLASS).any():
        return chosen, maps
    maps = jax.tree.map(lambda m: jnp.where(none[..., None, None], 0, m), maps)
    return jnp.where(none, NO_CLASS, chosen), maps


def _several(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if labels.shape != shape or not labels.any(axis=1).all():
        raise ValueError(
            f'bool classes must have shape {list(shape)} and one class set for every image, '
            f'got {list(labels.shape)}'
        )
    return labels


def top_count(name: str) -> int:
    """5 of 'top5'.

    Raises:
        ValueError: the name is of another form.
    """
    count = name.removeprefix('top')
    if not (name.startswith('top') and count.isdecimal() and int(count)):
        number = name.strip().isdecimal()
        hint = f'pass classes={int(name)}' if number else 'a network knows classes by number'
        raise ValueError(f"classes must be 'top1', 'top5' or indices, got {name!r}; {hint}")
    return int(count)


def check_gradients(faults: dict[str, jax.Array], valid: np.ndarray | None = None) -> None:
    """Raises if a layer's gradient is zero everywhere, or uneven under CAM, for every valid image.

    Args:
        faults: {layer: [B]} from `compute_maps`: 0, ZERO or UNEVEN.
        valid: [B] bool, the images that count; None for all.

    Raises:
        ValueError: naming the layer.
    """
    for layer, flags in faults.items():
        counted = np.asarray(flags) if valid is None else np.asarray(flags)[valid]
        if counted.size and (counted == UNEVEN).all():
            raise ValueError(
                f'cam is defined on the layer before global average pooling and a linear layer, '
                f'and {layer!r} is not: name another last_layer, or ask for grad_cam'
            )
        if counted.size and (counted == ZERO).all():
            raise ValueError(
                f'the gradient at layer {layer!r} is zero everywhere: the class score does not '
                'depend on it; choose an earlier or a later layer'
            )
