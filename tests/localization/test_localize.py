"""The call for notebooks: layers, fusion, flip, scales, classes, and what it refuses."""

from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import ImageFolder, evaluation_batches
from wsol_jax.localization.localize import check_gradients, compute_maps, localize
from wsol_jax.localization.plan import make_plan


def assert_close(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    assert np.ptp(expected) > 0
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def fuse(maps, how='mean'):
    """Min-max, resize to the largest, combine: maps [B,h,w] in float64 with OpenCV."""
    largest = max((m.shape[1:] for m in maps), key=np.prod)
    combine = {'mean': np.mean, 'max': np.max, 'product': np.prod}[how]
    parts = []
    for m in maps:
        scaled = [(x - x.min()) / np.ptp(x) for x in np.asarray(m, float)]
        parts.append([cv2.resize(x, largest[::-1], interpolation=cv2.INTER_LINEAR) for x in scaled])
    return combine(np.array(parts), axis=0)


def rectified(maps):
    """{key: map} in NumPy, with a ReLU where Grad-CAM's definition has one."""
    host = {key: np.asarray(m) for key, m in maps.items()}
    return {key: np.maximum(m, 0) if key[0] == 'grad_cam' else m for key, m in host.items()}


@pytest.fixture(scope='module')
def lopsided(toy):
    """The toy network on images that grow brighter to the right: no mirror symmetry."""

    def apply(state, inputs, perturb=None):
        ramp = jnp.linspace(0.2, 3.0, inputs.shape[2])[:, None]
        return toy.apply(state, inputs * ramp, perturb)

    return replace(toy, apply=apply)


def test_shapes_and_defaults(resnet, images):
    result = localize(resnet, images, ('dgl', 'cam'))
    sides = {'stage1': 12, 'stage2': 6, 'stage3': 6, 'stage4': 6}
    expected = {('dgl', n): (3, s, s) for n, s in sides.items()} | {('cam', 'stage4'): (3, 6, 6)}
    assert {key: m.shape for key, m in result.maps.items()} == expected
    assert all(m.dtype == jnp.float32 for m in result.maps.values())
    logits, _ = jax.jit(resnet.apply)(resnet.state, resnet.preprocessing(images))
    assert result.logits.shape == (3, 7) and result.classes.shape == (3,)
    np.testing.assert_allclose(result.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.classes, np.argmax(logits, axis=1))


def test_branches_are_layers_too(resnet, images):
    result = localize(resnet, images, layers=('stage2/block1', 'stage2'), classes=0)
    # The stage ends in its only block.
    a, b = (result.maps['dgl', n] for n in ('stage2/block1', 'stage2'))
    assert_close(a, b)


@pytest.mark.parametrize('how', ['mean', 'max', 'product'])
def test_plus_fuses_the_parts(toy, toy_images, how):
    parts = localize(toy, toy_images, ('dgl', 'grad_cam'), ('early', 'late'), classes=2)
    fused = localize(
        toy, toy_images, ('dgl', 'grad_cam'), ('early+late', 'late'), classes=2, fusion=how
    )
    assert set(fused.maps) == {(m, n) for m in ('dgl', 'grad_cam') for n in ('early+late', 'late')}
    raw = rectified(parts.maps)
    for method in ('dgl', 'grad_cam'):
        assert_close(fused.maps[method, 'late'], parts.maps[method, 'late'])
        expected = fuse([raw[method, n] for n in ('early', 'late')], how)
        assert_close(fused.maps[method, 'early+late'], expected)


def test_only_raw_maps_ask_for_a_relu_in_scoring(toy):
    plan = make_plan(toy, ('grad_cam', 'dgl'), ('late', 'early+late'))
    assert plan.relu == {
        ('grad_cam', 'late'): True,
        ('grad_cam', 'early+late'): False,
        ('dgl', 'late'): False,
        ('dgl', 'early+late'): False,
    }
    for options in ({'flip': True}, {'scales': (1.0, 2.0)}):
        assert not any(make_plan(toy, ('grad_cam',), ('late',), **options).relu.values())
    assert all(make_plan(toy, ('grad_cam',), ('late',), scales=(2.0,)).relu.values())


def test_flip_averages_with_the_mirrored_map_turned_back(lopsided, toy_images):
    options = {'methods': ('dgl', 'grad_cam'), 'layers': ('early',), 'classes': [2, 5, 0, 1]}
    plain = localize(lopsided, toy_images, **options)
    mirrored = localize(lopsided, toy_images[:, :, ::-1], **options)
    both = localize(lopsided, toy_images, flip=True, **options)
    assert_close(both.logits, plain.logits)
    there, back = rectified(plain.maps), rectified(mirrored.maps)
    for key, m in both.maps.items():
        assert_close(m, fuse([there[key], back[key][..., ::-1]]))
        # Had the mirror not been undone, the mean would differ.
        assert np.abs(np.asarray(m) - fuse([there[key], back[key]])).max() > 0.05


def test_flip_changes_nothing_for_a_mirror_symmetric_network(toy, toy_images):
    options = {'methods': ('dgl', 'layer_cam'), 'layers': ('early', 'late'), 'classes': 3}
    plain = localize(toy, toy_images, **options)
    both = localize(toy, toy_images, flip=True, **options)
    for key, m in both.maps.items():
        assert_close(m, fuse([plain.maps[key]]))


def test_flip_takes_the_class_of_the_image_itself(lopsided, toy_images):
    logits = localize(lopsided, toy_images, layers=('late',)).logits
    # Centred logits, so that a mirrored image may well change its class.
    state = lopsided.state | {'bias': lopsided.state['bias'] - logits.mean(axis=0)}
    network = replace(lopsided, state=state)
    plain, mirrored = (
        localize(network, x, layers=('late',)) for x in (toy_images, toy_images[:, :, ::-1])
    )
    assert (plain.classes != mirrored.classes).any()
    seen = localize(network, toy_images, layers=('late',), flip=True)
    np.testing.assert_array_equal(seen.classes, plain.classes)
    classes = np.asarray(plain.classes)
    fixed = localize(network, toy_images, layers=('late',), flip=True, classes=classes)
    assert_close(seen.maps['dgl', 'late'], fixed.maps['dgl', 'late'])


def resized(images, side):
    """As the network sees them at a larger scale, as floats."""
    floats = images.astype(np.float32) / 255
    large = [cv2.resize(x, (side, side), interpolation=cv2.INTER_LINEAR) for x in floats]
    return np.clip(large, 0, 1)


@pytest.mark.slow
def test_scales_average_maps_at_the_largest_resolution(toy, toy_images):
    options = {'methods': ('dgl', 'grad_cam'), 'layers': ('early', 'late'), 'classes': [1, 1, 4, 0]}
    small, large = (localize(toy, resized(toy_images, s), resize=False, **options) for s in (8, 16))
    result = localize(toy, toy_images, scales=(1.0, 2.0), **options)
    assert result.maps['dgl', 'early'].shape == (4, 16, 16)
    assert_close(result.logits, small.logits)
    parts = rectified(small.maps), rectified(large.maps)
    for key, m in result.maps.items():
        assert_close(m, fuse([p[key] for p in parts]), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('scales', [(2.0, 1.0), (2.0,), (1.0, 2.0)])
def test_logits_and_classes_are_those_of_the_image_as_it_is(toy, toy_images, scales):
    result = localize(toy, toy_images, ('dgl',), ('late',), scales=scales)
    as_is = localize(toy, toy_images, ('dgl',), ('late',))
    assert_close(result.logits, as_is.logits)
    np.testing.assert_array_equal(result.classes, as_is.classes)


def test_one_other_scale_is_the_map_of_the_resized_image(toy, toy_images):
    alone = localize(toy, toy_images, ('dgl',), ('late',), scales=(2.0,), classes=1)
    expected = localize(toy, resized(toy_images, 16), ('dgl',), ('late',), 1, resize=False)
    assert_close(alone.maps['dgl', 'late'], expected.maps['dgl', 'late'])


@pytest.mark.slow
def test_scale_flip_and_plus_together(toy, toy_images):
    options = {'methods': ('dgl',), 'classes': 2}
    views = []
    for side in (8, 16):
        images = resized(toy_images, side)
        parts = localize(toy, images, layers=('early', 'late'), resize=False, **options)
        # The toy network is mirror symmetric: its flipped view is the same map.
        views += 2 * [fuse([parts.maps['dgl', n] for n in ('early', 'late')], 'max')]
    result = localize(
        toy,
        toy_images,
        layers=('early+late',),
        scales=(1.0, 2.0),
        flip=True,
        fusion='max',
        **options,
    )
    assert_close(result.maps['dgl', 'early+late'], fuse(views, 'mean'), 2e-5)


@pytest.mark.slow
def test_forms_of_classes(toy, toy_images):
    def run(classes):
        result = localize(toy, toy_images, ('dgl', 'hires_cam'), ('early',), classes)
        return result.classes, result.maps['dgl', 'early']

    logits, _ = toy(toy_images)
    ranked = np.argsort(-np.asarray(logits), axis=1)
    five, maps5 = run('top5')
    np.testing.assert_array_equal(five, ranked[:, :5])
    assert maps5.shape == (4, 5, 8, 8)
    for one in (None, 'top1'):
        classes, maps = run(one)
        np.testing.assert_array_equal(classes, ranked[:, 0])
        assert_close(maps, maps5[:, 0])
    same, maps = run(3)
    assert same.tolist() == [3] * 4 and maps.shape == (4, 8, 8)
    listed, maps_listed = run([3, 3, 3, 3])
    assert listed.shape == (4,)
    assert_close(maps_listed, maps)
    each, maps = run(ranked[:, 2])
    np.testing.assert_array_equal(each, ranked[:, 2])
    assert_close(maps, maps5[:, 2])
    two, maps = run(ranked[:, 3:5])
    assert two.shape == (4, 2)
    assert_close(maps, maps5[:, 3:5])
    column, maps = run(ranked[:, :1])
    assert column.shape == (4, 1) and maps.shape == (4, 1, 8, 8)
    assert_close(run(jnp.asarray(ranked[:, 2]))[1], maps5[:, 2])


@pytest.mark.slow
def test_any_number_of_highest_logits(toy, toy_images):
    five = localize(toy, toy_images, ('dgl',), ('late',), 'top5')
    three = localize(toy, toy_images, ('dgl',), ('late',), 'top3')
    np.testing.assert_array_equal(three.classes, five.classes[:, :3])
    assert_close(three.maps['dgl', 'late'], five.maps['dgl', 'late'][:, :3])
    # There are no more than six.
    assert localize(toy, toy_images, ('dgl',), ('late',), 'top9').classes.shape == (4, 6)


@pytest.fixture(scope='module')
def of_all_classes(toy, toy_images):
    """Maps [4,6,8,8] that are linear in the gradient of the score, of each of the classes."""
    every = np.tile(np.arange(6), (4, 1))
    return np.asarray(localize(toy, toy_images, ('hires_cam',), ('early',), every).maps[HIRES])


HIRES = 'hires_cam', 'early'


@pytest.mark.parametrize(
    'classes',
    [
        (row for row in [[1, 2], [3], [0], [5, 4, 2]]),
        np.array([[1, 2], [3], [0], [5, 4, 2]], object),
        [range(1, 3), np.array(3), jnp.array([0]), (5, 4, 2)],
    ],
)
def test_lists_of_classes_come_in_many_forms(toy, toy_images, classes):
    result = localize(toy, toy_images, ('dgl',), ('early',), classes)
    assert result.classes.tolist() == [[1, 2, -1], [3, -1, -1], [0, -1, -1], [5, 4, 2]]


@pytest.mark.parametrize('wrong', [None, {1, 2}, [[1], [2, 3]], [], [1.0, 2.0], 'a', [2**70]])
def test_a_list_of_classes_that_is_none_is_named(toy, toy_images, wrong):
    with pytest.raises(ValueError, match=r'^classes\[1\] must be one class index or several, got'):
        localize(toy, toy_images, ('dgl',), ('early',), [[1, 2], wrong, [3], [4]])


def test_the_map_of_a_head_that_the_network_does_not_have(toy, toy_images):
    with pytest.raises(ValueError, match=r"unknown localization method 'acol'.* no trained head"):
        localize(toy, toy_images, ('acol',))


def test_several_classes_are_the_sum_of_their_scores(toy, toy_images, of_all_classes):
    labels = np.array([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [1] * 6, [0, 0, 1, 0, 1, 1]], bool)
    for flip in (False, True):
        result = localize(toy, toy_images, ('hires_cam',), ('early',), labels, flip=flip)
        assert result.classes.tolist() == [-1] * 4
        expected = np.einsum('bc,bchw->bhw', labels, of_all_classes)
        assert_close(result.maps[HIRES], fuse([expected]) if flip else expected)
    on_device = localize(toy, toy_images, ('hires_cam',), ('early',), jnp.asarray(labels))
    assert_close(on_device.maps[HIRES], np.einsum('bc,bchw->bhw', labels, of_all_classes))


def test_a_function_of_the_logits_as_score(toy, toy_images, of_all_classes):
    result = localize(
        toy, toy_images, ('hires_cam',), ('early',), lambda z: z[1] - 2 * z[4], scales=(1.0,)
    )
    assert result.classes.tolist() == [-1] * 4
    assert_close(result.maps[HIRES], of_all_classes[:, 1] - 2 * of_all_classes[:, 4])


def test_score_is_what_the_classes_are_explained_by(toy, toy_images, of_all_classes):
    classes = np.array([[0, 3], [1, 1], [5, 2], [4, 0]])
    result = localize(toy, toy_images, ('hires_cam',), ('early',), classes, score='softmax')
    p = np.asarray(jax.nn.softmax(result.logits), np.float64)
    # d p_c = p_c (d z_c - sum_j p_j d z_j)
    expected = of_all_classes - np.einsum('bc,bchw->bhw', p, of_all_classes)[:, None]
    expected = p[:, :, None, None] * expected
    for i in range(4):
        assert_close(result.maps[HIRES][i], expected[i, classes[i]], 1e-4)
    np.testing.assert_array_equal(result.classes, classes)


def test_wrong_sets_of_classes(toy, toy_images):
    for shape in ((4,), (4, 5), (3, 6), (4, 6, 1)):
        with pytest.raises(ValueError, match=r'bool classes must have shape \[4, 6\]'):
            localize(toy, toy_images, classes=np.ones(shape, bool))
    labels = np.ones((4, 6), bool)
    labels[2] = False
    with pytest.raises(ValueError, match='one class set for every image'):
        localize(toy, toy_images, classes=labels)


def test_uint8_equals_float(toy, toy_images):
    a = localize(toy, toy_images, layers=('early',))
    b = localize(toy, toy_images.astype(np.float32) / 255, layers=('early',))
    np.testing.assert_array_equal(a.classes, b.classes)
    assert_close(b.maps['dgl', 'early'], a.maps['dgl', 'early'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'layers': ('erly',)}, "unknown layer of toy 'erly'; did you mean 'early'"),
        ({'layers': ('early+lat',)}, "'lat'; did you mean 'late'"),
        ({'layers': 'early'}, r"\('early',\)"),
        ({'methods': ('dlg',)}, "'dlg'; did you mean 'dgl'"),
        ({'methods': 'dgl'}, r"\('dgl',\)"),
        ({'methods': ('dgl', 'dgl')}, "'dgl' is given more than once"),
        ({'fusion': 'men'}, "unknown fusion 'men'; did you mean 'mean'"),
        ({'scales': ()}, 'scales must be positive'),
        ({'scales': (1.0, 0.0)}, 'scales must be above 0'),
        ({'classes': 'top'}, "'top1', 'top5' or indices, got 'top'"),
        ({'classes': 'top0'}, "'top1', 'top5' or indices, got 'top0'"),
        ({'classes': 'top-1'}, "got 'top-1'"),
        ({'classes': 'best'}, "got 'best'"),
        ({'methods': ('cam+dlg',)}, "'dlg'; did you mean 'dgl'"),
        ({'score': 'logits'}, "unknown score 'logits'; did you mean 'logit'"),
        ({'classes': 6}, r'class 6 is outside 0\.\.5'),
        ({'classes': [0, 1, -1, 2]}, r'class -1 is outside 0\.\.5'),
        ({'classes': [0, 1, 2]}, r'shape \[4\] or \[4,K\], got int64 \[3\]'),
        ({'classes': [0.0, 1.0, 2.0, 3.0]}, 'must be integers'),
        ({'classes': np.zeros((4, 1, 1), int)}, r'shape \[4\] or \[4,K\]'),
        ({'classes': np.zeros((4, 0), int)}, r'got int64 \[4, 0\]'),
        ({'classes': [[3], [], [1], [2]]}, r'classes\[1\] must be one .* or several, got \[\]'),
        ({'classes': [[3], [1], [1, 0.5], [2]]}, r'classes\[2\] must be .*, got \[1, 0.5\]'),
        ({'classes': [[3, -1], [0], [1], [2]]}, r'classes\[0\] must be .*, got \[3, -1\]'),
        ({'classes': [[3, 6], [0], [1], [2]]}, r'class 6 is outside 0\.\.5'),
        ({'classes': [[3, 1], [0], [1]]}, r'shape \[4\] or \[4,K\], got int64 \[3, 2\]'),
    ],
)
def test_wrong_arguments(toy, toy_images, options, message):
    with pytest.raises(ValueError, match=message):
        localize(toy, toy_images, **options)


RAGGED = [[3, 1], [5], (0, 2, 4), [2]]


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [4, 3])
def test_images_may_have_more_classes_than_others(toy, toy_images, batch_size):
    """One pass: each map is that of its class alone, and where there is no class there is none."""
    methods = ('dgl', 'grad_cam', 'eigen_cam', 'score_cam', 'random_cam', 'full_grad')
    arguments = (toy, list(toy_images), methods, ('early', 'late'))
    options = {'noise': 2, 'batch_size': batch_size}
    found = localize(*arguments, classes=RAGGED, **options)
    assert np.asarray(found.classes).tolist() == [[3, 1, -1], [5, -1, -1], [0, 2, 4], [2, -1, -1]]
    for k in range(3):
        column = [row[k] if k < len(row) else 0 for row in RAGGED]
        alone = localize(*arguments, classes=column, **options)
        for key, maps in found.maps.items():
            expected = np.array(alone.maps[key])
            scale = np.abs(expected).max((1, 2), keepdims=True) + 1e-9  # some are zero
            assert (scale > 1e-6).sum() > 1
            expected[[k >= len(row) for row in RAGGED]] = 0
            np.testing.assert_allclose(maps[:, k] / scale, expected / scale, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_one_program_serves_all_numbers_of_classes_below_the_most(toy, toy_images):
    localize(toy, toy_images, ('dgl',), classes=[[0, 1], [2], [3], [4]])
    programs = compute_maps._cache_size()
    localize(toy, toy_images, ('dgl',), classes=[[0], [2, 4], [3, 5], [4]])
    localize(toy, toy_images, ('dgl',), classes=[[0, 1]] * 4)
    assert compute_maps._cache_size() == programs


def test_a_score_is_one_number(toy, toy_images):
    with pytest.raises(ValueError, match=r'scalar of the logits \[C\] .* got shape \[6\]'):
        localize(toy, toy_images, classes=lambda z: z)


def test_cam_away_from_the_pooling_is_an_error(toy, toy_images):
    early = replace(toy, last_layer='early')
    with pytest.raises(ValueError, match="'early' is not: name another last_layer"):
        localize(early, toy_images, ('cam',))
    localize(early, toy_images, ('grad_cam',))


@pytest.mark.slow
@pytest.mark.parametrize('options', [{'layers': ('early+late',)}, {'flip': True}])
def test_rectified_before_anything_is_fused(toy, toy_images, options):
    options = {'layers': ('early',), 'classes': 2} | options
    parts = localize(toy, toy_images, ('hires_cam',), ('early', 'late'), 2).maps
    assert all(np.asarray(m).min() < 0 for m in parts.values())
    rectified = [np.maximum(parts['hires_cam', n], 0) for n in options['layers'][0].split('+')]
    result = localize(toy, toy_images, ('hires_cam',), rectify=True, **options)
    ((_, m),) = result.maps.items()
    assert_close(m, fuse(rectified))  # the toy network is mirror symmetric


def test_wrong_images(toy, toy_images):
    with pytest.raises(ValueError, match=r'\[B,H,W,3\], got \[4, 8, 8, 1\]'):
        localize(toy, toy_images[..., :1])
    with pytest.raises(ValueError, match=r'in \[0, 1\], got \[0, 255\]'):
        localize(toy, np.linspace(0, 255, 192, dtype=np.float32).reshape(1, 8, 8, 3))
    with pytest.raises(ValueError, match=r'in \[0, 1\], got \[-0.5'):
        localize(toy, np.linspace(-0.5, 1, 192, dtype=np.float32).reshape(1, 8, 8, 3))
    with pytest.raises(ValueError, match='nan'):
        localize(toy, np.full((1, 8, 8, 3), np.nan, np.float32))


@pytest.mark.parametrize('batch_size', [0, -1, 2.5, '8'])
def test_wrong_batch_sizes(toy, toy_images, batch_size):
    for images in (toy_images, list(toy_images)):
        with pytest.raises(ValueError, match=r'^batch_size must be a whole number from 1 on'):
            localize(toy, images, batch_size=batch_size)


def test_images_without_gradient_count_only_where_valid():
    dead = {'a': np.array([False, True, True]), 'b': np.array([True, True, True])}
    with pytest.raises(ValueError, match="'b' is zero everywhere"):
        check_gradients(dead)
    del dead['b']
    check_gradients(dead)
    with pytest.raises(ValueError, match="'a' is zero everywhere"):
        check_gradients(dead, np.array([False, True, True]))
    check_gradients(dead, np.array([False, False, False]))


@pytest.mark.slow
def test_images_of_any_sizes_are_those_the_command_sees(toy, tmp_path):
    rng = np.random.default_rng(4)
    photos = [rng.integers(0, 256, (9 + 5 * i, 30 - i, 3), np.uint8) for i in range(5)]
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f'{i}.png')
    (batch,) = evaluation_batches(ImageFolder(tmp_path), 8, 5)
    expected = localize(toy, batch.images, ('dgl', 'cam'))
    files = [tmp_path / f'{i}.png' for i in range(5)]
    for images in (photos, files, [Image.open(f) for f in files]):
        found = localize(toy, images, ('dgl', 'cam'), batch_size=2)
        np.testing.assert_array_equal(found.classes, expected.classes)
        assert found.sizes == [(30 - i, 9 + 5 * i) for i in range(5)]
        for key, m in found.maps.items():
            assert_close(m, expected.maps[key], 1e-6)


@pytest.mark.parametrize('classes', [4, [0, 1, 2, 3, 4], [[0, 5], [1, 4], [2, 3], [3, 2], [4, 1]]])
def test_classes_go_with_their_images_through_batches(toy, toy_images, classes):
    images = [*toy_images, toy_images[0]]
    found = localize(toy, images, ('grad_cam',), ('early',), classes, batch_size=2)
    expected = localize(toy, np.stack(images), ('grad_cam',), ('early',), classes)
    np.testing.assert_array_equal(found.classes, expected.classes)
    assert_close(found.maps['grad_cam'], expected.maps['grad_cam'], 1e-6)


def test_sets_of_classes_go_through_batches(toy, toy_images):
    labels = np.random.default_rng(0).random((4, 6)) < 0.5
    labels[:, 0] = True
    found = localize(toy, list(toy_images), ('dgl',), ('late',), labels, batch_size=3)
    expected = localize(toy, toy_images, ('dgl',), ('late',), labels)
    assert_close(found.maps['dgl'], expected.maps['dgl'], 1e-6)


def test_one_program_for_photos_of_all_sizes(toy):
    traced = []

    def apply(state, inputs, perturb=None):
        traced.append(inputs.shape)
        return toy.apply(state, inputs, perturb)

    network, rng = replace(toy, apply=apply), np.random.default_rng(0)
    photos = [rng.integers(0, 256, (5 + i, 40 - i, 3), np.uint8) for i in range(12)]
    localize(network, photos[0], layers=('late',))
    once = len(traced)
    for photo in photos[1:]:
        localize(network, photo, layers=('late',))
    assert len(traced) == once
    localize(network, photos, layers=('late',), batch_size=5)  # 5, 5 and 2
    assert len(traced) == 2 * once and traced[-1] == (5, 8, 8, 3)


@pytest.mark.slow
def test_one_program_for_lists_of_any_length(toy):
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (5 + i, 40 - i, 3), np.uint8) for i in range(18)]
    alone = [localize(toy, photo, ('xgrad_cam',)).maps['xgrad_cam', 'late'] for photo in photos]
    before = compute_maps._cache_size()
    for count in (3, 5, 2, 16, 18):
        result = localize(toy, photos[:count], ('xgrad_cam',))
        assert result.logits.shape == (count, 6) and len(result.sizes) == count
        expected = np.concatenate(alone[:count])
        assert_close(result.maps['xgrad_cam', 'late'], expected, 1e-6)
    assert compute_maps._cache_size() == before + 1


@pytest.mark.slow
def test_resize_is_the_choice_of_the_caller(toy, toy_images):
    large = toy_images.repeat(2, axis=1).repeat(4, axis=2)
    shapes = {
        shape: localize(toy, large, layers=('early',), resize=shape).maps['dgl'].shape[1:]
        for shape in (True, False, 12, (6, 10))
    }
    assert shapes == {True: (8, 8), False: (16, 32), 12: (12, 12), (6, 10): (6, 10)}
    for wrong in (0, -4, (4, 4, 3), 1.5, 'no'):
        with pytest.raises(ValueError, match='resize must be True, False, a side or'):
            localize(toy, large, resize=wrong)


def test_arguments_of_other_libraries(toy, toy_images):
    with pytest.raises(
        TypeError, match=r"unknown argument of localize 'target_layers'; .*'layers'"
    ):
        localize(toy, toy_images, target_layers=('late',))
    with pytest.raises(ValueError, match="layers are names such as 'late', got a Network"):
        localize(toy, toy_images, layers=[toy])
    with pytest.raises(ValueError, match=r"got '3'; pass classes=3$"):
        localize(toy, toy_images, classes='3')
    for names in ('dog', ['dog', 'cat', 'dog', 'cat']):
        with pytest.raises(ValueError, match='a network knows classes by number'):
            localize(toy, toy_images, classes=names)


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('GradCAM++', 'grad_cam_pp'),
        ('GradCAMPlusPlus', 'grad_cam_pp'),
        ('Grad-CAM', 'grad_cam'),
        ('GradCAM', 'grad_cam'),
        ('XGradCAM', 'xgrad_cam'),
        ('LayerCAM', 'layer_cam'),
        ('Score-CAM', 'score_cam'),
        ('HiResCAM', 'hires_cam'),
        ('FullGrad', 'full_grad'),
        ('CAM', 'cam'),
        ('SmoothGradCAMpp', 'smooth_grad_cam_pp'),
        ('gradcamm', 'grad_cam'),
    ],
)
def test_names_of_methods_elsewhere(toy, toy_images, name, meant):
    with pytest.raises(ValueError, match=f'did you mean {meant!r}'):
        localize(toy, toy_images, (name,))


def test_no_network(toy, toy_images):
    for wrong in ('mobilenet_v1.safetensors', toy.state, toy_images):
        with pytest.raises(ValueError, match='network must come from load_network, from_nnx'):
            localize(wrong, toy_images)
