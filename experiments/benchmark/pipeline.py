"""From image files to boxes, against the maps alone.

How long the devices wait for data is told by the difference to the same pass over images that need
no decoding, uncompressed and of the network's size, as by Mohan et al., "Analyzing and Mitigating
Data Stalls in DNN Training", VLDB 2021. On a CPU decoding and computing share the cores, and what
is lost to that counts as waiting, too.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from experiments.benchmark.maps import maps, random_images
from experiments.benchmark.turns import Clock, Row, multiple, rows, take_turns, timed
from wsol_jax import localize_folder
from wsol_jax.config import Config, LocalizeConfig
from wsol_jax.data import ImageFolder
from wsol_jax.localization.stage import localize_split
from wsol_jax.models import Network, load_network

NETWORKS = ('resnet50', 'mobilenet_v1')
COUNT, BATCH = 64, 16
SIZE = (500, 375)  # (width, height), as most of ILSVRC
THRESHOLD = 0.2


def section(repeats: int, networks: Sequence[str] = NETWORKS) -> Iterator[Row]:
    """Rows of every network, DGL at all main layers."""
    for network in map(load_network, networks):
        with tempfile.TemporaryDirectory() as name:
            write_images(Path(name), COUNT, network.input_shape[:2])
            yield from end_to_end(network, Path(name), BATCH, repeats)


def write_images(
    folder: Path, count: int, raw: tuple[int, int], size: tuple[int, int] = SIZE
) -> None:
    """Coloured clouds with some grain: `folder`/jpeg, and uncompressed in `folder`/raw.

    Args:
        folder: where they go.
        count: how many.
        raw: (height, width) of the uncompressed ones.
        size: (width, height) of the JPEG files, of some 100 kB where it is the usual one.
    """
    rng, (width, height) = np.random.default_rng(0), size
    for name in ('jpeg', 'raw'):
        (folder / name).mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (8, 10, 3), np.uint8)
        clouds = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        pixels = clouds + rng.normal(0, 8, (height, width, 1))
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f'jpeg/{i:04d}.jpg'), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        cv2.imwrite(str(folder / f'raw/{i:04d}.bmp'), cv2.resize(pixels, raw[::-1]))


def end_to_end(
    network: Network, folder: Path, batch: int, repeats: int, size: tuple[int, int] = SIZE
) -> list[Row]:
    """Rows of one network; the ratios are of the maps alone.

    Args:
        network: the classifier.
        folder: from `write_images`, whose count should be a multiple of the batch.
        batch: images that are computed at once.
        repeats: turns.
        size: that boxes are made for, of the JPEG files.
    """
    source = ImageFolder(folder / 'jpeg')

    def boxes_of(images: str) -> Clock:
        def run() -> None:
            for _, found in localize_folder(network, folder / images, batch_size=batch):
                found.boxes(THRESHOLD, size)

        return timed(run, len(source))

    alone = maps(network, random_images(network, batch), ('dgl',), network.layers())
    cases = {
        'maps alone': timed(alone, batch),
        'raw images to boxes, localize_folder': boxes_of('raw'),
        'files to boxes, localize_folder': boxes_of('jpeg'),
        'files to stored maps, the stage localize': timed(
            lambda: store(network, source, batch), len(source)
        ),
    }
    where = f'{network.name}, batch {batch}: '
    seconds = take_turns(cases, repeats)
    _, raw, files, _ = seconds.values()
    share, _, spread = multiple(100 * (1 - raw / files), '')
    waits = Row(f'{where}waiting for data, localize_folder', share, '% of the time', spread=spread)
    return [*rows(seconds, 'maps alone', where=where), waits]


def store(network: Network, source: ImageFolder, batch: int) -> None:
    """The maps of all images in a folder that goes away."""
    setting = LocalizeConfig(methods=('dgl',), classes='top1', batch_size=batch)
    with tempfile.TemporaryDirectory() as name:
        localize_split(Config(localize=setting), network, source, 'test', Path(name))
