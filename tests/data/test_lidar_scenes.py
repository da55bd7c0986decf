import pickle

import numpy as np
import pytest

from wsol_jax.config import Config, ConfigError, DataConfig
from wsol_jax.data import DataError, LidarScenes, decode_image, open_source
from wsol_jax.data.boxes_3d import axes, corners, in_box_frame, points_inside, project
from wsol_jax.data.frames import frame_of, read_points
from wsol_jax.data.lidar_scenes import (
    AZIMUTHS,
    BEAMS,
    CLASSES,
    MOST,
    REACH,
    REGION,
    SEEN,
    SIZES,
    _built,
    _hit,
    _pictured,
    _projection,
)
from wsol_jax.run import open_split

COUNT = 12


@pytest.fixture(scope='module')
def train():
    return LidarScenes('train', COUNT, 48)


def test_a_frame_depends_on_seed_split_and_index_alone(train):
    other = LidarScenes('train', 2 * COUNT, 48)
    for index in (7, 3):
        assert other[index] == train[index]
    assert pickle.loads(pickle.dumps(other))[5] == train[5]
    options = [('val', {}), ('test', {}), ('train', {'seed': 1}), ('train', {})]
    sources = [LidarScenes(split, 2, 48, **option) for split, option in options]
    assert len({source[i].image for source in sources for i in range(2)}) == 8


def test_boxes_are_of_their_class_and_in_the_region(train):
    assert train.class_names == CLASSES and train.most_labels == 3 and train.most_boxes == MOST
    count = 0
    for record in train:
        frame = frame_of(record)
        assert record.labels == tuple(sorted(set(frame.classes))) and len(frame.boxes) <= MOST
        low, high = np.array(REGION).reshape(2, 3)
        for box, kind in zip(frame.boxes, frame.classes, strict=True):
            assert (low <= box[:3]).all() and (box[:3] <= high).all()
            np.testing.assert_allclose(box[3:6], SIZES[kind], rtol=0.21)
            count += 1
    assert count > 2 * COUNT


def test_parts_touch_all_sides_of_their_box():
    for kind, size in enumerate(SIZES):
        box = (12.0, -3.0, 0.2, *size, 0.8)
        parts = [solid.box for solid in _built(np.random.default_rng(0), 0, kind, box)]
        inside = in_box_frame(corners(parts).reshape(-1, 3), [box])[0]
        np.testing.assert_allclose(inside.max(0), np.array(size) / 2, atol=1e-5)
        np.testing.assert_allclose(inside.min(0), -np.array(size) / 2, atol=1e-5)


def test_each_object_returns_and_far_ones_less(train):
    returns = []
    for record in train:
        frame = frame_of(record)
        points = read_points(frame)
        assert points.dtype == np.float32 and len(points) <= len(BEAMS) * len(AZIMUTHS) == 4096
        assert np.linalg.norm(points[:, :3], axis=1).max() < REACH + 0.2
        assert points[:, 3].min() >= 0 and points[:, 3].max() <= 1
        grown = [[*box[:3], *(np.array(box[3:6]) + 0.2), box[6]] for box in frame.boxes]
        inside = points_inside(points, grown).sum(1)
        assert (inside >= SEEN).all()
        distance = [np.hypot(*box[:2]) for box in frame.boxes]
        returns += [
            (d, n) for d, n, k in zip(distance, inside, frame.classes, strict=True) if k == 0
        ]
    near, far = ([n for d, n in returns if (d < 15) == is_near] for is_near in (True, False))
    assert np.median(near) > 3 * np.median(far)


def test_nothing_returns_from_behind_a_car(train):
    """Rays that pass through the lower part of a car return from it or before it."""
    frame = frame_of(train[1])
    points = read_points(frame)[:, :3].astype(float)
    lengths = np.linalg.norm(points, axis=1)
    cars = [box for box, kind in zip(frame.boxes, frame.classes, strict=True) if kind == 0]
    *place, length, width, height, yaw = min(cars, key=lambda box: np.hypot(*box[:2]))
    turn, half = axes(yaw), np.array([length, width, 0.6 * height]) / 2
    start = -(np.array(place) - [0, 0, 0.2 * height]) @ turn
    passed = 0
    for way, distance in zip(points / lengths[:, None] @ turn, lengths, strict=True):
        ends = (np.array([[-1], [1]]) * half - start) / way
        enter, leave = ends.min(0).max(), ends.max(0).min()
        if 0 < enter < leave - 0.05:
            passed += 1
            assert distance < enter + 0.15
    assert passed > 20


def test_rays_enter_a_box_where_its_face_is():
    rays = np.array([[[1, 0, 0], [1, 0.5, 0], [-1, 0, 0], [0.0, 1, 0]]], np.float32)
    distance, normal = _hit(np.array([-1.0, 0, 0]), rays, (4, 0, 0, 2, 2, 2, 0))
    assert distance[0].tolist() == [4, np.inf, np.inf, np.inf]
    assert normal[0, 0].tolist() == [-1, 0, 0]
    # A quarter turn shows its side: half a width away from the centre.
    distance, normal = _hit(np.zeros(3), rays[:, :1], (4, 0, 0, 2, 1, 2, np.pi / 2))
    assert distance.item() == pytest.approx(3.5)
    np.testing.assert_allclose(normal[0, 0], [-1, 0, 0], atol=1e-6)


def test_objects_are_seen_where_they_are_projected():
    box = (12.0, -3.0, -0.9, 4.0, 1.8, 1.6, 0.5)
    parts = list(_built(np.random.default_rng(1), 0, 0, box))
    level = np.zeros(2)
    with_it, without = (
        _pictured(np.random.default_rng(2), solids, [], level, 96).astype(int)
        for solids in (parts, [])
    )
    rows, columns = np.nonzero(abs(with_it - without).max(-1) > 3)
    pixels, _ = project(corners([solid.box for solid in parts]).reshape(-1, 3), _projection(96))
    np.testing.assert_allclose([columns.min(), rows.min()], pixels.min(0), atol=1.5)
    np.testing.assert_allclose([columns.max(), rows.max()], pixels.max(0), atol=1.5)


def test_the_camera_looks_ahead_across_90_degrees(train):
    frame = frame_of(train[0])
    (camera,) = frame.cameras
    assert decode_image(train[0]).shape == (48, 96, 3) and train[0].size == camera.size == (96, 48)
    # The camera is 0.3 m before the LiDAR and 0.1 m below it; the focal length is 48 pixels.
    pixels, depth = project([[8.3, 2.0, 0.4]], camera.projection)
    np.testing.assert_allclose(pixels[0], [47.5 - 48 * 2 / 8, 0.42 * 48 - 48 * 0.5 / 8], rtol=1e-5)
    assert depth[0] == pytest.approx(8)


def test_a_share_of_the_frames_is_labelled(train):
    half = LidarScenes('train', COUNT, 48, labelled=0.5)
    assert sum(frame_of(record).labelled for record in half) == COUNT // 2
    assert all(frame_of(record).labelled for record in train)
    assert frame_of(half[0]).boxes == frame_of(train[0]).boxes


def test_the_experiment_opens_it():
    data = DataConfig('lidar_scenes', shapes_counts=(4, 2, 3), shapes_size=32, labelled=0.25)
    config = Config(data=data, seed=7)
    train, val = (open_split(config, split) for split in ('train', 'val'))
    assert sum(frame_of(record).labelled for record in train) == 1 and len(train) == 4
    assert all(frame_of(record).labelled for record in val)
    assert val[1] == LidarScenes('val', 2, 32, seed=7)[1]
    with pytest.raises(
        ConfigError, match=r"config\.data\.labelled=0\.5 has no effect on source 'scenes'"
    ):
        open_split(Config(data=DataConfig('scenes', labelled=0.5)), 'train')


@pytest.mark.parametrize(
    ('split', 'options', 'said'),
    [
        ('tran', {'count': 4}, "lidar_scenes has no split 'tran'; available: train, val, test"),
        ('val', {'count': 4, 'size': 8}, 'size 8'),
        ('val', {'count': 4, 'labelled': 2.0}, r'the labelled fraction is 2\.0'),
    ],
)
def test_wrong_arguments_are_named(split, options, said):
    with pytest.raises(DataError, match=said):
        open_source('lidar_scenes', '', split, **options)
