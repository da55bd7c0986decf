import errno
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import failing_at_first

from wsol_jax.data.augment import AugmentConfig
from wsol_jax.data.boxes_3d import in_box_frame
from wsol_jax.data.files import read_file
from wsol_jax.data.frames import (
    Camera,
    Frame,
    FrameTargets,
    annotated_points,
    check_box,
    frame_of,
    frame_record,
    labelled_share,
    read_points,
    simulate_points,
)
from wsol_jax.data.loader import evaluation_batches, training_batches
from wsol_jax.data.records import BadImage, DataError, Decoding, ReadError, Record
from wsol_jax.data.sweeps import Sweep

BOXES = ((10.0, 2.0, 0.5, 4.0, 2.0, 1.5, 0.7), (-30.0, 0.0, 1.0, 0.6, 0.6, 1.8, 0.0))
PROJECTION = ((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0), (9.0, 10.0, 11.0, 12.0))


def png(colour, size=(8, 6)):
    return cv2.imencode('.png', np.full((size[1], size[0], 3), colour, np.uint8))[1].tobytes()


def sweep_of(rows, **facts):
    rows = np.asarray(rows, np.float32)
    return Sweep(rows.tobytes(), columns=rows.shape[1], **facts)


def frame(count=50, **changed):
    rows = np.random.default_rng(0).uniform(-40, 40, (count, 4))
    cameras = tuple(Camera(png(grey), PROJECTION, (8, 6)) for grey in (40, 200))
    found = Frame((sweep_of(rows),), cameras, BOXES, (2, 0))
    return replace(found, **changed)


def record(found=None, name='0001'):
    return frame_record(name, found or frame(), Decoding())


def test_sweeps_are_joined_in_the_frame_of_the_first():
    now = sweep_of([[1, 2, 3, 128, 9], [0.5, -0.5, 0, 255, 9]], full=255.0, near=1.0)
    quarter = ((0, -1, 0, 10), (1, 0, 0, 20), (0, 0, 1, 30))  # x to y, and a shift
    then = sweep_of([[1, 2, 3, 0.25]], lag=0.05, transform=quarter)
    points = read_points(frame(sweeps=(now, then)))
    np.testing.assert_allclose(points[0], [1, 2, 3, 128 / 255, 0], rtol=1e-6)
    np.testing.assert_allclose(points[1], [8, 21, 33, 0.25, 0.05], rtol=1e-6)
    assert points.shape == (2, 5) and points.dtype == np.float32  # the near one is the vehicle


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (None, 'no such file'),
        (b'\0' * 40, 'has 40 bytes; a sweep has a multiple of 16, 4 floats a point'),
        (b'', 'is empty; a sweep has points'),
        (np.array([1, 2, np.nan, 0], np.float32).tobytes(), 'has values that are no numbers'),
    ],
)
def test_bad_sweeps_are_named(tmp_path, content, said):
    file = tmp_path / '7.bin'
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadImage, match=f'7.bin: {said}'):
        read_points(frame(sweeps=(Sweep(file),)))


def test_points_on_objects_stay_in_the_third_of_their_boxes():
    boxes = np.repeat(np.array(BOXES), 4000, 0)
    points = simulate_points(boxes, np.random.default_rng(1))
    for k, box in enumerate(BOXES):
        own = in_box_frame(points[4000 * k : 4000 * (k + 1)], [box])[0]
        reach = np.array(box[3:6]) / 6
        assert (abs(own) <= reach + 1e-5).all()
        np.testing.assert_allclose(own.mean(0), 0, atol=0.02)
        # A normal distribution cut at a: variance 1 - 2 a f(a) / (2 F(a) - 1), in units of sigma.
        for axis in range(3):
            assert own[:, axis].std() == pytest.approx(spread(reach[axis]), rel=0.04)


def spread(reach, sigma=0.3):
    """Standard deviation of truncated noise, by summing its density."""
    x = np.linspace(-reach, reach, 2001)
    density = np.exp(-0.5 * (x / sigma) ** 2)
    return np.sqrt((density * x**2).sum() / density.sum())


def test_annotated_points_belong_to_their_frame():
    points = annotated_points(record())
    np.testing.assert_array_equal(points, annotated_points(record()))
    assert annotated_points(record(frame(boxes=(), classes=()))).shape == (0, 3)
    assert (points != annotated_points(record(name='0002'))).all()
    assert (points != annotated_points(record(), seed=1)).all()


def test_a_smaller_labelled_share_is_part_of_a_larger_one():
    few, more = (labelled_share(40, fraction, seed=3) for fraction in (0.05, 0.5))
    assert few.sum() == 2 and more.sum() == 20 and (more | ~few).all()
    assert labelled_share(40, 0).sum() == 1 and labelled_share(40, 1).all()
    with pytest.raises(DataError, match=r'the labelled fraction is 5; it is within 0\.\.1'):
        labelled_share(40, 5)


def test_targets_are_padded():
    found = FrameTargets(most_points=60, most_boxes=3)(record(frame(labelled=False)))
    assert {k: (v.shape, v.dtype.name) for k, v in found.items()} == {
        'points': ((60, 5), 'float32'),
        'points_valid': ((60,), 'bool'),
        'boxes': ((3, 7), 'float32'),
        'box_classes': ((3,), 'int32'),
        'annotated': ((3, 3), 'float32'),
        'labelled': ((), 'bool'),
        'projections': ((1, 3, 4), 'float32'),
        'image_size': ((1, 2), 'float32'),
    }
    np.testing.assert_array_equal(found['points'][:50], read_points(frame()))
    assert found['points_valid'].sum() == 50 and not found['points'][50:].any()
    np.testing.assert_array_equal(found['boxes'][:2], np.array(BOXES, np.float32))
    assert found['box_classes'].tolist() == [2, 0, -1] and not found['labelled']
    np.testing.assert_array_equal(found['annotated'][:2], annotated_points(record()))
    np.testing.assert_array_equal(found['projections'][0], PROJECTION)
    assert found['image_size'].tolist() == [[8, 6]]


def test_too_many_points_are_drawn_from_all_of_them_and_the_same_again():
    targets = pickle.loads(pickle.dumps(FrameTargets(most_points=20, most_boxes=2)))
    found = targets(record())['points']
    places = [np.flatnonzero((read_points(frame()) == row).all(1)).item() for row in found]
    assert len(set(places)) == 20 and places == sorted(places) and places != list(range(20))
    np.testing.assert_array_equal(found, targets(record())['points'])


def test_a_region_bounds_points_and_boxes():
    region = (0.0, -20.0, -5.0, 40.0, 20.0, 5.0)
    found = FrameTargets(60, 3, region=region)(record())
    points = [
        row
        for row in read_points(frame()).tolist()
        if 0 <= row[0] < 40 and -20 <= row[1] < 20 and -5 <= row[2] < 5
    ]
    assert found['points'][found['points_valid']].tolist() == points and points
    assert found['box_classes'].tolist() == [2, -1, -1]
    np.testing.assert_array_equal(found['annotated'][0], annotated_points(record())[0])


def test_several_cameras_come_with_their_images():
    found = FrameTargets(60, 3, num_cameras=2, camera_size=(3, 4))(record())
    assert found['cameras'].shape == (2, 3, 4, 3) and found['projections'].shape == (2, 3, 4)
    assert (found['cameras'][0] == 40).all() and (found['cameras'][1] == 200).all()


def test_batches_carry_frames():
    source = [record(), record(frame(30), '0002'), record(frame(2), '0003')]
    batches = list(evaluation_batches(source, 8, 2, targets=FrameTargets(60, 3)))
    assert [batch.targets['points_valid'].sum(1).tolist() for batch in batches] == [
        [50, 30],
        [2, 0],
    ]
    assert batches[1].targets['box_classes'].tolist() == [[2, 0, -1], [-1, -1, -1]]
    assert batches[1].targets['labelled'].tolist() == [True, False]


def broken(tmp_path, at, count=3):
    """Frames of 10, 11 ... points, of which one has its sweep cut off; and what is told of it."""
    records = [record(frame(10 + k), f'{k}') for k in range(count)]
    file = tmp_path / 'cut.bin'
    file.write_bytes(bytes(30))
    records[at] = record(frame(sweeps=(Sweep(file),)), f'{at}')
    return records, {at: f'{file}: has 30 bytes; a sweep has a multiple of 16, 4 floats a point'}


@pytest.mark.parametrize('at', [0, 2])
@pytest.mark.parametrize('size', [1, 3])
def test_a_frame_whose_sweep_is_cut_off_is_passed_over(tmp_path, at, size):
    records, errors = broken(tmp_path, at)
    batches = list(evaluation_batches(records, 8, size, targets=FrameTargets(60, 3)))
    found, valid = {}, []
    for batch in batches:
        found |= batch.errors
        valid += batch.valid.tolist()
        counts = batch.targets['points_valid'].sum(1)[batch.valid]
        assert counts.tolist() == [10 + k for k in batch.index[batch.valid]]
    assert found == errors and valid == [k != at for k in range(3)]
    whole = AugmentConfig(crop='whole', flip=False)
    (batch,) = training_batches(
        records, 8, 3, 0, range(1), setting=whole, targets=FrameTargets(60, 3)
    )
    assert batch.errors == errors and batch.index[~batch.valid].tolist() == [at]


def test_a_camera_that_cannot_be_read_passes_its_frame_over():
    camera = Camera(png(40)[:-20], PROJECTION, (8, 6))
    records = [record(), record(frame(cameras=(frame().cameras[0], camera)), '0002')]
    targets = FrameTargets(60, 3, num_cameras=2, camera_size=(3, 4))
    (batch,) = evaluation_batches(records, 8, 2, targets=targets)
    assert batch.valid.tolist() == [True, False] and list(batch.errors) == [1]


def test_where_no_sweep_can_be_read_the_first_is_named(tmp_path):
    records, _ = broken(tmp_path, 0, 1)
    with pytest.raises(BadImage, match=r'cut\.bin: has 30 bytes'):
        list(evaluation_batches(records, 8, 1, targets=FrameTargets(60, 3)))


@pytest.mark.parametrize(('number', 'fails'), [(errno.EIO, 2), (errno.ESTALE, 3), (errno.EIO, 9)])
def test_a_sweep_that_the_disk_fails_to_read_is_tried_again(tmp_path, monkeypatch, number, fails):
    file = tmp_path / '7.bin'
    file.write_bytes(np.ones(4, np.float32).tobytes())

    failing, tried = failing_at_first(read_file, number, fails)
    monkeypatch.setattr('wsol_jax.data.sweeps.read_file', failing)
    monkeypatch.setattr('wsol_jax.data.loader._PAUSES', (0, 0, 0))
    source = [record(frame(sweeps=(Sweep(file),)))]
    batches = evaluation_batches(source, 8, 1, targets=FrameTargets(60, 3))
    if fails == 9:
        with pytest.raises(ReadError, match=r'7\.bin: Input/output error'):
            next(batches)
    else:
        batch = next(batches)
        assert batch.valid.all() and batch.targets['points_valid'].sum() == 1
    assert len(tried) == min(fails + 1, 4)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'most_boxes': 1}, '0001: has 2 boxes, but can have 1 here'),
        ({'most_boxes': 2, 'num_cameras': 6}, '0001: has 2 cameras; 6 are asked for'),
    ],
)
def test_what_has_no_room_is_named(options, said):
    with pytest.raises(DataError, match=said):
        FrameTargets(60, **options)(record())


def test_a_record_without_a_frame_is_named():
    with pytest.raises(DataError, match=r'cat\.png: has no LiDAR sweep; the sources lidar_scenes'):
        frame_of(Record('cat.png', b'', (), None))


@pytest.mark.parametrize('wrong', [(3, -1.0), (5, 0.0), (0, np.nan), (6, np.inf)])
def test_boxes_have_numbers_and_sizes_above_0(wrong):
    box = list(BOXES[0])
    check_box(box, 'x')
    box[wrong[0]] = wrong[1]
    with pytest.raises(DataError, match=r'^x: a box of '):
        check_box(box, 'x')
