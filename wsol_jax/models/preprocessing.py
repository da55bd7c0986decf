"""What is done to images before a network eats them: it belongs to the network's weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.names import unknown_name


@dataclass(frozen=True)
class Preprocessing:
    """From images to what a network eats: RGB, grey, or as many channels C as `mean` is long.

    Attributes:
        mean: subtracted, on the 0..255 scale, in the network's channel order.
        std: divided by, on the same scale and in the same order.
        bgr: the network eats blue first.

    Raises:
        ValueError: mean and std are not of one length, a std is not above 0, or bgr without three
            channels.

    Example:
        >>> grey = Preprocessing(mean=(127.5,), std=(127.5,))
        >>> grey(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)).ravel().tolist()
        [-1.0, 1.0]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def __post_init__(self) -> None:
        for name in ('mean', 'std'):  # lists would not be hashable
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, tuple(map(float, np.atleast_1d(given))))
            except (TypeError, ValueError):
                raise ValueError(f'{name} must be numbers, one a channel, got {given!r}') from None
        if len(self.mean) != len(self.std) or not np.isfinite([*self.mean, *self.std]).all():
            raise ValueError(
                'mean and std must be as many finite numbers as the network has channels, got '
                f'{self.mean} and {self.std}'
            )
        if min(self.std) <= 0:
            raise ValueError(f'std must be above 0, got {self.std}')
        if self.bgr and self.channels != 3:
            raise ValueError(f'bgr turns three channels around, mean has {self.channels}')

    @property
    def channels(self) -> int:
        """How many channels the images have."""
        return len(self.mean)

    def __call__(self, images: Any) -> jax.Array:
        """[B,H,W,C], uint8 in 0..255 or float in [0,1] -> float32 network input.

        Raises:
            ValueError: another shape or number type.
        """
        images = jnp.asarray(images)
        if images.ndim != 4 or images.shape[-1] != self.channels:
            raise ValueError(f'images have shape {images.shape}, not [B,H,W,{self.channels}]')
        if jnp.issubdtype(images.dtype, jnp.floating):
            pixels = images.astype(jnp.float32) * 255.0
        elif images.dtype == jnp.uint8:
            pixels = images.astype(jnp.float32)
        else:
            raise ValueError(f'images are {images.dtype}, not uint8 (0..255) or float ([0,1])')
        if self.bgr:
            pixels = pixels[..., ::-1]
        return (pixels - jnp.array(self.mean)) / jnp.array(self.std)


PREPROCESSINGS = {
    'imagenet': Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    'caffe': Preprocessing(mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), bgr=True),
    'symmetric': Preprocessing(mean=(128.0, 128.0, 128.0), std=(128.0, 128.0, 128.0)),
    'unit': Preprocessing(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
}


def as_preprocessing(given: Any) -> Preprocessing:
    """A `Preprocessing` from a name, its numbers, or JSON of these.

    Args:
        given: a name of `PREPROCESSINGS`; {'mean': .., 'std': .., 'bgr': ..} on the 0..255 scale, a
            mapping or its JSON; or a `Preprocessing`.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(given, Preprocessing):
        return given
    if isinstance(given, str) and given.lstrip().startswith('{'):
        given = _json(given)
    if isinstance(given, str):
        if given not in PREPROCESSINGS:
            raise ValueError(unknown_name('preprocessing', given, PREPROCESSINGS))
        return PREPROCESSINGS[given]
    if not isinstance(given, Mapping) or not {'mean', 'std'} <= set(given) <= _KEYS:
        raise ValueError(
            f'preprocessing must be one of {", ".join(PREPROCESSINGS)}, or '
            f"{{'mean': .., 'std': .., 'bgr': ..}} on the 0..255 scale, got {given!r}"
        )
    return Preprocessing(given['mean'], given['std'], bool(given.get('bgr', False)))


_KEYS = {'mean', 'std', 'bgr'}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'preprocessing {text[:60]!r} is no JSON ({error})') from None


def preprocessing_name(preprocessing: Preprocessing) -> str:
    """Its name among `PREPROCESSINGS`, else its numbers."""
    names = [name for name, known in PREPROCESSINGS.items() if known == preprocessing]
    return repr(names[0]) if names else repr(preprocessing)
