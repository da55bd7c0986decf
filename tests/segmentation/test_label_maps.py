"""Label maps: VOC's colours, files that come back as they were, and what is refused."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import DataError, Record
from wsol_jax.data.label_maps import resized_label_map
from wsol_jax.data.records import Decoding
from wsol_jax.segmentation import palette, read_label_map, true_label_map, write_label_map

LABELS = np.array([[0, 1, 2], [80, 254, 255]], np.uint8)


def png(values, size=None):
    image = Image.fromarray(values) if size is None else Image.fromarray(values).resize(size)
    stream = io.BytesIO()
    image.save(stream, 'PNG')
    return stream.getvalue()


def record(content, size=(3, 2)):
    return Record('a.jpg', b'', (0,), size, extra={'segmentation': content})


def test_palette_is_that_of_voc():
    # As VOCdevkit's VOClabelcolormap gives them.
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 64: (32, 0, 0), 255: (224, 224, 192)}
    assert {k: tuple(palette()[k].tolist()) for k in known} == known
    assert palette().dtype == np.uint8 and len(np.unique(palette(), axis=0)) == 256


def test_a_written_label_map_is_read_again(tmp_path):
    path = tmp_path / 'new/a.png'
    write_label_map(path, LABELS)
    assert (read_label_map(path) == LABELS).all() and (read_label_map(str(path)) == LABELS).all()
    with Image.open(path) as image:
        assert image.mode == 'P'
        assert (np.array(image.convert('RGB')) == palette()[LABELS]).all()
    assert [p.name for p in path.parent.iterdir()] == ['a.png']


@pytest.mark.parametrize('wrong', [LABELS.astype(int), LABELS[None]])
def test_only_label_maps_are_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=r'a\.png: a label map is uint8 \[height, width\], got'):
        write_label_map(tmp_path / 'a.png', wrong)


def test_the_true_label_map_of_a_record(tmp_path):
    write_label_map(tmp_path / 'a.png', LABELS)
    for content in (png(LABELS), tmp_path / 'a.png'):
        assert (true_label_map(record(content)) == LABELS).all()
        assert (true_label_map(record(content), 254) == LABELS).all()


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (Record('a.jpg', b'', (), (3, 2)), 'a.jpg: has no true label map'),
        (
            record(png(LABELS), (2, 3)),
            "a.jpg: is 3x2, its image 2x3 with config.data.orientation='stored'; set that to the",
        ),
        (record(png(LABELS), (4, 2)), 'label map a.jpg: is 3x2, its image 4x2$'),
        (record(png(LABELS)), r'index 80; the classes are 0\.\.20, 255 is ignored'),
        (record(png(LABELS)[:-30]), 'label map a.jpg: '),
    ],
)
def test_what_is_no_label_map_of_a_record(given, message):
    with pytest.raises(DataError, match=message):
        true_label_map(given, 20)


def test_a_photo_and_its_label_map_in_two_frames():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored as 4x2, displayed as 2x4
    stream = io.BytesIO()
    Image.new('RGB', (4, 2)).save(stream, 'PNG', exif=exif)
    drawn = {'segmentation': png(np.zeros((4, 2), np.uint8))}
    stored = Record('a.jpg', stream.getvalue(), (), None, extra=drawn)
    with pytest.raises(DataError, match=r"2x4, its image 4x2 with config\.data\.orientation='sto"):
        true_label_map(stored)
    assert true_label_map(replace(stored, decoding=Decoding(displayed=True))).shape == (4, 2)


def test_resized_ones_are_the_pixels_in_the_middle():
    label_maps = np.arange(42, dtype=np.uint8).reshape(2, 7, 3)
    found = resized_label_map(label_maps, (3, 6))
    expected = label_maps[:, [1, 3, 5]][..., [0, 0, 1, 1, 2, 2]]
    np.testing.assert_array_equal(found, expected)
