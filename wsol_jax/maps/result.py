"""What `localize` returns: maps by name, and their boxes in the pixels of each image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.maps import NO_CLASS, Key, Maps
from wsol_jax.maps.box_files import BoxRow
from wsol_jax.maps.boxes import boxes_from_map
from wsol_jax.maps.score import score_map, sizes_of

_THREADS = 4
_LINES = 12  # of a repr


def _unflatten(keys: Any, maps: Iterable[Any]) -> Maps:
    return Maps(zip(keys, maps, strict=True))


# A subclass of dict is a leaf to JAX, unless told.
jax.tree_util.register_pytree_node(
    Maps, lambda maps: (tuple(maps.values()), tuple(maps)), _unflatten
)


@dataclass(frozen=True, eq=False, repr=False)
class Localization:
    """What `localize` returns; device arrays.

    Attributes:
        maps: {(method, layer): [B,h,w]} raw maps at feature resolution ([B,K,h,w] if K classes
          were asked for): no ReLU, no min-max, no resizing, unless asked for, or fused over layers,
          methods or views, where the parts are rectified and min-max scaled first. The name of a
          method, or a layer, alone is enough where it has one map: `maps['cam']`.
        logits: [B,C].
        classes: [B] (or [B,K]) the class each map is for; -1 where it is for no single one, and in
          [B,K] at the end of images with fewer classes than others, whose maps are zero there.
        relu: {(method, layer): whether scoring starts with a ReLU}; where none is told it does not.
        sizes: (width, height) of each image as it was given; () where it is not known.
        class_names: of the logits; () where they are not known.
        probability: what the logits [B,C] stand for: the function that makes probabilities of them;
          None where it is not known.
    """

    maps: Maps
    logits: jax.Array
    classes: jax.Array
    relu: Mapping[Key, bool] = field(default_factory=dict)
    sizes: Sequence[tuple[int, int]] = ()
    class_names: Sequence[str] = ()
    probability: Callable[[jax.Array], jax.Array] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'maps', Maps(self.maps))

    @property
    def names(self) -> list:
        """The names of `classes`, one an image, or a list of K each; numbers where none is known.

        It is '' where a map is for no single class.
        """
        return self._named(np.asarray(self.classes).tolist())

    def _named(self, classes: Any) -> Any:
        if isinstance(classes, list):
            return [self._named(part) for part in classes]
        if classes == NO_CLASS:
            return ''
        return self.class_names[classes] if self.class_names else str(classes)

    def boxes(
        self, threshold: float, sizes: Any = None, *, closing: int = 0, key: Any = None
    ) -> dict[Key, list]:
        """Boxes of what each map highlights, in the pixels of each image, as scores count them.

        That is `boxes_from_map` with the ReLU where the method has one.

        Args:
            threshold: fraction of a map's maximum, in [0, 1).
            sizes: of the images, where others are meant than those given to `localize`: one for
              all, or one each, as for `boxes_from_map`.
            closing: see `boxes_from_map`.
            key: (method, layer), or one of them where that is enough, of the maps that are meant;
              None for all.

        Returns:
            {(method, layer): one array [n,4] of x0, y0, x1, y1 for each image, the largest contour
            first; [[0, 0, 0, 0]] where there is none}. With K classes a list of arrays each, one
            for each class of the image.

        Raises:
            ValueError: the threshold is outside [0, 1), or there is not one size for every image.
        """
        known = self._known(sizes)

        def of_map(raw: np.ndarray, size: tuple[int, int], relu: bool) -> np.ndarray:
            return boxes_from_map(raw, size, threshold, closing=closing, relu=relu)

        keys = self.maps if key is None else [self.maps.key(key)]
        return {k: self._each(k, known, of_map) for k in keys}

    def box_rows(
        self,
        threshold: float,
        image_ids: Iterable[Any],
        sizes: Any = None,
        *,
        key: Any = None,
        closing: int = 0,
    ) -> list[BoxRow]:
        """The box of the largest contour of each map, for `write_boxes` and `write_coco`.

        Args:
            threshold: as for `boxes`.
            image_ids: names or numbers of the images, in their order.
            sizes: as for `boxes`.
            key: as for `boxes`.
            closing: see `boxes_from_map`.

        Raises:
            ValueError: as `boxes`, or there is not one id for every image.
        """
        ids = list(image_ids)
        if len(ids) != len(self.classes):
            raise ValueError(f'image_ids must name {len(self.classes)} images, got {len(ids)}')
        found = self.boxes(threshold, sizes, closing=closing, key=key)
        targets = self._targets()
        return [
            BoxRow(name, *k, *target, threshold, tuple(contours[0].tolist()))
            for k, of_images in found.items()
            for name, of_image, boxes in zip(ids, targets, of_images, strict=True)
            for target, contours in zip(
                of_image, boxes if isinstance(boxes, list) else [boxes], strict=True
            )
        ]

    def _targets(self) -> list[list[tuple[int, float | None]]]:
        """(class, its probability) of each map of each image; None where that is not known."""
        classes = np.asarray(self.classes).tolist()
        known = self.probability and np.asarray(self.probability(jnp.asarray(self.logits)))

        def scored(i: int, k: int) -> tuple[int, float | None]:
            return k, None if known is None or k == NO_CLASS else float(known[i, k])

        return [
            [scored(i, k) for k in of_image if k != NO_CLASS]
            if isinstance(of_image, list)
            else [scored(i, of_image)]
            for i, of_image in enumerate(classes)
        ]

    def score_maps(self, key: Any, sizes: Any = None, *, closing: int = 0) -> list:
        """Score maps [height,width] in [0, 1] in the pixels of each image, see `score_map`.

        Args:
            key: (method, layer), or one of them where that is enough.
            sizes: as for `boxes`.
            closing: see `score_map`.

        Returns:
            One for each image; with K classes a list each, one for each class of the image.
        """

        def of_map(raw: np.ndarray, size: tuple[int, int], relu: bool) -> np.ndarray:
            return score_map(raw, size, closing=closing, relu=relu)

        return self._each(self.maps.key(key), self._known(sizes), of_map)

    def rectified(self) -> dict[Key, jax.Array]:
        """The maps, those of methods that end in a ReLU after it."""
        return {k: jax.nn.relu(m) if self.has_relu(k) else m for k, m in self.maps.items()}

    def has_relu(self, key: Key) -> bool:
        """Whether scoring this map starts with a ReLU."""
        return self.relu.get(key, False)

    def _each(self, key: Key, sizes: Sequence[tuple[int, int]], of_map: Any) -> list:
        maps, relu = np.asarray(self.maps[key]), self.has_relu(key)

        def of_image(image: tuple[np.ndarray, np.ndarray, tuple[int, int]]) -> Any:
            raw, classes, size = image
            if raw.ndim == 2:
                return of_map(raw, size, relu)
            return [of_map(m, size, relu) for m in raw[classes != NO_CLASS]]

        with ThreadPoolExecutor(_THREADS) as pool:  # photos take a third of a second each
            return list(pool.map(of_image, zip(maps, np.asarray(self.classes), sizes, strict=True)))

    def _known(self, sizes: Any) -> Sequence[tuple[int, int]]:
        if sizes is None and not self.sizes:
            raise ValueError('the sizes of the images are not known: pass sizes=')
        return self.sizes if sizes is None else sizes_of(sizes, len(self.classes))

    def __repr__(self) -> str:
        classes = self.names if self.class_names else np.asarray(self.classes).tolist()
        shown = f'{classes[:8]}'[:-1] + ', ...]' if len(classes) > 8 else f'{classes}'
        lines = [f'  {key}: {list(np.shape(m))}' for key, m in self.maps.items()]
        if len(lines) > _LINES:
            lines[_LINES - 1 :] = [f'  ... {len(lines) - _LINES + 1} more']
        heads = f'Localization of {len(classes)} image(s), classes {shown}, maps:'
        return '\n'.join((heads, *lines))
