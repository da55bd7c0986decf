import cmath
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol_jax.config import Config, DataConfig
from wsol_jax.data import DataError, Nuscenes, check_folder, open_source
from wsol_jax.data.boxes_3d import points_inside, project
from wsol_jax.data.check import UNREAD
from wsol_jax.data.check_frames import EMPTY
from wsol_jax.data.check_frames import SWEEPS as UNREADABLE
from wsol_jax.data.check_images import BROKEN
from wsol_jax.data.frames import FrameTargets, frame_of, read_points
from wsol_jax.data.nuscenes import CLASSES
from wsol_jax.data.nuscenes_frames import rotation_matrix
from wsol_jax.data.nuscenes_tables import CAMERAS
from wsol_jax.run import open_split

SWEEPS = 12  # 20 a second; two samples: the first sweep and the last
FIRST, LAST = 0, SWEEPS - 1
PLACE = (20.0, 3.0, 1.0)  # of an object in the world
YAW = 0.3
SIZE = [2.0, 4.0, 1.5]  # width, length, height
MOUNT = (1.0, 0.0, 1.8)  # of the LiDAR on the vehicle; its y points ahead, its x to the right
CAMERA = (1.5, 0.0, 1.5)  # looks ahead
LEVEL = [1.0, 0.0, 0.0, 0.0]


def about_z(angle):
    return [np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]


def vehicle(k):
    """Where it is in the world, and where it heads, at a sweep."""
    return complex(k, 0.1 * k), 0.05 * k


def seen_from(k, place):
    """A place in the world in the frame of the LiDAR, by hand: complex numbers turn the plane."""
    at, yaw = vehicle(k)
    ego = (complex(*place[:2]) - at) * cmath.exp(-1j * yaw)
    lidar = (ego - MOUNT[0]) * 1j
    return [lidar.real, lidar.imag, place[2] - MOUNT[2]]


def pose(k):
    at, yaw = vehicle(k)
    return {'translation': [at.real, at.imag, 0.0], 'rotation': about_z(yaw)}


def sample_data(channel, k):
    is_lidar = channel == 'LIDAR_TOP'
    return {
        'token': f'{channel}-{k}',
        'sample_token': 'sample-0' if k == FIRST else 'sample-1',
        'ego_pose_token': f'pose-{k}' if is_lidar else f'pose-{k}-later',
        'calibrated_sensor_token': f'calibrated-{channel}',
        'filename': f'samples/{channel}/{k}.{"bin" if is_lidar else "jpg"}',
        'is_key_frame': k in (FIRST, LAST),
        'timestamp': 1_000_000 + 50_000 * k,
        'width': 160,
        'height': 90,
        'prev': f'{channel}-{k - 1}' if k and is_lidar else '',
        'next': '',
    }


def annotation(number, category, size=SIZE, points=3, sample='sample-1'):
    return {
        'token': f'annotation-{number}',
        'sample_token': sample,
        'instance_token': f'instance-{category}',
        'translation': list(PLACE),
        'size': list(size),
        'rotation': about_z(YAW),
        'num_lidar_pts': points,
        'num_radar_pts': 0,
    }


def tables():
    sensors = ['LIDAR_TOP', *CAMERAS]
    categories = ['vehicle.car', 'vehicle.bicycle', 'static_object.bicycle_rack', 'animal']
    lidar = {'translation': list(MOUNT), 'rotation': about_z(-np.pi / 2), 'camera_intrinsic': []}
    camera = {
        'translation': list(CAMERA),
        'rotation': [0.5, -0.5, 0.5, -0.5],
        'camera_intrinsic': [[100, 0, 80], [0, 100, 45], [0, 0, 1]],
    }
    mounts = {channel: lidar if channel == 'LIDAR_TOP' else camera for channel in sensors}
    return {
        'scene': [{'token': 's', 'name': 'scene-0061', 'first_sample_token': 'sample-0'}],
        'sample': [
            {'token': 'sample-0', 'next': 'sample-1', 'scene_token': 's'},
            {'token': 'sample-1', 'next': '', 'scene_token': 's'},
        ],
        'sample_data': [
            *(sample_data('LIDAR_TOP', k) for k in range(SWEEPS)),
            *(sample_data(channel, k) for channel in CAMERAS for k in (FIRST, LAST)),
        ],
        'ego_pose': [
            *({'token': f'pose-{k}', **pose(k)} for k in range(SWEEPS)),
            *({'token': f'pose-{k}-later', **pose(k + 0.5)} for k in (FIRST, LAST)),
        ],
        'calibrated_sensor': [
            {'token': f'calibrated-{channel}', 'sensor_token': f'sensor-{channel}', **mount}
            for channel, mount in mounts.items()
        ],
        'sensor': [{'token': f'sensor-{channel}', 'channel': channel} for channel in sensors],
        'sample_annotation': [annotation(0, 'vehicle.car'), annotation(1, 'animal')],
        'instance': [
            {'token': f'instance-{name}', 'category_token': f'category-{name}'}
            for name in categories
        ],
        'category': [{'token': f'category-{name}', 'name': name} for name in categories],
    }


def write(root, found):
    folder = root / 'v1.0-mini'
    folder.mkdir(exist_ok=True)
    for name, rows in found.items():
        (folder / f'{name}.json').write_text(json.dumps(rows))


@pytest.fixture
def root(tmp_path):
    write(tmp_path, tables())
    for row in tables()['sample_data']:
        file = tmp_path / row['filename']
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == '.bin':
            k = int(file.stem)
            rows = [[*seen_from(k, PLACE), 51, 7], [0.5, -0.5, 0, 255, 7]]
            file.write_bytes(np.array(rows, np.float32).tobytes())
        else:
            Image.new('RGB', (160, 90), 'red').save(file)
    return tmp_path


def test_quaternions_turn_as_they_are_written():
    turn = rotation_matrix([2 * np.cos(0.3), 0, 0, 2 * np.sin(0.3)])
    expected = [[np.cos(0.6), -np.sin(0.6), 0], [np.sin(0.6), np.cos(0.6), 0], [0, 0, 1]]
    np.testing.assert_allclose(turn, expected, atol=1e-12)
    # A third of a turn about (1, 1, 1) takes x to y, y to z, z to x.
    third = rotation_matrix([0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(third, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_ten_sweeps_lie_in_the_frame_of_the_last(root):
    """A thing that stands still is where it is, however the vehicle came there."""
    source = open_source('nuscenes', root, 'train')
    assert [record.image_id for record in source] == ['sample-0', 'sample-1']
    frame = frame_of(source[1])
    points = read_points(frame)
    assert points.shape == (10, 5)  # ten of twelve sweeps; the other points are the vehicle
    expected = np.tile(seen_from(LAST, PLACE), (10, 1))
    np.testing.assert_allclose(points[:, :3], expected, atol=1e-5)
    np.testing.assert_allclose(points[:, 3], 0.2, rtol=1e-6)
    np.testing.assert_allclose(points[:, 4], 0.05 * np.arange(10), atol=1e-6)
    assert read_points(frame_of(source[0])).shape == (1, 5)  # the scene begins there
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_boxes_are_in_the_frame_of_the_lidar(root):
    source = Nuscenes(root, 'train')
    frame = frame_of(source[1])
    assert source.class_names[:2] == ('car', 'truck') and source.num_classes == 10
    assert frame.classes == source[1].labels == (0,)  # no animals
    (box,) = frame.boxes
    np.testing.assert_allclose(box[:3], seen_from(LAST, PLACE), atol=1e-5)
    np.testing.assert_allclose(box[3:6], [4, 2, 1.5])
    assert box[6] == pytest.approx(YAW - vehicle(LAST)[1] + np.pi / 2, abs=1e-5)
    assert frame_of(source[0]).boxes == () == source[0].labels and source.most_boxes == 1


def test_distances_are_measured_from_the_vehicle(root):
    """It is a metre behind the LiDAR, whose y points ahead."""
    for record in Nuscenes(root, 'train'):
        assert frame_of(record).vehicle == pytest.approx((0, -MOUNT[0]))


def test_six_cameras_see_from_where_the_vehicle_was_when_they_did(root):
    record = Nuscenes(root, 'train')[1]
    frame = frame_of(record)
    assert record.image == root / f'samples/CAM_FRONT/{LAST}.jpg' and record.size == (160, 90)
    assert [camera.image.parent.name for camera in frame.cameras] == list(CAMERAS)
    at, yaw = vehicle(LAST + 0.5)
    ego = (complex(*PLACE[:2]) - at) * cmath.exp(-1j * yaw) - CAMERA[0]
    pixels, depth = project([frame.boxes[0][:3]], frame.cameras[3].projection)
    assert depth[0] == pytest.approx(ego.real, rel=1e-5)
    down = CAMERA[2] - PLACE[2]
    expected = [80 - 100 * ego.imag / ego.real, 45 + 100 * down / ego.real]
    np.testing.assert_allclose(pixels[0], expected, rtol=1e-4)


def test_boxes_without_points_and_bikes_in_racks_are_left_out(root):
    bike = 'vehicle.bicycle'
    found = [annotation(0, 'vehicle.car', points=0), annotation(1, bike)]
    write(root, {'sample_annotation': found})
    assert frame_of(Nuscenes(root, 'train')[1]).classes == (5,)
    found.append(annotation(2, 'static_object.bicycle_rack', points=0))
    write(root, {'sample_annotation': found})
    assert frame_of(Nuscenes(root, 'train')[1]).classes == ()


def scene(name, sample):
    return {'token': name, 'name': name, 'first_sample_token': sample}


def test_splits_are_lists_of_scenes(root):
    found = [scene('scene-0103', 'sample-1'), scene('scene-0061', 'sample-0')]
    write(
        root,
        {
            'scene': found,
            'sample': [{'token': 'sample-0', 'next': ''}, {'token': 'sample-1', 'next': ''}],
        },
    )
    ids = {s: [record.image_id for record in Nuscenes(root, s)] for s in ('train', 'val')}
    assert ids == {'train': ['sample-0'], 'val': ['sample-1']}  # those of v1.0-mini
    (root / 'splits').mkdir()
    (root / 'splits/train.txt').write_text('scene-0103\nscene-0061\n')
    assert len(Nuscenes(root, 'train')) == 2
    half = Nuscenes(root, 'train', labelled=0.5)
    assert sum(frame_of(record).labelled for record in half) == 1


def test_the_experiment_opens_it(root):
    data = DataConfig('nuscenes', str(root), 'v1.0-mini')
    source = open_split(Config(data=data), 'train')
    found = FrameTargets(20, 2, num_cameras=6, camera_size=(9, 16))(source[1])
    assert found['cameras'].shape == (6, 9, 16, 3) and found['points_valid'].sum() == 10


def no_table(root):
    (root / 'v1.0-mini/ego_pose.json').unlink()
    return f'{root}/v1.0-mini/ego_pose.json: no such file'


def no_json(root):
    (root / 'v1.0-mini/sensor.json').write_text('[{')
    return f'{root}/v1.0-mini/sensor.json: Expecting property name'


def no_rows(root):
    write(root, {'instance': {'a': 1}})
    return f'{root}/v1.0-mini/instance.json: is no list of rows with tokens'


def no_token(root):
    write(root, {'instance': [*tables()['instance'], {'category_token': 'category-animal'}]})
    return f'{root}/v1.0-mini/instance.json: is no list of rows with tokens'


def no_pose(root):
    write(root, {'ego_pose': tables()['ego_pose'][1:]})
    said = "has no row 'pose-0', which row 'LIDAR_TOP-0' of sample_data.json names"
    return f'{root}/v1.0-mini/ego_pose.json: {said}'


def no_sample(root):
    write(root, {'sample': tables()['sample'][:1]})
    return f"{root}/v1.0-mini/sample.json: has no row 'sample-1', which row 'sample-0'"


def no_camera(root):
    rows = [row for row in tables()['sample_data'] if row['token'] != 'CAM_BACK-0']
    write(root, {'sample_data': rows})
    return f'{root}/v1.0-mini/sample_data.json: sample sample-0 has no CAM_BACK'


def no_value(root):
    rows = tables()['ego_pose']
    del rows[0]['rotation']
    write(root, {'ego_pose': rows})
    return f"{root}/v1.0-mini/ego_pose.json: row 'pose-0': has no 'rotation'"


def spoiled(root, table, **values):
    """What names the first row of a table, which has other values then."""
    rows = tables()[table]
    rows[0] |= values
    write(root, {table: rows})
    return f"{root}/v1.0-mini/{table}.json: row '{rows[0]['token']}': "


def no_key(root):
    rows = tables()['sample_data']
    del rows[3]['is_key_frame']
    write(root, {'sample_data': rows})
    return f"{root}/v1.0-mini/sample_data.json: row 'LIDAR_TOP-3': has no 'is_key_frame'"


def no_rotation(root):
    said = spoiled(root, 'sample_annotation', rotation=[0, 0, 0, 0])
    return f'{said}malformed (a rotation of length 0)'


def two_numbers(root):
    said = spoiled(root, 'ego_pose', translation=[1, 2])
    return f'{said}malformed (translation is [1, 2]; it is 3 numbers)'


def no_number(root):
    said = spoiled(root, 'sample_annotation', size=[1, float('nan'), 2])
    return f'{said}malformed (size is [1, nan, 2]; it is 3 numbers)'


def no_intrinsics(root):
    rows = tables()['calibrated_sensor']
    rows[1]['camera_intrinsic'] = []
    write(root, {'calibrated_sensor': rows})
    said = (
        "row 'calibrated-CAM_FRONT': malformed (camera_intrinsic is []; it is 3 rows of 3 numbers)"
    )
    return f'{root}/v1.0-mini/calibrated_sensor.json: {said}'


def unknown_category(root):
    rows = tables()['category']
    rows[0]['name'] = 'vehicle.cat'
    write(root, {'category': rows})
    return (
        f"{root}/v1.0-mini/category.json: unknown class 'vehicle.cat'; did you mean 'vehicle.car'"
    )


def negative_size(root):
    write(root, {'sample_annotation': [annotation(0, 'vehicle.car', size=(2, -4, 1.5))]})
    return f'{root}/v1.0-mini/sample_annotation.json: annotation-0: a box of -4 x 2 x 1.5 m'


def elsewhere(root):
    rows = tables()['sample_data']
    rows[0]['filename'] = '../secret.bin'
    write(root, {'sample_data': rows})
    return f"{root}/v1.0-mini/sample_data.json: '../secret.bin' leads out of the data set"


def token_elsewhere(root):
    rows = tables()['sample']
    rows[0]['next'] = rows[1]['token'] = '../../../escaped'
    write(root, {'sample': rows})
    return f"{root}/v1.0-mini/sample.json: token '../../../escaped' leads out of the folder"


def two_versions(root):
    (root / 'v1.0-trainval').mkdir()
    (root / 'v1.0-trainval/scene.json').write_text('[]')
    return f'{root}: has v1.0-mini, v1.0-trainval; name one by config.data.name'


def no_tables(root):
    (root / 'v1.0-mini').rename(root / 'mini')
    return f'{root}: no folder v1.0-trainval or the like with scene.json in it, nor info.json'


@pytest.mark.parametrize(
    'spoil',
    [
        *(no_table, no_json, no_rows, no_pose, no_sample, no_camera, no_value, unknown_category),
        *(negative_size, elsewhere, two_versions, no_tables),
        *(no_token, no_key, no_rotation, two_numbers, no_number, no_intrinsics, token_elsewhere),
    ],
)
def test_what_is_wrong_is_named(root, spoil):
    said = spoil(root)
    with pytest.raises(DataError) as error:
        Nuscenes(root, 'train')
    assert str(error.value).startswith(said) and '\n' not in str(error.value)


def test_unknown_splits_and_scenes_are_named(root):
    with pytest.raises(DataError, match=r'splits/test\.txt: no such file; it lists the scenes'):
        Nuscenes(root, 'test')
    (root / 'splits').mkdir()
    (root / 'splits/val.txt').write_text('scene-0062\n')
    with pytest.raises(DataError, match=r"val\.txt: unknown scene 'scene-0062'; did you mean"):
        Nuscenes(root, 'val')


@pytest.fixture(scope='module')
def real():
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real frame')
    return Path(os.environ['WSOL_DATA']) / 'nuscenes_1frame'


def info(real):
    content = json.loads((real / 'info.json').read_text())
    return list(content['metainfo']['categories']), content['data_list'][0]


def test_a_real_frame_has_the_points_that_its_list_counts(real):
    """The counts are those of nuScenes, whose boxes also lean; ours stand upright."""
    (record,) = Nuscenes(real, 'train')
    frame = frame_of(record)
    names, row = info(real)
    counted = [i for i in row['instances'] if i['bbox_label'] >= 0]
    counted = [i for i in counted if i['num_lidar_pts'] + i['num_radar_pts'] > 0]
    assert [CLASSES[k] for k in frame.classes] == [names[i['bbox_label']] for i in counted]
    inside = points_inside(read_points(frame), frame.boxes).sum(1)
    wanted = np.array([i['num_lidar_pts'] for i in counted])
    assert len(inside) == 65 and (inside == wanted).sum() >= 56
    assert (abs(inside - wanted) <= np.maximum(1, 0.11 * wanted)).all()
    # 0.94 m ahead of it and 1.84 m above, nodding by 0.024: 0.94 - 0.024 * 1.84.
    assert frame.vehicle == pytest.approx((0, -0.9), abs=0.02)


def test_real_cameras_see_the_objects_where_they_are_listed(real):
    (record,) = Nuscenes(real, 'train')
    frame = frame_of(record)
    assert record.size == (1600, 900) and len(frame.cameras) == 6
    _, row = info(real)
    off = []
    for name, camera in zip(CAMERAS, frame.cameras, strict=True):
        listed = [i for i in row['cam_instances'][name] if i['bbox_label'] >= 0]
        pixels, depth = project([box[:3] for box in frame.boxes], camera.projection)
        for found in listed:
            distance = np.hypot(*(pixels - found['center_2d']).T) + abs(depth - found['depth'])
            off.append(distance.min())
    assert len(off) > 70 and np.median(off) < 0.1 and np.mean(np.array(off) < 1) > 0.9


def test_bad_lists_are_named(tmp_path):
    (tmp_path / 'info.json').write_text('{"metainfo": {}}')
    with pytest.raises(DataError, match=r"info\.json: has no 'categories'"):
        Nuscenes(tmp_path, 'train')


def list_of_one(root):
    """A frame of info.json, with its files."""
    for name in CAMERAS:
        Image.new('RGB', (16, 9)).save(root / f'{name}.png')
    (root / 'points.bin').write_bytes(np.full(10, 5, np.float32).tobytes())
    camera = {'cam2img': np.eye(3).tolist(), 'lidar2cam': np.eye(4).tolist()}
    box = {'bbox_3d': [9, 8, 0, 4, 2, 1.5, 0.3], 'bbox_label_3d': 0, 'num_lidar_pts': 3}
    return {
        'token': 'abc',
        'lidar_points': {'lidar_path': 'points.bin', 'num_pts_feats': 5},
        'images': {name: {'img_path': f'{name}.png', **camera} for name in CAMERAS},
        'instances': [{**box, 'num_radar_pts': 0}],
    }


def write_list(root, *rows):
    content = {'metainfo': {'categories': {'car': 0}}, 'data_list': rows}
    (root / 'info.json').write_text(json.dumps(content))


def test_a_list_of_single_frames(tmp_path):
    write_list(tmp_path, list_of_one(tmp_path))
    (record,) = Nuscenes(tmp_path, 'train')
    frame = frame_of(record)
    np.testing.assert_allclose(frame.boxes, [[9, 8, 0, 4, 2, 1.5, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(read_points(frame)[:, :4], [[5, 5, 5, 5 / 255]] * 2)


def test_data_check_reads_every_camera(tmp_path):
    row = list_of_one(tmp_path)
    write_list(tmp_path, row)
    report = check_folder(tmp_path)
    assert report.summary[0] == 'all: 1 images, 1 classes, 1 labels, 1 sweeps, 1 boxes in 3D'
    assert report.problems == {} and list(report.notes) == [EMPTY]
    file = tmp_path / 'CAM_BACK.png'
    file.write_bytes(file.read_bytes()[:-14])
    assert list(check_folder(tmp_path).problems) == [BROKEN]


def test_data_check_tells_what_info_json_is_by_what_is_in_it(tmp_path):
    write_list(tmp_path, list_of_one(tmp_path))
    file = tmp_path / 'info.json'
    file.write_text(file.read_text()[:-1])
    report = check_folder(tmp_path)
    assert list(report.problems) == [UNREAD] and report.notes == {}
    folder = tmp_path / 'other/train/cat'
    folder.mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(folder / 'a.png')
    (tmp_path / 'other/info.json').write_text('{"license": "by"}')
    assert check_folder(tmp_path / 'other').summary[0] == 'train: 1 images, 1 classes, 1 labels'


def test_data_check_reads_tables(root):
    report = check_folder(root)
    # The first sample has one sweep, the last one ten up to it.
    assert report.summary[0] == 'train: 2 images, 1 classes, 1 labels, 11 sweeps, 1 boxes in 3D'
    assert report.problems == {}
    (root / sample_data('LIDAR_TOP', LAST)['filename']).unlink()
    (problem,) = check_folder(root).problems
    assert problem == UNREADABLE


def columns(value):
    def spoil(row):
        row['lidar_points']['num_pts_feats'] = value

    return spoil


def mount(value):
    def spoil(row):
        row['lidar_points']['lidar2ego'] = value

    return spoil


def projection(name, value):
    def spoil(row):
        row['images']['CAM_BACK'][name] = value

    return spoil


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        *((columns(value), 'num_pts_feats is') for value in (0, 3, -5, '5', 5.5, None)),
        (mount(np.eye(3).tolist()), '3 rows of 4 numbers'),
        (mount([[float('nan')] * 4] * 4), '3 rows of 4 numbers'),
        (mount(np.zeros((4, 4)).tolist()), 'malformed'),
        (projection('cam2img', [[float('nan')] * 3] * 3), '3 rows of 4 numbers'),
        (projection('lidar2cam', np.eye(3).tolist()), '3 rows of 4 numbers'),
    ],
)
def test_what_is_wrong_in_a_list_is_named(tmp_path, spoil, said):
    row = list_of_one(tmp_path)
    spoil(row)
    write_list(tmp_path, row)
    with pytest.raises(DataError, match=rf'info\.json: .*{said}'):
        Nuscenes(tmp_path, 'train')


@pytest.mark.parametrize(
    ('part', 'key', 'said'),
    [
        ((), 'token', r"data_list\[1\]: has no 'token'"),
        (('images',), 'CAM_BACK', r"frame 'abc': has no 'CAM_BACK'"),
        (('images', 'CAM_BACK'), 'img_path', r"frame 'abc': has no 'img_path'"),
        (('lidar_points',), 'lidar_path', r"frame 'abc': has no 'lidar_path'"),
    ],
)
def test_the_frame_of_what_is_missing_in_a_list_is_named(tmp_path, part, key, said):
    good, bad = list_of_one(tmp_path), list_of_one(tmp_path)
    row = bad
    for name in part:
        row = row[name]
    del row[key]
    write_list(tmp_path, {**good, 'token': 'good'}, bad)
    with pytest.raises(DataError, match=rf'info\.json: {said}$'):
        Nuscenes(tmp_path, 'train')


@pytest.mark.parametrize('token', ['../../../escaped', '/escaped', 'a/../../escaped'])
def test_a_frame_whose_token_leads_out_of_a_folder_is_named(tmp_path, token):
    write_list(tmp_path, {**list_of_one(tmp_path), 'token': token})
    with pytest.raises(DataError, match=rf"info\.json: token '{token}' leads out of the folder"):
        Nuscenes(tmp_path, 'train')


def test_a_frame_that_is_listed_twice_is_named(tmp_path):
    row = list_of_one(tmp_path)
    write_list(tmp_path, row, row)
    with pytest.raises(DataError, match=r"info\.json: frame 'abc' is listed twice"):
        Nuscenes(tmp_path, 'train')
