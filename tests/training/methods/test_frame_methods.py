"""Losses of teacher and student by hand on few cells; what wrong settings are told."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Listed

from wsol_jax.config import Config, ConfigError, TrainConfig
from wsol_jax.data import open_source
from wsol_jax.data.frames import ListedFrames, frame_of
from wsol_jax.models.box_codes import codes_of
from wsol_jax.models.center_point import heatmap_loss, true_heatmap
from wsol_jax.models.heads import Outputs
from wsol_jax.points.consistency import consistency_loss
from wsol_jax.points.detections import frame_method
from wsol_jax.training.method import Shard, Update
from wsol_jax.training.methods import make_method

ALONE = Update(0, lambda sums: sums)
LIMITS = (0.0, -8.0, -2.0, 16.0, 8.0, 2.0)
BOXES = np.array(
    [[[4.5, 1.5, 0, 4, 2, 1.5, 0.3], [10, -3, 0.5, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0]]] * 2,
    np.float32,
)
CLASSES = np.array([[1, 0, -1], [0, 1, -1]], np.int32)
RNG = np.random.default_rng(0)


def method(name, **options):
    setting = {'limits': LIMITS, 'pillar': 2.0, **options}
    return make_method(TrainConfig(method=name, options=setting))


def batch(labelled=(True, True), valid=(True, True), **more):
    targets = {
        'boxes': BOXES,
        'box_classes': CLASSES,
        'point_classes': CLASSES,
        'annotated': BOXES[..., :3] + 0.1,
        'labelled': np.array(labelled),
    }
    return Shard(None, {**targets, **more}, np.array(valid), None)


@partial(jax.jit, static_argnums=0)
def run(of, extras, shard):
    return of.loss(Outputs(None, {}, extras), shard, ALONE)


def loss_of(of, extras, shard):
    loss, values = run(of, extras, shard)
    return float(loss), {name: np.asarray(value) for name, value in values.items()}


TEACHER = method('point_detr3d')
LOGITS = RNG.normal(size=(2, 2, 3, 2)).astype(np.float32)  # [B,layers,N,C]
EXTRAS = {
    'class_logits': LOGITS,
    'codes': np.tile(np.asarray(codes_of(BOXES))[:, None] + 0.25, (1, 2, 1, 1)),
    'queries': CLASSES >= 0,
}


def test_the_teachers_loss_by_hand():
    """Each code is off by 1/4 in 8 numbers, so that each query is matched with its own box."""
    loss, values = loss_of(TEACHER, EXTRAS, batch())
    labels = np.eye(2)[np.maximum(CLASSES, 0)][:, None] * np.ones((1, 2, 1, 1))
    focal = optax.sigmoid_focal_loss(LOGITS, labels, alpha=0.25, gamma=2.0)[:, :, :2]
    boxes = 2 * 2 * 2 * 8 * 0.25  # frames, layers, boxes, numbers
    assert loss == pytest.approx((2 * float(focal.sum()) + 0.25 * boxes) / 4, rel=1e-4)
    assert values['box_loss'] == pytest.approx([0.5, 0.5], rel=1e-4)


def test_only_labelled_frames_that_count_are_learnt_from():
    both = [
        loss_of(TEACHER, EXTRAS, batch(**kind))[0]
        for kind in ({'labelled': (True, False)}, {'valid': (True, False)})
    ]
    alone = jax.tree.map(lambda x: x[:1], (EXTRAS, batch()))
    expected = loss_of(TEACHER, *alone)[0]
    assert both == pytest.approx([expected] * 2, rel=1e-5)
    assert loss_of(TEACHER, EXTRAS, batch(labelled=(False, False)))[0] == 0


def test_a_teachers_boxes_are_of_the_class_of_their_point():
    found = TEACHER.boxes(EXTRAS, batch().targets)
    np.testing.assert_array_equal(found.classes, CLASSES)
    expected = 1 / (1 + np.exp(-LOGITS[0, -1, 0, 1]))
    assert float(found.scores[0, 0]) == pytest.approx(expected, rel=1e-5)
    assert found.scores[0, 2] == 0
    likeliest = method('point_detr3d', queries=3).boxes(EXTRAS, batch().targets)
    np.testing.assert_array_equal(likeliest.classes[0, :2], LOGITS[0, -1, :2].argmax(-1))


STUDENT = method('center_point', sizes=((4, 2, 1.5), (1, 1, 2)))


@cache
def student_extras():
    arrays = {'heatmap': 2, 'codes': 8, 'features': 5, 'weak': 5}
    return {k: RNG.normal(size=(2, 8, 8, n)).astype(np.float32) for k, n in arrays.items()}


def detection_by_hand(i):
    extras = student_extras()
    expected = true_heatmap(jnp.asarray(BOXES[i]), jnp.asarray(CLASSES[i]), 2, STUDENT.grid)
    loss = float(heatmap_loss(extras['heatmap'][i], expected))
    for k in range(2):
        cell = (BOXES[i, k, :2] - [0, -8]) / 2
        column, row = cell.astype(int)
        code = np.concatenate([cell % 1, codes_of(BOXES[i, k])[2:]])
        loss += 0.25 * np.abs(extras['codes'][i, row, column] - code).sum()
    return loss


def test_the_students_detection_loss_by_hand():
    extras = {k: v for k, v in student_extras().items() if k != 'weak'}
    expected = [detection_by_hand(0), detection_by_hand(1)]
    loss, values = loss_of(STUDENT, extras, batch())
    assert loss == pytest.approx(sum(expected) / 4, rel=1e-4)
    assert values['detection_loss'] == pytest.approx([e / 2 for e in expected], rel=1e-4)
    loss, _ = loss_of(STUDENT, extras, batch(labelled=(False, True)))
    assert loss == pytest.approx(expected[1] / 2, rel=1e-4)


def test_views_are_compared_around_points_of_all_frames():
    views = np.broadcast_to(np.eye(4, dtype=np.float32), (2, 4, 4))
    more = {'views': views, 'weak_annotated': batch().targets['annotated']}
    extras = student_extras()
    loss, values = loss_of(STUDENT, extras, batch(labelled=(False, False), **more))
    around = jax.vmap(STUDENT._around)(more['weak_annotated'], CLASSES)
    assert around.max() == 1 and around[0, 4, 2] == 1  # at the cell of the first point
    expected = consistency_loss(extras['features'], extras['weak'], around)
    assert loss == pytest.approx(0.1 * float(expected.sum()) / 4, rel=1e-3)
    assert values['consistency'] == pytest.approx(np.asarray(expected) / 2, rel=1e-4)


def test_both_views_are_of_the_same_frame():
    shard = batch(
        points=np.zeros((2, 5, 5), np.float32), projections=np.zeros((2, 1, 3, 4), np.float32)
    )
    keys = jax.random.split(jax.random.key(0), 2)
    _, found = STUDENT.augment(None, shard, keys)
    np.testing.assert_array_equal(found.targets['weak_annotated'], shard.targets['annotated'])
    there = np.einsum('bij,bnj->bni', found.targets['views'][:, :3, :3], shard.targets['annotated'])
    there += found.targets['views'][:, None, :3, 3]
    np.testing.assert_allclose(found.targets['annotated'], there, atol=1e-4)
    without = method('center_point', consistency=0.0).augment(None, shard, keys)[1]
    assert 'weak_points' not in without.targets


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('point_detr3d', {'limits': (0.0, 1.0)}, 'config.train.options.limits must be (x0, y0'),
        ('point_detr3d', {'limits': (0.0,) * 6}, 'config.train.options.limits must hold a pillar'),
    ],
)
def test_wrong_limits_are_one_line(name, options, message):
    with pytest.raises(ConfigError) as caught:
        _ = method(name, **options).grid
    assert str(caught.value).startswith(message)


def test_the_task_needs_a_method_of_frames():
    with pytest.raises(ConfigError, match=r"^config.train.method must be 'point_detr3d' or 'cente"):
        frame_method(Config(task='points'))


class ListedFrameRecords(Listed, ListedFrames):
    """Records of frames."""


def test_a_teacher_goes_through_frames_of_known_boxes():
    source = open_source('lidar_scenes', '', 'train', count=6, size=32, seed=0, labelled=0.5)
    own = TEACHER.learns_from(source)
    known = [record for record in source if record.extra['frame'].labelled]
    assert [record.image_id for record in own] == [record.image_id for record in known]
    assert len(own) == 3 and own.most_boxes == source.most_boxes
    assert (own.class_names, own.num_classes) == (source.class_names, 3)
    alone = method('center_point', consistency=0.0)
    assert len(alone.learns_from(source)) == 3 and STUDENT.learns_from(source) is source
    assert replace(alone, labels='truth').learns_from(source) is source
    none = ListedFrameRecords(
        [replace(r, extra={'frame': replace(frame_of(r), labelled=False)}) for r in known]
    )
    with pytest.raises(ConfigError, match=r'^training needs frames whose boxes'):
        TEACHER.learns_from(none)


@pytest.mark.parametrize(
    ('of', 'computed'),
    [
        (method('center_point'), False),
        (method('point_detr3d', cameras=0), False),
        (method('point_detr3d'), True),
    ],
)
def test_a_network_that_nobody_looks_at_is_frozen(of, computed):
    frozen = {
        name: any(re.match(pattern, name) for pattern in of.freeze)
        for name in ('conv1.kernel', 'layer4.0.bn1.scale', 'heads.pillars.linear.kernel')
    }
    assert list(frozen.values()) == [not computed, not computed, False]
