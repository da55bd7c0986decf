"""Images as a notebook has them: files, PIL images and arrays; one or many, of any sizes."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsol_jax.data.decode import decode_image, pixels_of, resize_image, stored_size
from wsol_jax.data.records import Decoding, Record
from wsol_jax.names import shown

THREADS = 8
DISPLAYED = Decoding(displayed=True)
_Size = tuple[int, int]


def listed(images: Any, channels: int = 3) -> Any:
    """What was given, as a sequence of images; no file is read yet.

    Args:
        images: an array [B,H,W,C], or a sequence of files, PIL images and arrays [H,W,C] of any
            sizes, or one of these.
        channels: C, 3 for RGB.

    Returns:
        The array [B,H,W,C] itself, where it is one; else a list.

    Raises:
        ValueError: there is no image, or something is none that could be taken.
    """
    if isinstance(images, str | Path | Image.Image):
        return _checked_list([images], channels)
    if not _is_array(images):
        try:
            return _checked_list(list(images), channels)
        except TypeError:
            raise ValueError(f'images must be {_WANTED}, got {type(images).__name__}') from None
    array = _array(images)
    if array.dtype.kind in 'OUS':
        return _checked_list(array.tolist(), channels)
    single = array.ndim == 3 and array.shape[-1] == channels
    array = array[None] if single else array
    _check_array(array, f'images must be [B,H,W,{channels}]', 4, channels, _is_torch(images))
    return array


def batches(
    images: Any, shape: _Size | None, batch_size: int, channels: int = 3
) -> Iterator[tuple[Any, list[_Size]]]:
    """Batches of one shape, each with the sizes that its images had.

    An array that has the shape already comes whole and uncopied, wherever it lies. All else is
    decoded, turned as EXIF says and resized as the command does it, some images at a time.

    Args:
        images: from `listed`.
        shape: (height, width) to resize to; None for images as they are, which have one size.
        batch_size: images in a batch; the last one is filled up with zeros, so that lists of any
            length have batches of one shape. One image alone is a batch of its own.
        channels: of the arrays.

    Yields:
        ([b,height,width,C] uint8, or float in [0, 1]; [(width, height)] of those that are no
        padding).

    Raises:
        ValueError: an image cannot be read, sizes differ where they must not, or `batch_size` is
            no number of images.
    """
    check_batch_size(batch_size)
    if _is_array(images) and shape in (None, images.shape[1:3]):
        yield images, [images.shape[2:0:-1]] * len(images)
        return
    items = np.asarray(images) if _is_array(images) else images
    count, common = batch_size if len(items) > 1 else 1, shape
    read = partial(read_image, shape=shape, channels=channels)
    with ThreadPoolExecutor(min(THREADS, count)) as pool:
        for start in range(0, len(items), count):
            pixels, sizes = zip(*pool.map(read, items[start : start + count]), strict=True)
            common = common or pixels[0].shape[:2]
            yield _stacked(pixels, common, count), list(sizes)


def check_batch_size(batch_size: Any) -> None:
    """Raises ValueError for what is no number of images."""
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f'batch_size must be a whole number from 1 on, got {shown(batch_size)}')


def read_image(item: Any, shape: _Size | None = None, channels: int = 3) -> tuple[Any, _Size]:
    """One image, resized.

    Args:
        item: a file, a PIL image or an array [H,W,C].
        shape: (height, width); None for the image as it is.
        channels: of the result; files and PIL images have 3, or 1.

    Returns:
        [height,width,C] uint8, or float32 in [0, 1], and the (width, height) it had.

    Raises:
        BadImage: the file cannot be read.
    """
    if isinstance(item, str | Path):
        record = Record(str(item), Path(item), (), None, decoding=DISPLAYED)
        # A large scan is reduced while it is decoded, as in the command: it knows its size.
        pixels, size = decode_image(record, max(shape or (0,))), stored_size(record)
    else:
        pixels = pixels_of(item) if isinstance(item, Image.Image) else np.asarray(item)
        pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
        size = pixels.shape[1::-1]
    if pixels.shape[-1] != channels:
        pixels = np.array(Image.fromarray(pixels).convert('L'))[..., None]
    return _resized(pixels, shape or pixels.shape[:2]), size


_WANTED = 'files, PIL images or arrays'


def _is_array(value: Any) -> bool:
    return all(hasattr(value, name) for name in ('shape', 'dtype', 'ndim'))


def _array(value: Any) -> Any:
    """NumPy's and JAX's arrays stay where they are; tensors of others come to the host."""
    if isinstance(value, np.ndarray) or hasattr(value, 'addressable_shards'):
        return value
    return np.asarray(value.detach().cpu() if _is_torch(value) else value)


def _is_torch(value: Any) -> bool:
    return hasattr(value, 'detach')


def _checked_list(items: list[Any], channels: int) -> list[Any]:
    if not items:
        raise ValueError('there are no images')
    return [_checked(item, i, channels) for i, item in enumerate(items)]


def _checked(item: Any, place: int, channels: int) -> Any:
    if isinstance(item, str | Path | Image.Image):
        if isinstance(item, str | Path) and Path(item).is_dir():
            raise ValueError(f"{item}: is a folder; pass its files, sorted(Path(..).glob('*.jpg'))")
        if channels not in (1, 3):
            raise ValueError(
                f'the network takes {channels} channels, which no image file has: '
                f'pass arrays [H,W,{channels}]'
            )
        return item
    if not _is_array(item):
        raise ValueError(f'images[{place}] is a {type(item).__name__}; images are {_WANTED}')
    array = _array(item)
    _check_array(array, f'images[{place}] must be [H,W,{channels}]', 3, channels, _is_torch(item))
    return array


def _check_array(array: Any, wanted: str, rank: int, channels: int, torch: bool) -> None:
    shape, name = tuple(array.shape), array.dtype.name
    if len(shape) != rank or shape[-1] != channels:
        raise ValueError(f'{wanted}, got {list(shape)}{_hint(shape, rank, channels, torch)}')
    if rank == 4 and not shape[0]:
        raise ValueError(f'there are no images: {list(shape)}')
    if 0 in shape:
        raise ValueError(f'{wanted}, got {list(shape)}, which has no pixels')
    if name == 'uint8':
        return
    if not name.startswith(('float', 'bfloat')):
        raise ValueError(f'images must be uint8 (0..255) or float in [0, 1], got {name}')
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f'float images must lie in [0, 1], got [{low:g}, {high:g}]; '
            'pass 0..255 images as uint8, without normalization of your own'
        )


def _hint(shape: tuple[int, ...], rank: int, channels: int, torch: bool) -> str:
    """What would make images of such an array, where that can be told."""
    if len(shape) >= 3 and shape[-3] == channels:
        order = (0, 2, 3, 1) if len(shape) == 4 else (1, 2, 0)
        return f'; channels come last: pass x.{"permute" if torch else "transpose"}{order}'
    if channels != 3:
        return ''
    if len(shape) == rank:
        hints = {4: 'drop the alpha channel: pass x[..., :3]', 1: 'grey: pass x.repeat(3, -1)'}
        return f'; {hints[shape[-1]]}' if shape[-1] in hints else ''
    if len(shape) in (2, rank - 1):
        return '; grey: pass np.stack([x] * 3, -1)'
    return ''


def _resized(pixels: np.ndarray, shape: _Size) -> np.ndarray:
    if pixels.shape[:2] == shape:
        return pixels
    size = shape[::-1]
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
        return resize_image(pixels, size)
    planes = [Image.fromarray(pixels[..., k]) for k in range(pixels.shape[-1])]
    return np.stack([np.asarray(p.resize(size, Image.Resampling.BILINEAR)) for p in planes], -1)


def _stacked(images: Sequence[np.ndarray], shape: _Size, count: int) -> np.ndarray:
    for image in images:
        if image.shape[:2] != shape:
            raise ValueError(
                f'images of {shape[1]}x{shape[0]} and {image.shape[1]}x{image.shape[0]} pixels '
                'do not go together as they are: leave out resize=False'
            )
    if any(image.dtype != np.uint8 for image in images):
        images = [x if x.dtype != np.uint8 else x.astype(np.float32) / 255 for x in images]
    stacked = np.zeros((count, *images[0].shape), images[0].dtype)
    stacked[: len(images)] = images
    return stacked


def resized_shape(own: tuple[int, int], resize: bool | int | tuple[int, int]) -> Any:
    """(height, width) to resize images to, see `localize`; None for images as they are.

    Args:
        own: (height, width) of the network's input.
        resize: True, False, a side or (height, width).

    Raises:
        ValueError: it is of another kind.
    """
    if resize is False:
        return None
    if resize is True:
        return own
    shape: tuple[Any, ...] = tuple(resize) if isinstance(resize, Iterable) else (resize, resize)
    if len(shape) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in shape):
        raise ValueError(f'resize must be True, False, a side or (height, width), got {resize!r}')
    return shape
