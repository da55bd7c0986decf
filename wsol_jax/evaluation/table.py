"""The scores of each image: one table, which every figure of a split follows from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from wsol_jax.evaluation.box_metrics import IOUS, RIGHT, defined_for
from wsol_jax.evaluation.curves import Curves
from wsol_jax.evaluation.protocols import protocol, protocol_scores
from wsol_jax.maps import Key

_PER_THRESHOLD = ('boxes', 'overlap', 'anywhere', 'mask_overlap')


@dataclass(frozen=True)
class Table:
    """Scores of n images and one (method, layer), whose K maps an image are cut at T thresholds.

    Tables of other images join, see `joined`. Boxes are on the canvas.

    Attributes:
        thresholds: [T].
        boxes: int [n,K,T,4] of the largest contour of each map.
        overlap: [n,K,T] best IoU of that box with a true one; NaN without true boxes.
        anywhere: [n,T] best IoU of any contour's box of the first map; likewise.
        mask_overlap: [n,K,T] IoU of the true mask and {score >= threshold}, NaN without foreground;
            [n,K,0] where no image of the split has a mask.
        foreground: int [n,B] histogram of the first map's scores, see `histograms`; [n,0] where no
            image of the split has a mask.
        background: likewise.
        boxed: bool [n], the image has true boxes.
        masked: bool [n], it has a mask.
        size: [n] share of the canvas that the largest true box, or the mask, takes; NaN without.
        blank: bool [n], the first map is constant or has a NaN.
        label: int [n] the class of the object; -1 where it is not known.
        first_right: bool [n], the first map is of that class, and it is ranked first.
        column: int [n] which map is of that class if it is among the first five; -1 if none.
        protocols: bool [n,P,3] what each older protocol takes for right: `GTKnownLoc`, `Top1Loc`
            and `Top5Loc`; False without true boxes.
    """

    thresholds: np.ndarray
    boxes: np.ndarray
    overlap: np.ndarray
    anywhere: np.ndarray
    mask_overlap: np.ndarray
    foreground: np.ndarray
    background: np.ndarray
    boxed: np.ndarray
    masked: np.ndarray
    size: np.ndarray
    blank: np.ndarray
    label: np.ndarray
    first_right: np.ndarray
    column: np.ndarray
    protocols: np.ndarray

    @classmethod
    def empty(
        cls, images: int, maps: int, thresholds: np.ndarray, bins: int = 0, protocols: int = 0
    ) -> 'Table':
        """A table to be filled.

        Args:
            images: n.
            maps: K.
            thresholds: [T].
            bins: B, of the histograms; 0 where no image of the split has a mask.
            protocols: P.
        """
        cuts = len(thresholds)
        return cls(
            thresholds,
            boxes=np.zeros((images, maps, cuts, 4), np.int16),
            overlap=np.full((images, maps, cuts), np.nan),
            anywhere=np.full((images, cuts), np.nan),
            mask_overlap=np.full((images, maps, cuts if bins else 0), np.nan),
            foreground=np.zeros((images, bins), np.int32),
            background=np.zeros((images, bins), np.int32),
            boxed=np.zeros(images, bool),
            masked=np.zeros(images, bool),
            size=np.full(images, np.nan),
            blank=np.zeros(images, bool),
            label=np.full(images, -1),
            first_right=np.zeros(images, bool),
            column=np.full(images, -1),
            protocols=np.zeros((images, protocols, 3), bool),
        )

    @classmethod
    def joined(cls, tables: Sequence['Table']) -> 'Table':
        """That of all images of some tables, at least one, with the same thresholds and maps."""
        names = [field.name for field in fields(cls)[1:]]
        columns = {name: np.concatenate([getattr(t, name) for t in tables]) for name in names}
        return cls(tables[0].thresholds, **columns)

    def __len__(self) -> int:
        """How many images it has."""
        return len(self.boxed)

    def at(self, thresholds: Sequence[float] | np.ndarray) -> 'Table':
        """The same at some of its thresholds alone."""
        where = [int(np.flatnonzero(self.thresholds == t)[0]) for t in thresholds]
        columns = {name: getattr(self, name) for name in _PER_THRESHOLD}
        axes = {name: 2 if c.ndim > 2 else 1 for name, c in columns.items()}
        some = {n: c.take(where, axes[n]) if c.shape[axes[n]] else c for n, c in columns.items()}
        return replace(self, thresholds=np.asarray(thresholds, float), **some)

    def curves(self) -> Curves:
        """What the images add up to at every threshold; its histograms have T + 2 bins."""
        levels = np.array(IOUS)[:, None, None]
        bins = np.zeros((2, len(self.thresholds) + 2), int)
        ious = np.zeros((len(self), len(self.thresholds)))
        if self.foreground.size:
            bins[:] = self.foreground.sum(axis=0), self.background.sum(axis=0)
            ious[:] = np.nan_to_num(self.mask_overlap[:, 0])
        return Curves(
            self.thresholds,
            largest=(self.overlap[:, 0] >= levels).sum(axis=1),
            anywhere=(self.anywhere >= levels).sum(axis=1),
            foreground=bins[0],
            background=bins[1],
            # One image after another: a sum that does not depend on how many there are at a time.
            image_ious=sum(ious, start=np.zeros(len(self.thresholds))),
            images=int((self.boxed | self.masked).sum()),
            boxed=int(self.boxed.sum()),
            with_foreground=int(self.foreground.any(axis=1).sum()),
            blank=int(self.blank.sum()),
        )

    def scores(self, target: str) -> dict[str, np.ndarray]:
        """Percentages [n] of each image by name, at the first threshold; NaN where it has none.

        Args:
            target: the classes that the maps are for, as in `LocalizeConfig.classes`; '' where
                class scores mean nothing.

        Returns:
            Those that some image has.
        """
        overlap, column = self.overlap[:, :, 0], self.column
        of_label = np.where(column < 0, 0, overlap[np.arange(len(self)), column])
        found = {
            'GTKnownLoc': overlap[:, 0],
            'Top1Loc': overlap[:, 0] * self.first_right,
            'Top5Loc': of_label,
        }
        scores = {'mIoU': self.mask_overlap[:, 0, 0]} if self.mask_overlap.size else {}
        for name in defined_for(target):
            scores[name] = np.where(self.boxed, found[name] >= RIGHT, np.nan)
        return {name: 100 * values for name, values in scores.items() if not nowhere(values)}

    def means(self, target: str) -> dict[str, float]:
        """`scores`, averaged over the images that count."""
        return {name: float(np.nanmean(values)) for name, values in self.scores(target).items()}

    def protocol_scores(self, names: Sequence[str], target: str) -> dict[str, dict[str, float]]:
        """Percentages of older protocols, {protocol: {score: percentage}}; those that are defined.

        Args:
            names: of the P protocols of the table.
            target: the classes that the maps are for.
        """
        label, right = self.label[self.boxed], self.protocols[self.boxed]
        found = {
            n: protocol_scores(protocol(n), right[:, i], label, target) for i, n in enumerate(names)
        }
        return {name: scores for name, scores in found.items() if scores}


def nowhere(values: np.ndarray) -> bool:
    """Whether no image has a score."""
    return bool(np.isnan(values).all())


@dataclass(frozen=True)
class Scores:
    """What the maps of one (method, layer) scored.

    Attributes:
        table: of each image, at the thresholds that matter for it.
        curves: of all images together, over the threshold.
    """

    table: Table
    curves: Curves

    def with_facts(self, **facts: Any) -> 'Scores':
        """The same of a single image, of which other columns of the table are known."""
        columns = {name: np.array([value]) for name, value in facts.items()}
        return replace(self, table=replace(self.table, **columns))

    @classmethod
    def joined(cls, parts: Iterable['Scores']) -> 'Scores':
        """The scores of all images of some parts, at least one."""
        return joined({('', ''): part} for part in parts)['', '']


def joined(parts: Iterable[Mapping[Key, Scores]]) -> dict[Key, Scores]:
    """The scores of all images of some parts, at least one."""
    curves: dict[Key, Curves] = {}
    tables: dict[Key, list[Table]] = {}
    for part in parts:  # added as they come: of each only the scores of its images are kept
        for key, found in part.items():
            curves[key] = curves[key] + found.curves if key in curves else found.curves
            tables.setdefault(key, []).append(found.table)
    return {key: Scores(Table.joined(tables.pop(key)), curves[key]) for key in curves}
