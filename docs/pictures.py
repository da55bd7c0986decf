"""Draws the pictures of the method cards: every method's map of one generated image.

    make demo
    python docs/pictures.py --workdir runs/demo [--image 12]

Writes docs/pictures/METHOD.jpg: the map at `--layer`, or wherever the method is defined, over the
image, with the box at 0.2 of its maximum; and image.jpg with the true box.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib
import numpy as np

import wsol_jax
from wsol_jax.data import Shapes, decode_image
from wsol_jax.report.overlay import BOX_COLOR, TRUE_COLOR

FOLDER = Path(__file__).parent / 'pictures'
SIDE = 192
THRESHOLD = 0.2
OF_TRANSFORMERS = ('rollout',)


def main() -> None:
    """Draws them."""
    asked = _parser().parse_args()
    network = wsol_jax.load_network('resnet10', weights=asked.workdir)
    record = Shapes('test', asked.image + 1, size=network.input_size)[asked.image]
    image = decode_image(record)
    names = [name for name in wsol_jax.METHODS if name not in OF_TRANSFORMERS]
    result = wsol_jax.localize(network, image, names, (asked.layer,), classes=record.labels[0])
    FOLDER.mkdir(exist_ok=True)
    truth = np.array(record.boxes[0]) * SIDE // network.input_size
    _write('image', with_box(enlarged(image), truth, TRUE_COLOR))
    for key, boxes in result.boxes(THRESHOLD, (SIDE, SIDE)).items():
        raw, relu = result.maps[key][0], result.has_relu(key)
        picture = wsol_jax.overlay(enlarged(image), raw, relu=relu)
        _write(key[0], with_box(picture, boxes[0][0], BOX_COLOR))


def enlarged(image: np.ndarray) -> np.ndarray:
    """[SIDE,SIDE,3]."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def with_box(image: np.ndarray, box: np.ndarray, colour: str) -> np.ndarray:
    """The image [H,W,3] uint8 with a box x0, y0, x1, y1 drawn into it."""
    rgb = [round(255 * value) for value in matplotlib.colors.to_rgb(colour)]
    (x0, y0), (x1, y1) = box[:2].tolist(), box[2:].tolist()
    return cv2.rectangle(image.copy(), (x0, y0), (x1, y1), rgb, 2)


def _write(name: str, image: np.ndarray) -> None:
    file = FOLDER / f'{name}.jpg'
    cv2.imwrite(str(file), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--workdir', required=True, help='of the demo')
    parser.add_argument('--image', type=int, default=12, help='number in the test split')
    parser.add_argument('--layer', default='stage3', help='where it is free')
    return parser


if __name__ == '__main__':
    main()
