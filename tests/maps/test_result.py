"""Maps by name, and boxes in the pixels of each image."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from wsol_jax import Localization, boxes_from_map, localize, score_map
from wsol_jax.maps import Maps

SIZES = [(30, 20), (9, 40), (8, 8), (1, 50)]
METHODS = ('grad_cam', 'dgl')


@pytest.fixture(scope='module')
def photos():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for w, h in SIZES]


@pytest.fixture(scope='module')
def result(toy, photos):
    return localize(toy, photos, METHODS, ('early', 'late'))


def test_boxes_are_in_the_pixels_of_each_image(result):
    boxes = result.boxes(0.3)
    assert list(boxes) == list(result.maps) and result.sizes == SIZES
    for key, found in boxes.items():
        for raw, size, box in zip(result.maps[key], SIZES, found, strict=True):
            expected = boxes_from_map(np.asarray(raw), size, 0.3, relu=key[0] == 'grad_cam')
            np.testing.assert_array_equal(box, expected)
    raw = np.asarray(result.maps['grad_cam', 'early'])
    plain = [boxes_from_map(m, size, 0.3).tolist() for m, size in zip(raw, SIZES, strict=True)]
    assert [b.tolist() for b in boxes['grad_cam', 'early']] != plain


def test_the_relu_is_that_of_the_plan(toy, toy_images):
    options = {'layers': ('early',), 'classes': 1}
    assert localize(toy, toy_images, METHODS, **options).relu == {
        ('grad_cam', 'early'): True,
        ('dgl', 'early'): False,
    }
    smooth = localize(toy, toy_images, ('dgl',), eigen_smooth=True, **options)
    (found,) = smooth.boxes(0.2).values()
    raw = np.asarray(smooth.maps['dgl'])
    assert raw.min() < 0
    for m, box in zip(raw, found, strict=True):
        np.testing.assert_array_equal(box, boxes_from_map(m, (8, 8), 0.2, relu=True))


def test_boxes_of_several_classes(toy, photos):
    result = localize(toy, photos, ('dgl',), ('early',), 'top3')
    (found,) = result.boxes(0.4).values()
    raw = np.asarray(result.maps['dgl', 'early'])
    for i, size in enumerate(SIZES):
        assert len(found[i]) == 3
        for k, box in enumerate(found[i]):
            np.testing.assert_array_equal(box, boxes_from_map(raw[i, k], size, 0.4))


def test_there_are_no_boxes_where_there_is_no_class(toy, photos):
    classes = [[2], [5, 1], [0], [3, 4, 1]]
    result = localize(toy, photos, ('dgl',), ('early',), classes)
    raw = np.asarray(result.maps['dgl', 'early'])
    boxes, scores = result.boxes(0.4)['dgl', 'early'], result.score_maps('dgl')
    for i, size in enumerate(SIZES):
        assert len(boxes[i]) == len(scores[i]) == len(classes[i])
        for k in range(len(classes[i])):
            np.testing.assert_array_equal(boxes[i][k], boxes_from_map(raw[i, k], size, 0.4))
            np.testing.assert_array_equal(scores[i][k], score_map(raw[i, k], size))


def test_closing_and_sizes_of_others(toy, toy_images):
    result = localize(toy, toy_images, ('dgl',), ('late',))
    raw = np.asarray(result.maps['dgl', 'late'])
    expected = [boxes_from_map(m, (90, 60), 0.5, closing=15).tolist() for m in raw]
    image = np.zeros((60, 90, 3), np.uint8)
    for sizes in (
        (90, 60),
        [90, 60],
        image.shape,
        image,
        Image.fromarray(image),
        [(90, 60)] * 4,
        [image] * 4,
        np.array([[90, 60]] * 4),
        np.stack([image] * 4),
    ):
        (found,) = result.boxes(0.5, sizes, closing=15).values()
        assert [b.tolist() for b in found] == expected


def test_score_maps_are_in_the_pixels_of_each_image(result):
    found = result.score_maps(('grad_cam', 'late'))
    assert [m.shape for m in found] == [(h, w) for w, h in SIZES]
    raw = np.asarray(result.maps['grad_cam', 'late'])
    for m, size, scores in zip(raw, SIZES, found, strict=True):
        np.testing.assert_array_equal(scores, score_map(m, size, relu=True))


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ([(8, 8)] * 3, 'one for each of 4 images'),
        ((8, 0), r'\(width, height\), or the image, .*; got \[8, 0\]'),
        ([(8, 8, 8)] * 4, r'got \(8, 8, 8\)'),
        ([np.zeros((8, 8))] * 4, r'got an array \[8, 8\]'),
        ([8.5, 8.5], 'one for each of 4 images'),
    ],
)
def test_wrong_sizes(result, sizes, message):
    with pytest.raises(ValueError, match=message):
        result.boxes(0.2, sizes)


def test_sizes_that_nobody_knows():
    maps = {('dgl', 'a'): np.eye(3)[None]}
    result = Localization(maps, np.zeros((1, 2)), np.zeros(1, int))
    with pytest.raises(ValueError, match='sizes of the images are not known: pass sizes='):
        result.boxes(0.2)
    np.testing.assert_array_equal(
        result.boxes(0.2, (9, 9))['dgl', 'a'][0], boxes_from_map(np.eye(3), (9, 9), 0.2)
    )


def test_a_method_or_a_layer_alone_names_a_map():
    maps = Maps({('dgl', 'a'): 1, ('dgl', 'b'): 2, ('cam', 'b'): 3})
    assert maps['dgl', 'b'] == 2 and maps['cam'] == 3 and maps['a'] == 1
    with pytest.raises(KeyError) as error:
        maps['dgl']
    assert str(error.value) == "2 maps go by 'dgl', take one of ('dgl', 'a'), ('dgl', 'b')"
    with pytest.raises(KeyError) as error:
        maps['dlg', 'a']
    known = "('dgl', 'a'), ('dgl', 'b'), ('cam', 'b')"
    assert str(error.value) == f"no map goes by ('dlg', 'a'); known: {known}"
    assert 'dgl' not in maps and maps.get('cam') is None


def test_maps_are_a_tree_of_arrays(result):
    host = jax.device_get(result.maps)
    assert list(host) == list(result.maps)
    assert all(isinstance(m, np.ndarray) for m in host.values())
    doubled = jax.jit(lambda maps: jax.tree.map(lambda m: 2 * m, maps))(result.maps)
    np.testing.assert_allclose(doubled['dgl', 'late'], 2 * result.maps['dgl', 'late'])


def test_names_of_the_classes(toy, photos):
    network = replace(toy, class_names=tuple('uvwxyz'))
    one = localize(network, photos[:2], classes=[4, 0])
    assert one.names == ['y', 'u']
    several = localize(network, photos[:2], classes=[[4, 0], [5]])
    assert several.names == [['y', 'u'], ['z', '']]
    assert "classes ['y', 'u'], maps" in repr(one)
    plain = localize(toy, photos[:2], classes=[4, 0])
    assert (plain.names, plain.class_names) == (['4', '0'], ())


def test_repr_is_short(result):
    classes = np.asarray(result.classes).tolist()
    assert repr(result).split('\n') == [
        f'Localization of 4 image(s), classes {classes}, maps:',
        "  ('grad_cam', 'early'): [4, 8, 8]",
        "  ('grad_cam', 'late'): [4, 4, 4]",
        "  ('dgl', 'early'): [4, 8, 8]",
        "  ('dgl', 'late'): [4, 4, 4]",
    ]
    many = {('dgl', f'{i}'): np.zeros((200, 99, 99)) for i in range(99)}
    text = repr(Localization(many, np.zeros((200, 5)), np.zeros(200, int)))
    assert len(text) < 1000 and 'classes [0, 0, 0, 0, 0, 0, 0, 0, ...]' in text
    assert text.endswith('88 more')
