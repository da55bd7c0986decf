"""Label maps as files: palette PNGs in the colours of PASCAL VOC."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from wsol_jax.data.records import Pixels
from wsol_jax.workdir import written_whole


@cache
def palette() -> Pixels:
    """The colours of PASCAL VOC, uint8 [256, 3] RGB: black background, classes far apart."""
    bits = np.arange(256)[:, None] >> np.arange(9) & 1
    # Bits 3j, 3j + 1, 3j + 2 of an index are bit 7 - j of its red, green and blue.
    weights = 128 >> np.arange(3)[:, None]
    return (bits.reshape(256, 3, 3) * weights).sum(axis=1).astype(np.uint8)


def write_label_map(path: str | Path, label_map: Pixels) -> None:
    """Writes a label map as a palette PNG, whole or not at all.

    Args:
        path: ends in .png.
        label_map: uint8 [H, W].

    Raises:
        ValueError: it is something else.
        OSError: it cannot be written.
    """
    if label_map.dtype != np.uint8 or label_map.ndim != 2:
        shape = f'{label_map.dtype} {list(label_map.shape)}'
        raise ValueError(f'{path}: a label map is uint8 [height, width], got {shape}')
    image = Image.fromarray(label_map)
    image.putpalette(palette().tobytes())
    with written_whole(Path(path)) as temporary:
        image.save(temporary, 'PNG')
