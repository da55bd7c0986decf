from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from wsol_jax import Localization, boxes_from_map, overlay, score_map
from wsol_jax.pictures import show
from wsol_jax.report.overlay import BOX_COLOR, TRUE_COLOR, blend

# Viridis at 0, 3 / 4 and 1, as published.
DARK, UPPER, BRIGHT = np.array([[0x44, 0x01, 0x54], [0x5D, 0xC8, 0x63], [0xFD, 0xE7, 0x25]])
GREY = np.full((2, 8, 8, 3), 100, np.uint8)
BLOCK = np.zeros((8, 8), np.float32)
BLOCK[2:5, 1:6] = 1  # its box is 1, 2, 6, 5
MAPS = {('dgl', 'a'): np.stack([BLOCK, BLOCK.T]), ('cam', 'b'): np.stack([BLOCK, BLOCK])}


def grid(figure, lines):
    """Axes by lines and columns."""
    return np.array(figure.axes, object).reshape(lines, -1)


def picture(axes):
    (shown,) = axes.images
    return np.asarray(shown.get_array())


def boxes(axes, color):
    """x0, y0, x1, y1 of the rectangles of one colour."""
    found = [p for p in axes.patches if p.get_edgecolor()[:3] == rgb(color)]
    return [(*p.get_xy(), *np.add(p.get_xy(), (p.get_width(), p.get_height()))) for p in found]


def rgb(color):
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))


def localization(classes):
    classes = jnp.array(classes)
    maps = {k: jnp.array(m) for k, m in MAPS.items()}
    if classes.ndim == 2:
        maps = {k: jnp.stack([m, 1 - m], axis=1) for k, m in maps.items()}
    return Localization(maps, jnp.zeros((2, 9)), classes)


def test_a_line_an_image_and_a_column_a_map():
    images = GREY + np.array([0, 50], np.uint8)[:, None, None, None]
    cells = grid(show(images, MAPS), 2)
    assert [axes.get_title() for axes in cells[0]] == ['image', 'dgl\na', 'cam\nb']
    for line, image, maps in zip(cells, images, zip(*MAPS.values(), strict=True), strict=True):
        np.testing.assert_array_equal(picture(line[0]), image)
        for axes, scores in zip(line[1:], maps, strict=True):
            level = image[0, 0, 0]
            expected = np.where(scores[..., None] == 1, BRIGHT, DARK) * 0.6 + level * 0.4
            np.testing.assert_allclose(picture(axes), expected, atol=1)
            assert not axes.patches and not axes.get_xlabel()


def test_blend_keeps_four_tenths_of_the_image():
    image = np.array([[[0, 100, 255], [0, 100, 255]]], np.uint8)
    mixed = blend(image, np.array([[0.0, 1.0]]))
    assert mixed.dtype == np.uint8
    # 0.6 (68, 1, 84) and 0.6 (253, 231, 37), each plus 0.4 (0, 100, 255)
    np.testing.assert_allclose(mixed, [[[41, 41, 152], [152, 179, 124]]], atol=1)


def test_only_methods_that_end_in_a_relu_are_rectified():
    signed = np.zeros((1, 8, 8))
    signed[0, 0, 0], signed[0, 7, 7] = -3.0, 1.0
    names = ['grad_cam', 'cam', 'grad_cam+cam', 'mine']
    cells = grid(show(GREY[:1], {(n, 'a'): signed for n in names}), 1)[0]
    corner, middle = [[picture(axes)[i, i] for axes in cells[1:]] for i in (0, 4)]
    # Zero is the least of a rectified map; of the others it is 3 / 4 of the way up.
    np.testing.assert_allclose(corner, [0.6 * DARK + 40] * 4, atol=1)
    np.testing.assert_allclose(middle, [0.6 * DARK + 40, *[0.6 * UPPER + 40] * 3], atol=1)


def test_boxes_and_their_overlap_with_true_ones():
    # Both ends inclusive: 6 x 4 pixels of 6 x 7; no overlap at all for the second image's box.
    truth = [[(7, 7, 7, 7), (1, 2, 6, 8)], [(7, 0, 7, 0)]]
    cells = grid(show(GREY, MAPS, threshold=0.3, truth=truth), 2)
    assert boxes(cells[0, 1], BOX_COLOR) == [(1, 2, 6, 5)]
    assert boxes(cells[1, 1], BOX_COLOR) == [(2, 1, 5, 6)]
    for line, true in zip(cells, truth, strict=True):
        assert all(boxes(axes, TRUE_COLOR) == true for axes in line)
        assert not boxes(line[0], BOX_COLOR)
    labels = [[axes.get_xlabel() for axes in line] for line in cells]
    assert labels == [['', 'IoU 0.57', 'IoU 0.57'], ['', 'IoU 0.00', 'IoU 0.00']]


def test_boxes_are_those_of_boxes_from_map():
    smooth = np.random.default_rng(0).random((1, 4, 4))
    images = [np.zeros((30, 50, 3), np.uint8)]
    drawn = {}
    for threshold in (0.2, 0.7):
        axes = show(images, {('cam', 'a'): smooth}, threshold=threshold).axes[1]
        (drawn[threshold],) = boxes(axes, BOX_COLOR)
        assert drawn[threshold] == tuple(boxes_from_map(smooth[0], (50, 30), threshold)[0])
    assert drawn[0.2] != drawn[0.7]


def test_boxes_are_those_of_the_result():
    raw = np.random.default_rng(1).normal(size=(1, 5, 5))
    keys = [('grad_cam', 'a'), ('mine', 'a'), ('dgl', 'a')]
    maps, classes = dict.fromkeys(keys, raw), np.zeros(1, int)
    result = Localization(
        maps, np.zeros((1, 3)), classes, dict.fromkeys(keys[:2], True), [(50, 30)]
    )
    axes = show(np.zeros((30, 50, 3), np.uint8), result, threshold=0.4).axes[1:]
    found = [boxes(a, BOX_COLOR)[0] for a in axes]
    assert found == [tuple(b[0][0]) for b in result.boxes(0.4).values()]
    assert found[0] == found[1] != found[2]  # the third has no ReLU


def test_images_as_localize_takes_them(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    forms = [tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(image), image / 255]
    figure = show(forms, {('cam', 'a'): np.zeros((4, 2, 2))})
    for axes in grid(figure, 4)[:, 0]:
        np.testing.assert_array_equal(picture(axes), image)
    assert len(show(forms[0], {('cam', 'a'): np.zeros((1, 2, 2))}).axes) == 2


def test_a_large_photo_is_drawn_small_and_keeps_its_boxes():
    raw = np.random.default_rng(2).random((1, 5, 5))
    figure = show(
        np.zeros((1, 1500, 3000, 3), np.uint8),
        {('cam', 'a'): raw},
        threshold=0.6,
        truth=[[(0, 0, 2999, 1499)]],
    )
    image, axes = figure.axes
    assert picture(image).shape == picture(axes).shape == (512, 1024, 3)
    assert axes.get_xlim() == (-0.5, 2999.5) and axes.get_ylim() == (1499.5, -0.5)
    assert boxes(axes, BOX_COLOR) == [tuple(boxes_from_map(raw[0], (3000, 1500), 0.6)[0])]
    assert show(np.zeros((1, 1, 3000, 3), np.uint8), {('cam', 'a'): raw}, threshold=0.6)


def test_no_overlap_is_written_without_true_boxes():
    # Of the second image: 4 x 4 pixels and 4 x 6 (or 6 x 4), 2 x 3 (or 3 x 2) in both.
    axes = show(GREY, MAPS, threshold=0.3, truth=[[], [(0, 0, 3, 3)]]).axes
    assert [a.get_xlabel() for a in axes] == ['', '', '', '', 'IoU 0.18', 'IoU 0.18']
    assert not any(a.get_xlabel() for a in show(GREY, MAPS, threshold=0.3).axes)


def test_images_of_any_sizes():
    images = [np.zeros((8, 16, 3), np.uint8), np.zeros((24, 8, 3), np.uint8)]
    cells = grid(show(images, {('cam', 'a'): np.stack([BLOCK] * 2)}, threshold=0.5), 2)
    assert [picture(line[1]).shape for line in cells] == [(8, 16, 3), (24, 8, 3)]
    ends = [boxes(line[1], BOX_COLOR)[0] for line in cells]
    np.testing.assert_allclose(ends, [(2, 2, 12, 5), (1, 6, 6, 15)], atol=1)


def test_classes_stand_at_the_left():
    cells = grid(show(GREY, localization([4, -1])), 2)
    assert [[axes.get_ylabel() for axes in line] for line in cells] == [
        ['class 4', '', ''],
        ['', '', ''],
    ]


def test_names_of_classes_stand_there_where_they_are_known():
    result = replace(localization([[4, -1], [8, 1]]), class_names=tuple('abcdefghi'))
    cells = grid(show(GREY, result), 3)
    assert [line[0].get_ylabel() for line in cells] == ['e', 'i', 'b']


@pytest.mark.slow
def test_several_classes_have_a_line_each():
    cells = grid(show(GREY, localization([[4, 0], [8, 1]]), threshold=0.5), 4)
    assert [line[0].get_ylabel() for line in cells] == ['class 4', 'class 0', 'class 8', 'class 1']
    assert boxes(cells[0, 1], BOX_COLOR) == [(1, 2, 6, 5)]
    assert boxes(cells[1, 1], BOX_COLOR) == [(0, 0, 7, 7)]  # what is around the block
    assert boxes(cells[2, 1], BOX_COLOR) == [(2, 1, 5, 6)]


def test_no_line_where_an_image_has_fewer_classes():
    cells = grid(show(GREY, localization([[4, -1], [8, 1]]), threshold=0.5), 3)
    assert [line[0].get_ylabel() for line in cells] == ['class 4', 'class 8', 'class 1']
    assert boxes(cells[1, 1], BOX_COLOR) == [(2, 1, 5, 6)]


def test_keys_choose_and_order():
    figure = show(GREY, localization([4, 5]), keys=[('cam', 'b'), ('dgl', 'a')])
    assert [axes.get_title() for axes in figure.axes[:3]] == ['image', 'cam\nb', 'dgl\na']
    figure = show(GREY, localization([4, 5]), keys=[('cam', 'b')], threshold=0.5)
    assert len(figure.axes) == 4 and boxes(figure.axes[3], BOX_COLOR) == [(1, 2, 6, 5)]


def test_lines_side_by_side():
    images = np.stack([np.full((4, 4, 3), 10 * i, np.uint8) for i in range(3)])
    figure = show(images, {('cam', 'a'): np.random.default_rng(0).random((3, 2, 2))}, columns=2)
    cells = grid(figure, 2)
    assert [axes.get_title() for axes in cells[0]] == ['image', 'cam\na'] * 2
    assert [picture(cells[i][j])[0, 0, 0] for i, j in ((0, 0), (0, 2), (1, 0))] == [0, 10, 20]
    assert [axes.axison for axes in cells[1]] == [True, True, False, False]
    width, height = figure.get_size_inches()
    assert (width, height) == pytest.approx((4 * 1.6, 2 * 1.6 + 0.4))
    assert len(show(images, {('cam', 'a'): np.zeros((3, 2, 2))}, columns=9).axes) == 6


def test_a_blank_map_is_dark():
    for blank in (np.zeros((1, 4, 4)), np.full((1, 4, 4), np.nan)):
        axes = show(GREY[:1], {('grad_cam', 'a'): blank}, threshold=0.5).axes[1]
        np.testing.assert_allclose(
            picture(axes), np.broadcast_to(0.6 * DARK + 40, (8, 8, 3)), atol=1
        )


def test_the_figure_is_returned_and_not_left_open(tmp_path):
    before = pyplot.get_fignums()
    figure = show(GREY, MAPS)
    assert isinstance(figure, Figure) and pyplot.get_fignums() == before
    figure.savefig(tmp_path / 'f.png')
    assert (tmp_path / 'f.png').stat().st_size > 1000


ONE = {('dgl', 'a'): np.zeros((2, 4, 4))}
ERRORS = {
    'float': ((GREY / 1.0, ONE), {}, r'must lie in \[0, 1\], got \[100, 100\]; pass 0..255'),
    'one image': ((GREY[0], ONE), {}, r'must be \[1,h,w\].* got \[2, 4, 4\]'),
    'grey': ((GREY[..., :1], ONE), {}, r'\[B,H,W,3\], got \[2, 8, 8, 1\]; grey: pass x.repeat'),
    'size': ((np.zeros((2, 3, 8, 8), np.uint8), ONE), {}, r'x.transpose\(0, 2, 3, 1\)'),
    'no image': ((GREY[:0], ONE), {}, 'no images'),
    'no map': ((GREY, {}), {}, 'no maps'),
    'count': ((GREY[:1], ONE), {}, r"maps of \('dgl', 'a'\) must be \[1,h,w\].* got \[2, 4, 4\]"),
    'flat': ((GREY, {('dgl', 'a'): np.zeros((2, 4))}), {}, r'got \[2, 4\]'),
    'classes': (
        (GREY, {**ONE, ('cam', 'a'): np.zeros((2, 5, 4, 4))}),
        {},
        r"maps of \('cam', 'a'\) must be .* got \[2, 5, 4, 4\]",
    ),
    'key': (
        (GREY, ONE),
        {'keys': [('dgl', 'b')]},
        r"unknown \(method, layer\) .*did you mean \"\('dgl', 'a'\)\"",
    ),
    'key as a name': ((GREY, ONE), {'keys': ['dgl']}, "unknown .method, layer. 'dgl'"),
    'truth count': ((GREY, ONE), {'truth': [[]]}, 'truth must hold boxes for 2 images, got 1'),
    'truth shape': (
        (GREY, ONE),
        {'truth': [[], [1, 2, 3, 4]]},
        r'truth\[1\] must be boxes \[m,4\], got \[4\]',
    ),
    'threshold': ((GREY, ONE), {'threshold': 1.5}, r'lie in \[0, 1\), got \[1.5\]'),
    'columns': ((GREY, ONE), {'columns': 0}, 'columns must be at least 1, got 0'),
}


@pytest.mark.parametrize('case', ERRORS)
def test_what_is_wrong_is_said(case):
    arguments, options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message) as error:
        show(*arguments, **options)
    assert '\n' not in str(error.value)
    assert not pyplot.get_fignums()


def test_an_overlay_has_the_size_of_the_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # displayed turned by a quarter, clockwise
    Image.fromarray(image).save(tmp_path / 'a.png', exif=exif)
    raw = np.random.default_rng(1).random((3, 4))
    for given in (image, image[None], image / 255, Image.fromarray(image), [image]):
        found = overlay(given, raw)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, blend(image, score_map(raw, (9, 6))))
    turned = np.rot90(image, -1)
    for given in (tmp_path / 'a.png', str(tmp_path / 'a.png')):
        found = overlay(given, jnp.asarray(raw))
        np.testing.assert_array_equal(found, blend(turned, score_map(np.float32(raw), (6, 9))))


def test_an_overlay_of_a_deep_and_a_grey_file(tmp_path):
    deep = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / 'deep.png')
    Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / 'grey.png')
    for name in ('deep.png', 'grey.png'):
        found = overlay(tmp_path / name, BLOCK, opacity=0)
        np.testing.assert_allclose(found, np.stack([deep / 257] * 3, -1), atol=1)


def test_colours_and_opacity_of_an_overlay():
    image = GREY[0]
    np.testing.assert_array_equal(overlay(image, BLOCK, opacity=0), image)
    solid = overlay(image, BLOCK, opacity=1, colors='gray')
    np.testing.assert_array_equal(solid, 255 * BLOCK[..., None].astype(np.uint8).repeat(3, -1))
    half = overlay(image, BLOCK, opacity=0.5)
    np.testing.assert_allclose(half[3, 3], BRIGHT / 2 + 50, atol=1)
    np.testing.assert_allclose(half[0, 0], DARK / 2 + 50, atol=1)


def test_an_overlay_of_a_method_that_ends_in_a_relu():
    signed = np.zeros((8, 8))
    signed[0, 0], signed[7, 7] = -3.0, 1.0
    np.testing.assert_allclose(overlay(GREY[0], signed)[4, 4], 0.6 * UPPER + 40, atol=1)
    np.testing.assert_allclose(overlay(GREY[0], signed, relu=True)[4, 4], 0.6 * DARK + 40, atol=1)


@pytest.mark.parametrize(
    ('image', 'raw', 'options', 'message'),
    [
        (GREY, BLOCK, {}, 'an overlay is of one image, got 2'),
        (
            GREY[0],
            BLOCK[None],
            {},
            r'one map \[h,w\], got \[1, 8, 8\]; of one image take maps\[i\]',
        ),
        (GREY[0], BLOCK[0], {}, r'one map \[h,w\], got \[8\]$'),
        (GREY[0], BLOCK, {'opacity': 60}, r'opacity must be in \[0, 1\], got 60'),
        ('no.jpg', BLOCK, {}, 'no.jpg: no such file'),
    ],
)
def test_what_has_no_overlay(image, raw, options, message):
    with pytest.raises(ValueError, match=message):
        overlay(image, raw, **options)
