import pickle

import numpy as np
import pytest
from test_nuscenes import CAMERAS, LAST, annotation, scene, tables, write

from wsol_jax.data import DataError, Nuscenes, check_folder, nuscenes_tables
from wsol_jax.data.frames import FrameTargets, SomeFrames, frame_of
from wsol_jax.data.nuscenes_frames import NuscenesFrames

BIKE, RACK = 'vehicle.bicycle', 'static_object.bicycle_rack'


@pytest.fixture
def folder(tmp_path):
    """Tables alone: no file that they name is there."""
    write(tmp_path, tables())
    return tmp_path


@pytest.fixture
def built(monkeypatch):
    """Which frames were built so far."""
    indices, frame = [], NuscenesFrames.frame

    def counted(self, index):
        indices.append(index)
        return frame(self, index)

    monkeypatch.setattr(NuscenesFrames, 'frame', counted)
    return indices


def test_a_frame_is_built_when_it_is_asked_for(folder, built):
    source = Nuscenes(folder, 'train', labelled=0.5)
    assert (len(source), source.most_boxes, source.most_labels) == (2, 1, 1)
    assert source.labelled.tolist() == [True, True]  # one scene
    assert [source.image_id(i) for i in range(2)] == ['sample-0', 'sample-1']
    some = SomeFrames(source, (1,))
    FrameTargets(10, some.most_boxes)
    copy = pickle.loads(pickle.dumps(source))
    assert built == []
    assert some[0].image_id == 'sample-1' and copy[-1] == some[0]
    assert built == [1, 1, 1]
    with pytest.raises(IndexError):
        source[2]


def test_the_check_of_a_folder_builds_each_frame_once(folder, built):
    check_folder(folder)
    assert built == [0, 1]


def test_what_is_told_of_a_split_is_so_of_its_frames(folder):
    """Two of three bicycles are in a rack, as long as there is one."""
    found = [annotation(0, 'vehicle.car', sample='sample-0')]
    found += [annotation(k, BIKE) for k in (1, 2)]
    found += [{**annotation(3, BIKE), 'translation': [40.0, 3.0, 1.0]}]
    write(folder, {'sample_annotation': [*found, annotation(4, RACK, points=0)]})
    source = Nuscenes(folder, 'train')
    frames = [frame_of(record) for record in source]
    assert [frame.classes for frame in frames] == [(0,), (5,)]
    assert (source.most_boxes, source.most_labels) == (1, 1)
    (rack,) = frames[1].racks
    write(folder, {'sample_annotation': [*found, annotation(4, 'vehicle.car')]})
    source = Nuscenes(folder, 'train')
    assert [frame_of(record).classes for record in source] == [(0,), (5, 5, 5, 0)]
    assert (source.most_boxes, source.most_labels) == (4, 2)
    assert frame_of(source[1]).boxes[-1] == rack and frames[0].racks == ()


def two_scenes(folder):
    found = [scene('scene-0103', 'sample-1'), scene('scene-0061', 'sample-0')]
    samples = [{'token': f'sample-{k}', 'next': ''} for k in range(2)]
    write(folder, {'scene': found, 'sample': samples})


def test_splits_share_tables_as_long_as_these_stay(folder, monkeypatch):
    read = []

    def counted(file, *more):
        read.append(file.stem)
        return read_json(file, *more)

    read_json = nuscenes_tables.read_json
    monkeypatch.setattr(nuscenes_tables, 'read_json', counted)
    two_scenes(folder)
    assert [len(Nuscenes(folder, split)) for split in ('train', 'val')] == [1, 1]
    assert sorted(read) == sorted(nuscenes_tables.TABLES)
    write(folder, {'sample_annotation': []})
    assert Nuscenes(folder, 'val').most_boxes == 1 and len(read) == 2 * len(nuscenes_tables.TABLES)
    assert frame_of(Nuscenes(folder, 'val')[0]).boxes == ()


def test_a_split_travels_without_what_only_others_need(folder):
    two_scenes(folder)
    train, val = (pickle.dumps(Nuscenes(folder, split)) for split in ('train', 'val'))
    for channel in ('LIDAR_TOP', *CAMERAS):
        first, last = (f'samples/{channel}/{k}.'.encode() for k in (0, LAST))
        assert first in train and last not in train and first not in val and last in val


def test_only_sweeps_that_a_frame_needs_must_be_there(folder):
    def without(k):
        rows = [row for row in tables()['sample_data'] if row['token'] != f'LIDAR_TOP-{k}']
        write(folder, {'sample_data': rows})

    without(1)
    assert len(frame_of(Nuscenes(folder, 'train')[1]).sweeps) == 10  # 11, 10, .. 2
    without(5)
    said = r"sample_data\.json: has no row 'LIDAR_TOP-5', which row 'LIDAR_TOP-6' of sample_data"
    with pytest.raises(DataError, match=said):
        Nuscenes(folder, 'train')


def turned(quaternion, vector, back=False):
    """A vector turned by a quaternion of any length, as q v q* is."""
    w, *axis = quaternion / np.linalg.norm(quaternion)
    axis = -np.array(axis) if back else np.array(axis)
    across = 2 * np.cross(axis, vector)
    return vector + w * across + np.cross(axis, across)


def outward(row, place):
    return turned(np.array(row['rotation']), place) + row['translation']


def inward(row, place):
    return turned(np.array(row['rotation']), place - np.array(row['translation']), back=True)


def test_frames_are_what_their_rows_say_row_by_row(folder):
    """However sensors and vehicle lean: places are carried from row to row, without matrices."""
    found, rng = tables(), np.random.default_rng(0)
    found['sample_annotation'] = [annotation(k, 'vehicle.car') for k in range(5)]
    for row in (*found['ego_pose'], *found['calibrated_sensor'], *found['sample_annotation']):
        row['translation'] = rng.normal(0, 9, 3).tolist()
        row['rotation'] = rng.normal(0, 1, 4).tolist()
    write(folder, found)
    frame = frame_of(Nuscenes(folder, 'train')[1])
    rows = {row['token']: row for name in found for row in found[name]}

    def to_world(shot, place):
        mounted = outward(rows[shot['calibrated_sensor_token']], place)
        return outward(rows[shot['ego_pose_token']], mounted)

    def from_world(shot, place):
        driven = inward(rows[shot['ego_pose_token']], place)
        return inward(rows[shot['calibrated_sensor_token']], driven)

    now, place = rows[f'LIDAR_TOP-{LAST}'], rng.normal(0, 9, 3)
    for row, box in zip(found['sample_annotation'], frame.boxes, strict=True):
        centre, front = (from_world(now, outward(row, np.array([k, 0, 0]))) for k in (0, 1))
        x, y, _ = front - centre
        width, length, height = row['size']
        np.testing.assert_allclose(
            box, [*centre, length, width, height, np.arctan2(y, x)], rtol=1e-5, atol=1e-5
        )
    for k, sweep in enumerate(frame.sweeps):
        expected = from_world(now, to_world(rows[f'LIDAR_TOP-{LAST - k}'], place))
        moved = np.array(sweep.transform) @ [*place, 1] if k else place
        np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-9)
    for name, camera in zip(CAMERAS, frame.cameras, strict=True):
        x, y, z = from_world(rows[f'{name}-{LAST}'], to_world(now, place))
        expected = [100 * x + 80 * z, 100 * y + 45 * z, z]
        np.testing.assert_allclose(np.array(camera.projection) @ [*place, 1], expected, atol=1e-8)
    np.testing.assert_allclose(
        frame.vehicle, inward(rows[now['calibrated_sensor_token']], np.zeros(3))[:2], rtol=1e-9
    )
