"""What methods that learn boxes in 3D of frames of LiDAR and camera have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax
import numpy as np

from wsol_jax.config import ConfigError
from wsol_jax.data.frames import FrameSource, FrameTargets, SomeFrames
from wsol_jax.data.records import Source, Targets
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models.pillars import Grid
from wsol_jax.training.method import ALL_BUT_HEADS, TrainedMethod

_COUNT = Range(1, 1_000_000)


class Boxes(NamedTuple):
    """Boxes of B frames, M each.

    Attributes:
        boxes: [B,M,7], in metres in the frame of the LiDAR.
        scores: [B,M], 0 to 1.
        classes: int32 [B,M]; -1 for none.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array


@documented
@dataclass(frozen=True, kw_only=True)
class FrameMethod(TrainedMethod):
    """What methods that learn boxes in 3D of frames have in common."""

    # Of each frame by itself: the loss is divided by the boxes of a batch, or of a device's part.
    best: ClassVar[tuple[str, Literal['max', 'min']]] = ('detection_loss', 'min')
    limits: tuple[float, ...] = setting(
        (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        'x0, y0, z0, x1, y1, z1 in metres of what is looked at',
        'checkpoints',
        Range(-1000, 1000),
    )
    pillar: float = setting(0.2, 'side of a pillar in metres', 'checkpoints', Range(0.01, 100))
    points: int = setting(
        30_000, 'most LiDAR points of a frame; of more some are drawn', 'checkpoints', _COUNT
    )
    widths: tuple[int, ...] = setting(
        (64, 128, 256, 256),
        "channels of the stages of the bird's-eye view, each of half the sides of the one before",
        'checkpoints',
        Range(1, 65_536),
    )
    sizes: tuple[tuple[float, ...], ...] = setting(
        (),
        'mean (l, w, h) in metres of each class; () where they are not known',
        'checkpoints',
        Range(0, 1000, '(]'),
    )
    views: bool = setting(True, 'mirror, turn, scale and move the world in training', 'checkpoints')

    @property
    def grid(self) -> Grid:
        """What is looked at.

        Raises:
            ConfigError: that is no box of six numbers, or less than a pillar.
        """
        try:
            return Grid.of(self.limits, self.pillar)
        except ValueError as error:
            raise ConfigError(f'config.train.options.limits {error}') from None

    def num_logits(self, train: Source) -> int:
        """One a class.

        Raises:
            ConfigError: there is none, or there are not as many mean sizes.
        """
        count = train.num_classes
        if count < 1:
            raise ConfigError('training needs frames of at least 1 class, found none')
        if self.sizes and [len(size) for size in self.sizes] != [3] * count:
            raise ConfigError(
                f'config.train.options.sizes must be (l, w, h) of each of the {count} classes, '
                f'got {self.sizes}'
            )
        return count

    @property
    def reads_images(self) -> bool:
        """Whether anything looks at the features of the network."""
        return False

    @property
    def freeze(self) -> tuple[str, ...]:
        """The network that nobody looks at: unchanging, it is not even computed."""
        return () if self.reads_images else (ALL_BUT_HEADS,)

    @property
    def needs_boxes(self) -> bool:
        """Whether frames whose boxes are not known have no loss."""
        return False

    def learns_from(self, train: Source) -> Source:
        """All frames, or those whose boxes are known, where the others have no loss.

        Raises:
            ConfigError: no boxes are known.
        """
        if not self.needs_boxes:
            return train
        frames = frames_of(train)
        known = np.flatnonzero(frames.labelled)
        if not known.size:
            raise ConfigError('training needs frames whose boxes are known, and train has none')
        return SomeFrames(frames, tuple(known.tolist()))

    def targets(self, source: Source, required: bool) -> Targets:
        """Points, boxes, annotated points and projections of a frame, see `FrameTargets`.

        Raises:
            ConfigError: the data set has no frames.
        """
        del required
        return self.frame_targets(source)

    def frame_targets(self, source: Source) -> FrameTargets:
        """See `targets`."""
        return FrameTargets(self.points, frames_of(source).most_boxes, region=self.limits)

    def most_found(self, source: Source) -> int:
        """How many boxes `boxes` gives of each frame."""
        raise NotImplementedError

    def boxes(self, extras: Mapping[str, jax.Array], targets: Mapping[str, Any]) -> Boxes:
        """The boxes that the heads found.

        Args:
            extras: of the heads.
            targets: what was given of the frames.
        """
        raise NotImplementedError


def frames_of(source: Source) -> FrameSource:
    """A source as one of frames.

    Raises:
        ConfigError: it has none.
    """
    if not getattr(source, 'most_boxes', 0):
        raise ConfigError(
            "config.data.source must be one of LiDAR frames, such as 'lidar_scenes', with "
            'config.train.method of this kind'
        )
    return cast(FrameSource, source)
