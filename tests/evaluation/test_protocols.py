"""Protocols on maps whose boxes follow by hand, and against slow loops of their own."""

import pickle

import cv2
import numpy as np
import pytest

from wsol_jax.evaluation.protocols import (
    NAMES,
    PROTOCOLS,
    BoxProtocol,
    protocol,
    protocol_right,
    protocol_scores,
)
from wsol_jax.maps.boxes import boxes_from_map

NOTHING = [[0, 0, 0, 0]]


def blank(height, width, level=0.0):
    return np.full((height, width), level)


def with_block(heat, rows, columns, level):
    heat[slice(*rows), slice(*columns)] = level
    return heat


def boxes(name, heat, canvas=None, **options):
    """Boxes on a canvas of the size of the map, where a resize changes nothing, or another."""
    return PROTOCOLS[name](**options).boxes(heat, canvas or heat.shape[::-1]).tolist()


def components(foreground, steps):
    """Sets of (row, column), in the order of their first pixels by rows; a flood fill."""
    left, found = set(zip(*np.nonzero(foreground), strict=True)), []
    for start in sorted(left):
        if start in left:
            left.remove(start)
            part, border = {start}, [start]
            while border:
                y, x = border.pop()
                near = {(y + dy, x + dx) for dy, dx in steps} & left
                left -= near
                part |= near
                border += near
            found.append(part)
    return found


STRAIGHT = [(0, 1), (1, 0), (0, -1), (-1, 0)]
AROUND = [*STRAIGHT, (1, 1), (1, -1), (-1, 1), (-1, -1)]


def box_around(part, margin=0):
    rows, columns = zip(*part, strict=True)
    low = [min(columns) - margin, min(rows) - margin]
    return [*low, max(columns) + 1 + margin, max(rows) + 1 + margin]


# cvpr16


def test_cvpr16_divides_by_the_maximum_and_subtracts_nothing():
    heat = with_block(blank(6, 8, 1.0), (1, 4), (2, 5), 10)
    assert boxes('cvpr16', heat) == [[2, 1, 5, 4]]
    heat[heat == 1] = 3  # 0.3 of the maximum; min-max would make it 0
    assert boxes('cvpr16', heat)[0] == [0, 0, 7, 5]
    assert boxes_from_map(heat, (8, 6), 0.2).tolist() == [[2, 1, 5, 4]]
    assert boxes('cvpr16', heat, threshold=0.35) == [[2, 1, 5, 4]]


def test_cvpr16_takes_a_fifth_and_not_a_fifth_exactly():
    heat = with_block(blank(6, 8), (1, 4), (2, 5), 10)
    for level, expected in ((2.0, [2, 1, 5, 4]), (2.1, [0, 1, 5, 4])):
        assert boxes('cvpr16', with_block(heat, (1, 4), (0, 2), level))[0] == expected


@pytest.mark.parametrize('level', [-2.0, 0.0, 3.0, np.nan])
def test_cvpr16_of_a_blank_map(level):
    assert boxes('cvpr16', blank(4, 5, level)) == NOTHING


def test_cvpr16_where_nothing_is_positive():
    assert boxes('cvpr16', -np.arange(1.0, 21).reshape(4, 5)) == NOTHING
    assert boxes('cvpr16', with_block(blank(6, 8, -9.0), (1, 4), (2, 5), 1)) == [[2, 1, 5, 4]]


def test_cvpr16_has_the_largest_polygon_first():
    heat = blank(12, 30)
    heat[1, 1:29] = 1  # 28 pixels, polygon of area 0
    heat[5:9, 3:7] = 1  # 16 pixels, polygon of area 9
    assert boxes('cvpr16', heat) == [[3, 5, 7, 9], [1, 1, 29, 2]]


# cam-paper


def test_cam_paper_takes_the_component_of_most_pixels():
    heat = blank(12, 30)
    heat[1, 1:29] = 1
    heat[5:9, 3:7] = 1
    assert boxes('cam-paper', heat) == [[1, 1, 28, 1]]  # both ends inside


def test_cam_paper_takes_more_than_a_fifth():
    heat = with_block(blank(6, 8), (1, 4), (2, 5), 10)
    for level, expected in ((2.0, [2, 1, 4, 3]), (2.1, [0, 1, 4, 3])):
        assert boxes('cam-paper', with_block(heat, (1, 4), (0, 2), level)) == [expected]
    assert boxes('cam-paper', heat, threshold=0.3) == [[2, 1, 4, 3]]


def test_cam_paper_of_special_maps():
    assert boxes('cam-paper', blank(4, 5, 3.0)) == [[0, 0, 4, 3]]
    for heat in (blank(4, 5), blank(4, 5, -3.0), blank(4, 5, np.nan)):
        assert boxes('cam-paper', heat) == NOTHING
    assert boxes('cam-paper', -np.arange(1.0, 21).reshape(4, 5)) == NOTHING


def test_cam_paper_touches_diagonally_and_the_first_of_a_tie_wins():
    heat = blank(8, 12)
    heat[6:8, 0:2] = heat[2:4, 8:10] = heat[4:6, 10:12] = 1
    assert boxes('cam-paper', heat) == [[8, 2, 11, 5]]
    heat[6:8, 2:4] = 1
    assert boxes('cam-paper', heat) == [[8, 2, 11, 5]]  # 8 pixels each


def test_cam_paper_resizes_bilinearly():
    # 0 1 in four places: 0, 1/4, 3/4, 1.
    assert boxes('cam-paper', np.array([[0.0, 1.0]]), (4, 1)) == [[1, 0, 3, 0]]
    assert boxes('cam-paper', np.array([[0.0, 1.0]]), (4, 1), threshold=0.24) == [[1, 0, 3, 0]]
    assert boxes('cam-paper', np.array([[0.0, 1.0]]), (4, 1), threshold=0.25) == [[2, 0, 3, 0]]


# bas


def test_bas_box_ends_behind_the_last_pixel():
    heat = with_block(blank(6, 8, 2.0), (3, 6), (5, 8), 4)
    assert boxes('bas', heat) == [[5, 3, 8, 6]]
    with_block(heat, (0, 2), (0, 7), 3)  # scaled to exactly the threshold
    assert boxes('bas', heat) == [[5, 3, 8, 6]]
    assert boxes('bas', with_block(heat, (0, 2), (0, 7), 3.1)) == [[0, 0, 7, 2]]
    assert boxes('bas', heat, threshold=0.6) == [[5, 3, 8, 6]]


def test_bas_scales_before_it_resizes():
    # 0 1 0 in six places: 0, 1/4, 3/4, 3/4, 1/4, 0; scaled afterwards 3/4 would be 1.
    heat = np.array([[0.0, 1.0, 0.0]])
    assert boxes('bas', heat, (6, 1), threshold=0.74) == [[2, 0, 4, 1]]
    assert boxes('bas', heat, (6, 1), threshold=0.76) == [[0, 0, 6, 1]]


@pytest.mark.parametrize('level', [-2.0, 0.0, 0.9, np.nan])
def test_bas_where_nothing_is_found(level):
    assert boxes('bas', blank(4, 5, level), (224, 100)) == [[0, 0, 224, 100]]


def test_bas_holes_are_not_counted():
    heat = blank(12, 24)
    heat[1:11, 1:11] = 1
    heat[2:10, 2:10] = 0  # 36 pixels are left
    heat[3:9, 14:21] = 1  # 42
    assert boxes('bas', heat) == [[14, 3, 21, 9]]


@pytest.mark.parametrize('seed', range(8))
def test_largest_component_by_a_flood_fill(seed):
    heat = (np.random.default_rng(seed).random((23, 31)) > 0.72).astype(float)
    found = components(heat, AROUND)
    most = max(len(part) for part in found)
    expected = box_around(next(part for part in found if len(part) == most))
    assert boxes('bas', heat) == [expected]
    assert boxes('cam-paper', heat) == [[*expected[:2], expected[2] - 1, expected[3] - 1]]


@pytest.mark.parametrize('seed', range(20))
def test_ties_go_to_the_first_by_rows(seed):
    rng = np.random.default_rng(seed)
    heat = blank(12, 12)
    for y, x in rng.permutation([(y, x) for y in range(0, 12, 3) for x in range(0, 12, 3)])[:6]:
        at = y + rng.integers(2), x + rng.integers(2)
        heat[at] = 1
    y, x = np.argwhere(heat)[0]
    assert boxes('bas', heat) == [[x, y, x + 1, y + 1]]


# layercam


def test_layercam_takes_the_largest_rectangle():
    heat = blank(256, 256)
    for i in range(50):
        heat[10 + i, 20 + i] = 1  # a rectangle of 2500 with 50 pixels
    heat[100:140, 100:140] = 1
    assert boxes('layercam', heat) == [[20, 10, 70, 60]]
    assert boxes('layercam', with_block(heat, (205, 256), (206, 256), 1)) == [[206, 205, 256, 256]]


def test_layercam_cuts_255_values():
    heat = with_block(blank(256, 256), (10, 20), (10, 20), 255.0)
    for level, expected in ((38.9, [10, 10, 20, 20]), (39.1, [10, 10, 30, 20])):
        assert boxes('layercam', with_block(heat, (10, 20), (20, 30), level)) == [expected]
    for threshold, level in ((0.2, 51), (0.9, 229)):
        for more, expected in ((0.5, [10, 10, 20, 20]), (1.5, [10, 10, 30, 20])):
            with_block(heat, (10, 20), (20, 30), level + more)
            assert boxes('layercam', heat, threshold=threshold) == [expected]


def test_layercam_leaves_negative_values_out():
    heat = with_block(blank(256, 256, -100.0), (10, 20), (10, 30), 1.0)
    assert boxes('layercam', heat) == [[10, 10, 30, 20]]


def test_layercam_goes_by_way_of_256_pixels_in_8_bits():
    # Column 50 of 256 is the mean of 100 and 101 of 512: 127. Of the bicubic resize back, column
    # 100 is 0.8789 * 127 - 0.1055 * 255 = 85, and column 99 is 0.2617 * 127 - 0.0352 * 255 = 24.
    heat = with_block(blank(512, 512), (0, 512), (101, 512), 1.0)
    assert boxes('layercam', heat) == [[100, 0, 512, 512]]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('level', [-2.0, 0.0, np.nan, np.inf])
def test_layercam_where_nothing_is_found(level):
    assert boxes('layercam', blank(7, 7, level), (30, 20)) == [[0, 0, 1, 1]]


def test_layercam_on_a_constant_map_and_an_image_of_another_size():
    assert boxes('layercam', blank(7, 7, 0.1), (30, 20)) == [[0, 0, 30, 20]]
    right = with_block(blank(256, 256), (0, 256), (128, 256), 1.0)
    assert boxes('layercam', right, (128, 64)) == [[64, 0, 128, 64]]


# ornet


def test_ornet_is_the_extent_of_everything_above():
    heat = blank(4, 4, 0.5)  # at the threshold, not above
    heat[1, 0] = heat[2, 3] = 0.51
    assert boxes('ornet', heat, (16, 16)) == [[0, 4, 12, 8]]  # last places times 4
    assert boxes('ornet', heat, (16, 16), threshold=0.4) == [[0, 0, 12, 12]]
    assert boxes('ornet', heat, (10, 6)) == [[0, 1, 7, 3]]
    assert boxes('ornet', heat[1:3], (16, 16)) == [[0, 0, 12, 8]]


@pytest.mark.parametrize('level', [0.0, 0.5, np.nan])
def test_ornet_where_nothing_is_found(level):
    assert boxes('ornet', blank(56, 56, level), (224, 224)) == [[0, 0, 224, 224]]


def test_ornet_of_one_place_is_never_right():
    heat = with_block(blank(4, 4), (2, 3), (2, 3), 1.0)
    assert boxes('ornet', heat, (16, 16)) == [[8, 8, 8, 8]]
    for truth in ([8, 8, 8, 8], [8, 8, 9, 9], [8, 8, 12, 12]):
        assert not PROTOCOLS['ornet']().right(np.array([[8, 8, 8, 8]]), np.array([truth]))


def test_ornet_compares_in_double_precision():
    heat = np.full((2, 2), 0.6, np.float32)  # 0.60000002
    assert boxes('ornet', heat, (4, 4), threshold=0.6) == [[0, 0, 2, 2]]


@pytest.mark.parametrize('wrong', [-0.1, 1.5])
def test_ornet_is_for_sigmoids(wrong):
    with pytest.raises(ValueError, match=r'ornet is for maps out of a sigmoid, in \[0, 1\]; got'):
        boxes('ornet', np.array([[0.2, wrong]]))


# psol


def test_psol_takes_the_standard_box():
    heat = np.random.default_rng(4).normal(size=(7, 7))
    expected = boxes_from_map(heat, (50, 40), 0.3).tolist()
    assert boxes('psol', heat, (50, 40), threshold=0.3) == expected
    assert boxes('psol', heat, (50, 40), threshold=0.7) != expected


# cam-heuristic


def squares(*levels_and_sides):
    """Squares around the middle of 256 x 256 pixels."""
    heat = blank(256, 256)
    for level, side in levels_and_sides:
        ends = (128 - side // 2, 128 + side // 2)
        with_block(heat, ends, ends, level)
    return heat


def test_heuristic_loose_and_tight():
    # The outer square is 60 deep and its kept core 3 or more: 255 * 3 / 60 rounds to 13, with 2
    # to 9. The inner one is 20 deep; all of it is kept, by two cuts: one box is erased.
    heat = squares((50, 120), (255, 40))
    loose, tight = [70, 70, 186, 186], [108, 108, 148, 148]
    assert boxes('cam-heuristic', heat) == [loose, tight]
    assert boxes('cam-heuristic', -heat) == [loose, tight]  # the magnitude counts
    assert boxes('cam-heuristic', 1e-6 * heat) == [loose, tight]


def test_heuristic_cuts_above_20_100_and_110():
    inner = (255, 40)
    assert len(boxes('cam-heuristic', squares((20, 120), inner))) == 2
    assert boxes('cam-heuristic', squares((20, 120), inner))[0] == [108, 108, 148, 148]
    assert boxes('cam-heuristic', squares((21, 120), inner))[0] == [70, 70, 186, 186]
    # At 100 the wide square is in the first cut alone, at 101 in two, at 111 in all three.
    assert len(boxes('cam-heuristic', squares((100, 120), inner))) == 2
    assert boxes('cam-heuristic', squares((101, 120), inner)) == [
        [70, 70, 186, 186],
        [108, 108, 148, 148],
    ]
    assert boxes('cam-heuristic', squares((110, 120), inner))[1] == [108, 108, 148, 148]
    assert boxes('cam-heuristic', squares((111, 120), inner)) == 2 * [[70, 70, 186, 186]]


def test_heuristic_skips_the_box_behind_an_erased_one():
    # Cores of 116, 106 and 96 pixels a side overlap by more than half; the third is skipped.
    heat = squares((50, 120), (105, 110), (255, 100))
    assert boxes('cam-heuristic', heat) == [[70, 70, 186, 186], [80, 80, 176, 176]]


@pytest.mark.parametrize('left', [98, 100])
def test_heuristic_overlap_of_half_is_kept(left):
    # The three cuts give 40 x 80 pixels, 40 x 40 or 40 x 42 of them, and 10 x 10.
    heat = with_block(blank(256, 256), (100, 140), (60, 140), 50)
    with_block(with_block(heat, (100, 140), (left, 140), 105), (115, 125), (115, 125), 255)
    wide, half, small = [60, 100, 140, 140], [left, 100, 140, 140], [115, 115, 125, 125]
    kept = [wide, half, small] if left == 100 else [wide, small]
    assert boxes('cam-heuristic', heat) == kept


def test_heuristic_stays_off_the_right_and_lower_border():
    heat = with_block(blank(256, 256), (100, 156), (200, 256), 1.0)
    assert boxes('cam-heuristic', heat) == 2 * [[201, 101, 251, 155]]
    assert boxes('cam-heuristic', heat.T) == 2 * [[101, 201, 155, 251]]
    corner = with_block(blank(256, 256), (0, 56), (0, 56), 1.0)
    assert boxes('cam-heuristic', corner)[0] == [0, 0, 54, 54]


@pytest.mark.parametrize('side', [48, 50])
def test_heuristic_rounds_the_distance(side):
    # The outermost pixels are at 255 / 24 = 10.6, which counts as 11, or 255 / 25 = 10.2 as 10.
    assert boxes('cam-heuristic', squares((255, side))) == 2 * [[104, 104, 152, 152]]


def test_heuristic_measures_the_euclidean_distance():
    # A diamond of 79 pixels each way is 80 / sqrt(2) = 56.6 deep. 2 pixels before its tip the
    # background is sqrt(5) away, of 255 a 10.1; 3 pixels before it sqrt(8), a 12.8.
    y, x = np.mgrid[:256, :256] - 128
    heat = (abs(x) + abs(y) <= 79).astype(float)
    assert boxes('cam-heuristic', heat) == 2 * [[52, 52, 205, 205]]


def test_heuristic_of_a_ring():
    ring, hole = [68, 68, 188, 188], [97, 97, 159, 159]
    assert boxes('cam-heuristic', squares((255, 120), (0, 60))) == [ring, ring, hole, hole]


@pytest.mark.filterwarnings('error')
def test_heuristic_of_blank_maps():
    assert boxes('cam-heuristic', blank(7, 7), (30, 20)) == NOTHING
    assert boxes('cam-heuristic', blank(7, 7, np.nan), (30, 20)) == NOTHING
    assert boxes('cam-heuristic', blank(7, 7, np.inf), (30, 20)) == NOTHING
    assert boxes('cam-heuristic', blank(7, 7, 2.0), (30, 20)) == 2 * [[0, 0, 25, 15]]
    assert boxes('cam-heuristic', blank(7, 7, 2.0), (4, 3)) == 3 * NOTHING


def literal_core(foreground):
    inside, outside = np.argwhere(foreground), np.argwhere(~foreground)
    if not len(inside) or not len(outside):
        return foreground
    steps = inside[:, None] - outside[None]
    depth = np.sqrt((steps**2).sum(axis=2)).min(axis=1)
    core = np.zeros_like(foreground)
    core[tuple(inside.T)] = np.floor(depth * 255 / depth.max() + 0.5) > 10
    return core


def literal_boxes(core):
    height, width = core.shape
    found = [box_around(part) for part in components(core, AROUND)]
    for part in components(~core, STRAIGHT):
        if all(0 < y < height - 1 and 0 < x < width - 1 for y, x in part):
            found.append(box_around(part, margin=1))
    return [[min(v, end - 5) for v, end in zip(b, 2 * [width, height], strict=True)] for b in found]


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def literal_merge(found):
    found = sorted(found, key=area, reverse=True)
    i = 0
    while i < len(found):
        j = i + 1
        while j < len(found):
            a, b = found[i], found[j]
            wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
            high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
            if wide * high > int(max(area(a), area(b)) * 0.5):
                del found[j]
            j += 1
        i += 1
    return found


@pytest.mark.slow
def test_heuristic_equals_a_slow_one():
    compared = 0
    for seed in range(40):
        raw = np.random.default_rng(seed).normal(size=(5, 5))
        square = np.abs(cv2.resize(raw, (256, 256), interpolation=cv2.INTER_CUBIC))
        heat = np.clip(cv2.resize(square, (64, 56), interpolation=cv2.INTER_CUBIC), 0, None)
        grey = np.floor(255 * heat / heat.max() + 0.5)
        found = [b for cut in (20, 100, 110) for b in literal_boxes(literal_core(grey > cut))]
        different = {tuple(b) for b in found if area(b)}
        if len({area(b) for b in different}) == len(different):  # no tie to break
            compared += 1
            made = boxes('cam-heuristic', raw, (64, 56))
            # Boxes without area, in the border that is left out, come last in any order.
            assert [b for b in made if area(b)] == [b for b in literal_merge(found) if area(b)]
    assert compared >= 10


# When a box is right


@pytest.mark.parametrize(
    ('box', 'plain', 'plus_one'),
    [
        ([0, 0, 9, 4], 36 / 81, 50 / 100),
        ([0, 0, 9, 9], 1, 1),
        ([0, 0, 5, 8], 40 / 81, 54 / 100),
        ([20, 20, 30, 30], 0, 0),
        ([9, 0, 12, 9], 0, 10 / 130),
        ([0, 0, 0, 9], 0, 10 / 100),
    ],
)
def test_overlap_with_and_without_the_last_pixel(box, plain, plus_one):
    found, truth = np.array([box]), np.array([[0, 0, 9, 9], [40, 40, 50, 50]])
    for overlap, rule in ((plain, False), (plus_one, True)):
        for strict in (False, True):
            made = BoxProtocol('test', boxes, plus_one=rule, strict=strict)
            assert made.right(found, truth) == (overlap > 0.5 or (overlap == 0.5 and not strict))


def test_a_half_is_a_half_without_the_last_pixel():
    found, truth = np.array([[0, 0, 5, 10]]), np.array([[0, 0, 10, 10]])
    assert BoxProtocol('test', boxes, plus_one=False).right(found, truth)
    assert not BoxProtocol('test', boxes, plus_one=False, strict=True).right(found, truth)
    assert not BoxProtocol('test', boxes).right(found[:0], truth)


# The rules of each, as published: +1, strict, macro, in the stored image, boxes for Top-5.
RULES = {
    'cvpr16': (True, False, False, False, (1, 1, 1, 1, 1)),
    'cam-paper': (True, False, False, True, (1, 1, 1, 1, 1)),
    'cam-heuristic': (True, False, False, True, (2, 2, 1, 0, 0)),
    'bas': (True, True, True, False, (1, 1, 1, 1, 1)),
    'psol:0.2': (False, True, True, False, (1, 1, 1, 1, 1)),
    'layercam': (True, False, False, True, (1, 1, 1, 1, 1)),
    'ornet': (False, True, False, False, (1, 1, 1, 1, 1)),
}


@pytest.mark.parametrize('text', RULES)
def test_rules(text):
    made = protocol(text)
    rules = (made.plus_one, made.strict, made.macro, made.original_size, made.top5)
    assert rules == RULES[text]


def test_every_protocol_has_its_rules_here():
    assert [text.partition(':')[0] for text in RULES] == list(PROTOCOLS)


def test_true_boxes_on_the_canvas():
    truth, sizes = np.array([[1, 1, 11, 22]]), ((20, 40), (10, 10))
    assert protocol('cvpr16').truth(truth, *sizes).tolist() == [[0, 0, 5, 5]]
    for name in ('bas', 'ornet'):
        assert protocol(name).truth(truth, *sizes).tolist() == [[0.5, 0.25, 5.5, 5.5]]
    assert protocol('psol:0.2').truth(truth, *sizes).tolist() == [[0, 0, 5, 5.25]]
    for name in ('cam-paper', 'cam-heuristic', 'layercam'):
        assert protocol(name).truth(truth, (20, 40), (20, 40)).tolist() == truth.tolist()


# Scores: maps that are their own boxes


def as_it_is(raw, size):
    return raw.astype(int)


RIGHT, WRONG = [0, 0, 9, 9], [50, 50, 60, 60]
ALL = NAMES


def scores_of(images, target='ground_truth', **rules):
    """Scores of (boxes of each class, classes, ranked, label)."""
    made, right, labels = (
        BoxProtocol('test', as_it_is, **rules),
        np.zeros((len(images), 3), bool),
        [],
    )
    for i, (maps, classes, ranked, label) in enumerate(images):
        raw = np.array(maps, float).reshape(len(classes) or 1, -1, 4)
        sizes = (100, 100), (100, 100)
        right[i] = protocol_right(made, raw, classes, ranked, label, [RIGHT], *sizes)
        labels.append(-1 if label is None else label)
    return protocol_scores(made, right, np.array(labels, int), target)


def known(right, label, ranked=(0, 1, 2, 3, 4)):
    return [RIGHT if right else WRONG], [label], ranked, label


def test_micro_and_macro():
    images = [known(True, 0), known(False, 0), known(False, 0), known(True, 1)]
    # Class 0: one of three; class 1, ranked second: one of one.
    micro = scores_of(images, 'ground_truth')
    assert micro == pytest.approx({'GTKnownLoc': 50, 'Top1Loc': 25, 'Top5Loc': 50})
    macro = scores_of(images, 'ground_truth', macro=True)
    expected = {'GTKnownLoc': 100 * (1 / 3 + 1) / 2, 'Top1Loc': 100 / 6, 'Top5Loc': 200 / 3}
    assert macro == pytest.approx(expected)


@pytest.mark.parametrize('rank', range(5))
@pytest.mark.parametrize('place', [0, 1])
def test_two_boxes_of_two_classes_and_one_of_the_third(rank, place):
    ranked = [7, 6, 5, 4, 3]
    label = ranked[rank]
    two = [RIGHT, WRONG] if place == 0 else [WRONG, RIGHT]
    scores = scores_of([([two], [label], ranked, label)], 'ground_truth', top5=(2, 2, 1, 0, 0))
    assert scores['GTKnownLoc'] == (100 if place == 0 else 0)
    assert scores['Top1Loc'] == (100 if (rank, place) == (0, 0) else 0)
    allowed = {(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)}
    assert scores['Top5Loc'] == (100 if (rank, place) in allowed else 0)


def test_one_box_of_each_of_five_classes():
    ranked = [7, 6, 5, 4, 3, 2]
    for label, expected in ((7, 100), (3, 100), (2, 0), (9, 0)):
        assert scores_of([known(True, label, ranked)], 'ground_truth')['Top5Loc'] == expected
        both = [([[WRONG, RIGHT]], [label], ranked, label)]
        assert scores_of(both, 'ground_truth') == dict.fromkeys(ALL, 0)


def test_top5_takes_the_map_of_the_label():
    classes = [7, 6, 5, 4, 3]
    maps = [WRONG, WRONG, RIGHT, WRONG, WRONG]
    for label, expected in ((5, 100), (7, 0), (4, 0)):
        scores = scores_of([(maps, classes, classes, label)], 'top5')
        assert scores == {'Top1Loc': 0, 'Top5Loc': expected}
    scores = scores_of([([RIGHT, *maps[1:]], classes, classes, 7)], 'top5')
    assert scores == {'Top1Loc': 100, 'Top5Loc': 100}


def test_top1_needs_the_map_of_the_label():
    ranked = [7, 6, 5, 4, 3]
    for maps_of, label, expected in ((7, 7, 100), (7, 6, 0), (6, 7, 0)):
        images = [([RIGHT], [maps_of], ranked, label)]
        assert scores_of(images, 'top1') == {'Top1Loc': expected}
        assert scores_of(images, '3') == {}


def test_maps_of_nobody_knows_what_class():
    for label in (None, 0):
        expected = {'GTKnownLoc': 100, 'Top1Loc': 0, 'Top5Loc': 0}
        assert scores_of([([RIGHT], [], [], label)]) == expected


def test_image_without_a_label():
    images = [([RIGHT], [7], [7, 6], None), known(True, 0)]
    assert scores_of(images, 'top1', macro=True) == {'Top1Loc': 50}


def test_nothing_counted():
    assert scores_of([], 'ground_truth') == {}
    assert scores_of([], 'ground_truth', macro=True) == {}


def test_canvas_or_stored_image():
    seen = []

    def whole(raw, size):
        seen.append(size)
        return np.array([[0, 0, *size]])

    for original, expected in ((False, (8, 8)), (True, (40, 20))):
        made = BoxProtocol('test', whole, original_size=original)
        truth, sizes = [[0, 0, 40, 20]], ((40, 20), (8, 8))
        assert protocol_right(made, np.zeros((1, 2, 2)), [0], [0], 0, truth, *sizes) == (True,) * 3
        assert seen.pop() == expected


def test_a_map_is_made_into_boxes_once():
    calls = []

    def counted(raw, size):
        calls.append(1)
        return as_it_is(raw, size)

    made, sizes = BoxProtocol('test', counted), ((100, 100), (100, 100))
    protocol_right(made, np.array([[RIGHT]]), [0], [0], 0, [RIGHT], *sizes)
    assert len(calls) == 1


# By name


def test_protocols_by_name():
    heat = np.array([[0.0, 0.3, 0.6, 1.0, 0.6, 0.3, 0.0, 0.0]])
    assert protocol('bas').boxes(heat, (8, 1)).tolist() == [[2, 0, 5, 1]]
    assert protocol('bas:0.25').boxes(heat, (8, 1)).tolist() == [[1, 0, 6, 1]]
    assert [protocol(text).name for text in ('bas', 'bas:0.25')] == ['bas', 'bas:0.25']


@pytest.mark.parametrize('text', ['bas:0', 'cvpr16:0.3', 'layercam:0.2', *RULES])
def test_protocols_go_to_other_processes(text):
    raw = np.random.default_rng(1).random((5, 5))
    made = pickle.loads(pickle.dumps(protocol(text)))
    assert (made.name, made.boxes(raw, (20, 30)).shape[1]) == (text, 4)
    np.testing.assert_array_equal(made.boxes(raw, (20, 30)), protocol(text).boxes(raw, (20, 30)))


def test_published_thresholds_are_the_defaults():
    raw = np.random.default_rng(2).random((6, 6))
    published = {'cvpr16': 0.2, 'cam-paper': 0.2, 'bas': 0.5, 'layercam': 0.15, 'ornet': 0.5}
    for name, threshold in published.items():
        same, other = (PROTOCOLS[name](threshold=t) for t in (threshold, 0.8))
        expected = PROTOCOLS[name]().boxes(raw, (60, 60)).tolist()
        assert same.boxes(raw, (60, 60)).tolist() == expected
        assert other.boxes(raw, (60, 60)).tolist() != expected


def test_misspelt_name():
    with pytest.raises(ValueError, match="unknown protocol 'orbet'; did you mean 'ornet'"):
        protocol('orbet:0.5')
    with pytest.raises(ValueError, match='known: cvpr16, cam-paper, cam-heuristic, bas, psol'):
        protocol('')


@pytest.mark.parametrize('value', ['1', '-0.1', 'nan', 'half', '', '0.1:0.2'])
def test_threshold_that_is_none(value):
    wanted = rf"threshold of a protocol is a number in \[0, 1\), not '{value}'"
    with pytest.raises(ValueError, match=wanted):
        protocol(f'bas:{value}')


def test_threshold_out_of_range_in_python():
    for name in ('cvpr16', 'cam-paper', 'bas', 'psol', 'layercam', 'ornet'):
        with pytest.raises(ValueError, match=r'is a number in \[0, 1\), not 20'):
            PROTOCOLS[name](threshold=20)


def test_threshold_missing_or_not_to_be_set():
    with pytest.raises(ValueError, match=r"protocol 'psol' needs a threshold, such as 'psol:0\.2'"):
        protocol('psol')
    with pytest.raises(ValueError, match="has no threshold to set; write 'cam-heuristic'"):
        protocol('cam-heuristic:0.2')
