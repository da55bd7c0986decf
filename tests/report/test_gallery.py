"""The gallery against the protocol's own boxes and scores, from stores written by hand."""

import base64
import io
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import Listed
from PIL import Image

from wsol_jax.config import Config, EvaluateConfig, ReportConfig
from wsol_jax.data import Record
from wsol_jax.maps.boxes import threshold_boxes
from wsol_jax.maps.columns import DONE, PENDING, SKIPPED
from wsol_jax.maps.score import score_map
from wsol_jax.maps.store import MapStore, by_column
from wsol_jax.report.gallery import THRESHOLDS, collect, map_blobs, reduced

SIDE = 48  # of the canvas
SIZE = (96, 48)  # of the stored images: x is twice as large there
A, B = ('dgl', 'pw_5'), ('layer_cam', 'pw_10')
CONFIG = Config(evaluate=EvaluateConfig(size=SIDE), report=ReportConfig(gallery=100))


def png(array):
    return cv2.imencode('.png', np.asarray(array, np.uint8))[1].tobytes()


def record(name, *boxes, label=0, masks=(), shade=90):
    image = png(np.full((*SIZE[::-1], 3), shade))
    return Record(name, image, (label,), SIZE, boxes, masks)


def smooth_maps(seed, count, side=7, classes=1):
    """Random maps [count, classes, side, side], negative values among them."""
    noise = np.random.default_rng(seed).normal(size=(count, classes, side, side))
    return np.float32([[cv2.GaussianBlur(m, (3, 3), 0) for m in of_image] for of_image in noise])


def write_maps(
    workdir, source, maps, *, split='test', relu=False, classes=None, status=None, top=(0, 1)
):
    """A store with the given maps {key: [N,K,h,w]}."""
    ids = [r.image_id for r in source.records]
    shapes = {key: m.shape[1:] for key, m in maps.items()}
    chosen = dict.fromkeys(maps, relu)
    folder = workdir / 'maps' / split
    store = MapStore.create(folder, len(ids), 'ground_truth', shapes, chosen, 2)
    num_classes = next(iter(shapes.values()))[0]
    labels = [[r.labels[0]] * num_classes for r in source.records] if classes is None else classes
    facts = {
        'classes': np.array(labels, np.int32),
        'class_scores': np.full((len(ids), num_classes), 0.5, np.float32),
        'top': np.tile(np.array(top, np.int32), (len(ids), 1)),
    }
    status = np.full(len(ids), DONE) if status is None else np.array(status)
    store.write(np.arange(len(ids)), ids, status, facts | by_column(maps))
    return store


def gallery_of(tmp_path, source, maps, config=CONFIG, **facts):
    return collect(config, source, write_maps(tmp_path, source, maps, **facts))


def unpacked(blob, dtype=np.uint8):
    return np.frombuffer(zlib.decompress(base64.b64decode(blob)), dtype)


def named(count):
    return Listed([record(f'{k}.png') for k in range(count)])


@pytest.mark.parametrize('relu', [False, True])
def test_boxes_are_those_of_the_protocol(tmp_path, relu):
    maps = {A: smooth_maps(1, 4), B: smooth_maps(2, 4, 40)}
    gallery = gallery_of(tmp_path, named(4), maps, relu=relu)
    for key, raw in maps.items():
        assert gallery.boxes[key].shape == (4, 1, 4, 100)
        assert gallery.boxes[key].dtype == np.uint8
        for i in range(4):
            found = threshold_boxes(score_map(raw[i, 0], (SIDE, SIDE), relu=relu), THRESHOLDS)
            largest = np.array([boxes[0] for boxes in found])
            assert np.array_equal(gallery.boxes[key][i, 0].T, largest)
            assert len(np.unique(largest, axis=0)) > 5
    assert gallery.overlaps == {}


def test_boxes_of_a_large_canvas_do_not_wrap(tmp_path):
    config = replace(CONFIG, evaluate=EvaluateConfig(size=300))
    raw = np.zeros((1, 1, 7, 7), np.float32)
    raw[..., 6, 6] = 1
    boxes = gallery_of(tmp_path, named(1), {A: raw}, config).boxes[A]
    assert boxes.dtype == np.uint16 and boxes[0, 0, :, 50].tolist()[2:] == [299, 299]


def test_maps_come_back(tmp_path):
    raw = smooth_maps(3, 4)
    raw[1], raw[2, 0, 3, 3] = 5, np.nan  # blank: constant, and not finite
    gallery = gallery_of(tmp_path, named(4), {A: raw}, relu=True)
    (text,), shapes = map_blobs(gallery, 28)
    got = unpacked(text).reshape(4, 1, 7, 7)
    assert shapes == [(7, 7)]
    assert not got[1].any() and not got[2].any()
    for i in (0, 3):
        positive = np.maximum(raw[i, 0], 0)
        assert np.abs(got[i, 0] - 255 * positive / positive.max()).max() <= 0.501


def test_a_constant_map_stays_blank_when_it_is_reduced(tmp_path):
    raw = np.full((1, 1, 45, 45), 0.1, np.float32)
    (text,), shapes = map_blobs(gallery_of(tmp_path, named(1), {A: raw}), 28)
    assert shapes == [(28, 28)] and not unpacked(text).any()


def test_reduction_is_the_mean_over_blocks():
    raw = smooth_maps(4, 1, 14)[0, 0]
    means = raw.reshape(7, 2, 7, 2).mean((1, 3))
    expected = (means - means.min()) / (means.max() - means.min())
    assert reduced(raw, 7) == pytest.approx(expected, abs=1e-6)
    kept = reduced(raw, 20)
    assert kept == pytest.approx((raw - raw.min()) / (raw.max() - raw.min()), abs=1e-6)


def test_the_closing_is_in_the_maps(tmp_path):
    raw = np.zeros((1, 1, SIDE, SIDE), np.float32)
    raw[0, 0, 10:30, 10:18], raw[0, 0, 10:30, 21:30] = 1, 1
    config = replace(CONFIG, evaluate=EvaluateConfig(size=SIDE, closing=7))
    gallery = gallery_of(tmp_path, named(1), {A: raw}, config)
    assert gallery.boxes[A][0, 0, :, 50].tolist() == [10, 10, 30, 30]
    row = gallery.maps[A][0, 0, 20 * 28 // SIDE]
    assert row[8:15].min() > 0.99  # across the gap


def test_images_that_were_skipped_are_not_shown(tmp_path):
    status = [DONE, SKIPPED, DONE, PENDING, DONE, DONE, DONE]
    source, maps = named(7), smooth_maps(5, 7)
    gallery = gallery_of(tmp_path / 'all', source, {A: maps}, status=status)
    assert [i.image_id for i in gallery.images] == ['0.png', '2.png', '4.png', '5.png', '6.png']
    config = replace(CONFIG, report=ReportConfig(gallery=3))
    three = gallery_of(tmp_path / 'three', source, {A: maps}, config, status=status)
    assert [i.image_id for i in three.images] == ['0.png', '4.png', '6.png']
    for i, place in enumerate((0, 4, 6)):
        found = threshold_boxes(score_map(maps[place, 0], (SIDE, SIDE)), [0.5])
        assert three.boxes[A][i, 0, :, 50].tolist() == found[0][0].tolist()
    two = gallery.take(2)
    assert [i.image_id for i in two.images] == ['0.png', '6.png']
    assert np.array_equal(two.boxes[A], gallery.boxes[A][[0, 4]])
    assert np.array_equal(two.maps[A], gallery.maps[A][[0, 4]])


def test_no_image_at_all(tmp_path):
    gallery = gallery_of(tmp_path, named(2), {A: smooth_maps(6, 2)}, status=[SKIPPED] * 2)
    assert gallery.images == [] and gallery.boxes == {}


def test_image_and_boxes_on_the_canvas(tmp_path):
    source = Listed([record('x', (10, 4, 50, 20), label=3, shade=200)])
    (image,) = gallery_of(tmp_path, source, {A: smooth_maps(7, 1)}).images
    assert (image.boxes, image.outline) == ([[5, 4, 25, 20]], '')
    assert (image.labels, image.names, image.map_names) == ((3,), ('d',), ('d',))
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(image.jpeg))))
    # Twice as wide as high, as the stored image is, and the pixels of the canvas: 68 * 34.
    assert picture.shape == (34, 68, 3) and image.size == (68, 34)
    assert np.abs(picture.astype(int) - 200).max() <= 2


@pytest.mark.parametrize(
    ('size', 'expected'), [((48, 192), (24, 96)), ((10, 990), (20, 118)), ((990, 10), (118, 20))]
)
def test_strips_are_shown_six_times_as_long_as_wide(tmp_path, size, expected):
    image = replace(record('x'), image=png(np.zeros((*size[::-1], 3))), size=size)
    (got,) = gallery_of(tmp_path, Listed([image]), {A: smooth_maps(7, 1)}).images
    assert got.size == expected


@pytest.mark.parametrize(
    ('labels', 'classes', 'top', 'predicted', 'right'),
    [
        ((3,), [3], (3, 1), '50 %', True),
        ((3,), [3], (1, 3), 'b, its class 50 %', False),
        ((3,), [1, 2], (1, 3), 'b, 50 %', False),
        ((3, 1), [3, 1], (1, 3), 'b, 50 %, d 50 %', True),
        ((3,), [5], (1, 3), 'b', False),
        ((), [1], (1, 3), 'b, 50 %', None),
    ],
)
def test_what_the_classifier_says(tmp_path, labels, classes, top, predicted, right):
    """The probabilities that are stored are those of the classes that the maps are for."""
    source = Listed([replace(record('x'), labels=labels)])
    maps = {A: smooth_maps(7, 1, classes=len(classes))}
    (image,) = gallery_of(tmp_path, source, maps, classes=[classes], top=top).images
    assert (image.predicted.replace('\xa0', ' '), image.right) == (predicted, right)


def mask_pair(x0, x1, ignored=None):
    mask, ignore = np.zeros((2, *SIZE[::-1]))
    mask[8:40, 2 * x0 : 2 * x1] = 255
    if ignored is None:
        return png(mask), None
    ignore[:, 2 * ignored :] = 255
    return png(mask), png(ignore)


def test_overlaps_with_masks(tmp_path):
    raw = smooth_maps(8, 3)
    pairs = [mask_pair(10, 30), mask_pair(5, 20, ignored=30)]
    sources = [record(f'm{i}', masks=(pair,)) for i, pair in enumerate(pairs)]
    sources.append(record('b', (20, 8, 60, 40), masks=(pairs[0],)))
    gallery = gallery_of(tmp_path, Listed(sources), {A: raw})
    mask = np.zeros((2, SIDE, SIDE), bool)
    mask[0, 8:40, 10:30] = mask[1, 8:40, 5:20] = True
    for i, counted in enumerate((SIDE, 30)):
        scores = score_map(raw[i, 0], (SIDE, SIDE))[:, :counted]
        true = mask[i, :, :counted]
        for step in range(100):
            found = scores >= THRESHOLDS[step]
            overlap = (found & true).sum() / (found | true).sum()
            assert gallery.overlaps[A][i, 0, step] == int(100 * overlap + 1e-6)
    assert not gallery.overlaps[A][2].any()  # has boxes, which are scored instead
    outlines = [image.outline for image in gallery.images]
    assert outlines == ['M10,8 10,39 29,39 29,8Z', 'M5,8 5,39 19,39 19,8Z', '']
    assert gallery.images[2].boxes == [[10, 8, 30, 40]]


def test_half_is_reached_and_an_empty_mask_is_none(tmp_path):
    raw = np.zeros((2, 1, SIDE, SIDE), np.float32)
    raw[:, :, 8:40, 10:20] = 1
    records = [record('half', masks=(mask_pair(10, 30),)), record('none', masks=(mask_pair(0, 0),))]
    gallery = gallery_of(tmp_path, Listed(records), {A: raw})
    assert set(gallery.overlaps[A][0, 0, 1:].tolist()) == {50}
    assert [bool(image.outline) for image in gallery.images] == [True, False]
    assert not gallery.overlaps[A][1].any()


def test_an_image_with_fewer_classes_than_others(tmp_path):
    raw = smooth_maps(9, 2, classes=2)
    raw[1, 1] = 0
    gallery = gallery_of(tmp_path, named(2), {A: raw}, classes=[[3, 0], [1, -1]])
    assert [i.map_names for i in gallery.images] == [('d', 'a'), ('b', 'no class')]
    assert not gallery.maps[A][1, 1].any() and not gallery.boxes[A][1, 1].any()


def test_classes_that_the_classifier_names(tmp_path):
    """The data set's names come first; what it does not name is as the classifier has it."""
    source, raw = named(1), smooth_maps(9, 1, classes=3)
    store = write_maps(tmp_path, source, {A: raw}, classes=[[0, 9, -1]])
    assert store.class_names() == ()
    store.name_classes([f'class {i}' for i in range(10)])
    (image,) = collect(CONFIG, source, store).images
    assert image.map_names == ('a', 'class 9', 'no class')


def test_several_classes_an_image(tmp_path):
    raw = smooth_maps(9, 3, classes=5)
    classes = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [7, 6, 5, 4, 3]]
    gallery = gallery_of(tmp_path, named(3), {A: raw}, classes=classes)
    assert [i.map_names for i in gallery.images] == [tuple('abcde'), tuple('edcba'), tuple('hgfed')]
    assert gallery.boxes[A].shape == (3, 5, 4, 100)
    for i, k in np.ndindex(3, 5):
        found = threshold_boxes(score_map(raw[i, k], (SIDE, SIDE)), [0.3])[0][0]
        assert gallery.boxes[A][i, k, :, 30].tolist() == found.tolist()
    got = unpacked(map_blobs(gallery, 28)[0][0]).reshape(raw.shape)
    low, high = raw.min((2, 3), keepdims=True), raw.max((2, 3), keepdims=True)
    assert np.abs(got - 255 * (raw - low) / (high - low)).max() <= 0.501
