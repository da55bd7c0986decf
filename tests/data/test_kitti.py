import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol_jax.config import Config, ConfigError, DataConfig
from wsol_jax.data import DataError, Kitti, check_folder, decode_image, open_source
from wsol_jax.data.boxes_3d import corners, points_inside, project
from wsol_jax.data.check import UNREAD
from wsol_jax.data.check_frames import EMPTY, SWEEPS
from wsol_jax.data.check_images import BROKEN
from wsol_jax.data.frames import frame_of, read_points
from wsol_jax.run import open_split

NAMES = ('000003', '000007', '000011')
CAR = 'Car 0.25 1 0.5 10 20 30 40 1.5 1.6 4.0 2.0 1.7 12.0 0.0'
VAN = 'Van 0.00 0 0.5 10 20 30 40 2.0 1.8 5.0 2.0 1.7 20.0 0.0'
DONT_CARE = 'DontCare -1 -1 -10 5.5 6.5 7.5 8.5 -1 -1 -1 -1000 -1000 -1000 -10'
POINTS = np.array([[10, 1, 0, 0.25], [20, -2, 1, 0.5]], np.float32)
# A camera 0.1 m right of the LiDAR's middle, 0.2 m above and 0.3 m ahead; focal length 100.
CALIBRATION = {
    'P0': '1 0 0 0 0 1 0 0 0 0 1 0',
    'P2': '100 0 50 0 0 100 40 0 0 0 1 0',
    'R0_rect': '1 0 0 0 1 0 0 0 1',
    'Tr_velo_to_cam': '0 -1 0 0.1 0 0 -1 -0.2 1 0 0 -0.3',
}


@pytest.fixture
def root(tmp_path):
    for folder in ('velodyne', 'image_2', 'calib', 'label_2'):
        (tmp_path / 'training' / folder).mkdir(parents=True)
    for name in NAMES:
        part(tmp_path, 'velodyne', name).write_bytes(POINTS.tobytes())
        Image.new('RGB', (100, 80), 'red').save(part(tmp_path, 'image_2', name))
        write_calibration(tmp_path, name, CALIBRATION)
        part(tmp_path, 'label_2', name).write_text('\n'.join([CAR, VAN, DONT_CARE]) + '\n')
    return tmp_path


def part(root, folder, name):
    ending = {'velodyne': 'bin', 'image_2': 'png'}.get(folder, 'txt')
    return root / 'training' / folder / f'{name}.{ending}'


def write_calibration(root, name, lines):
    text = ''.join(f'{key}: {numbers}\n' for key, numbers in lines.items())
    part(root, 'calib', name).write_text(text + '\n')


def test_a_frame(root):
    source = open_source('kitti', root, 'train')
    assert [record.image_id for record in source] == list(NAMES)
    assert source.class_names == ('Car', 'Pedestrian', 'Cyclist') and source.most_boxes == 1
    record = source[0]
    frame = frame_of(record)
    assert record.labels == (0,) == frame.classes and record.size == (100, 80)
    assert decode_image(record).shape == (80, 100, 3)
    # rotation_y 0 heads right; the middle is half a height above the bottom.
    expected = [12.3, -1.9, -1.7 + 0.75 - 0.2, 4.0, 1.6, 1.5, -np.pi / 2]
    np.testing.assert_allclose(frame.boxes, [expected], rtol=1e-5)
    assert frame.labelled
    np.testing.assert_array_equal(read_points(frame)[:, :4], POINTS)
    car, van = record.extra['kitti']
    assert (car.name, car.truncated, car.occluded, car.box_2d) == ('Car', 0.25, 1, (10, 20, 30, 40))
    assert (
        car.box == frame.boxes[0]
        and van.name == 'Van'
        and van.box[3:6] == pytest.approx((5, 1.8, 2))
    )
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_its_camera(root):
    (camera,) = frame_of(Kitti(root, 'train')[0]).cameras
    pixels, depth = project([[10.3, 1.1, 0.8]], camera.projection)
    assert depth[0] == pytest.approx(10)
    np.testing.assert_allclose(pixels, [[50 - 100 * 1.0 / 10, 40 - 100 * 1.0 / 10]], rtol=1e-5)


def test_points_outside_of_the_image_are_left_out(root):
    """10 m before the camera its 100 x 80 pixels show 5 m to either side, 4 m up and down."""
    shown = [[10.3, 4.9 + 0.1, -0.2], [10.3, -4.8 + 0.1, -0.2], [10.3, 0.1, 3.7], [10.3, 0.1, -4.1]]
    beside = [
        [10.3, 5.1 + 0.1, -0.2],
        [10.3, -5.1 + 0.1, -0.2],
        [10.3, 0.1, 3.9],
        [10.3, 0.1, -4.3],
    ]
    behind = [[-9.7, 0.1, -0.2], [0.3, 0.1, -0.2], [-30, 2, -1]]
    points = np.array([*behind, *shown, *beside], np.float32)
    rows = np.column_stack([points, np.ones(len(points), np.float32)])
    part(root, 'velodyne', NAMES[0]).write_bytes(rows.tobytes())
    frame = frame_of(Kitti(root, 'train')[0])
    np.testing.assert_array_equal(read_points(frame)[:, :3], points[3:7])
    assert len(read_points(replace(frame, in_image=False))) == 11
    part(root, 'velodyne', NAMES[0]).write_bytes(rows[:3].tobytes())
    assert read_points(frame).shape == (0, 5)


@pytest.mark.parametrize('place', ['.', 'training'])
def test_lists_of_splits(root, place):
    (root / place / 'ImageSets').mkdir()
    (root / place / 'ImageSets/train.txt').write_text('000011\n000003\n')
    assert [record.image_id for record in Kitti(root, 'train')] == ['000011', '000003']
    with pytest.raises(DataError, match=r'ImageSets/val\.txt: no such file'):
        Kitti(root, 'val')


def test_the_experiment_opens_it(root):
    data = DataConfig('kitti', str(root), labelled=0.34)
    train, val = (open_split(Config(data=data), split) for split in ('train', 'val'))
    assert sum(frame_of(record).labelled for record in train) == 1
    assert all(frame_of(record).labelled for record in val)
    with pytest.raises(ConfigError, match=r"source='kitti' needs config\.data\.root"):
        open_split(Config(data=DataConfig('kitti')), 'train')


def no_sweeps(root):
    for name in NAMES:
        part(root, 'velodyne', name).unlink()
    return f'{root}/training/velodyne: has no sweep'


def no_training(root):
    (root / 'training').rename(root / 'testing')
    return f'{root}: no folder training/velodyne in it'


def no_calibration(root):
    part(root, 'calib', NAMES[1]).unlink()
    return f'{part(root, "calib", NAMES[1])}: no such file'


def calibration_without_a_line(root):
    write_calibration(root, NAMES[1], {k: v for k, v in CALIBRATION.items() if k != 'R0_rect'})
    return f'{part(root, "calib", NAMES[1])}: has no line R0_rect'


def calibration_too_short(root):
    write_calibration(root, NAMES[1], {**CALIBRATION, 'P2': '1 2 3'})
    return f"{part(root, 'calib', NAMES[1])}:2: P2: expected 12 numbers, got '1 2 3'"


def calibration_of_words(root):
    write_calibration(root, NAMES[1], {**CALIBRATION, 'R0_rect': '1 0 0 0 one 0 0 0 1'})
    return f'{part(root, "calib", NAMES[1])}:3: R0_rect: expected 9 numbers'


def label(root, line):
    part(root, 'label_2', NAMES[1]).write_text(f'{CAR}\n{line}\n')
    return f'{part(root, "label_2", NAMES[1])}:2: '


def unknown_class(root):
    return label(root, CAR.replace('Car', 'Cat')) + "unknown class 'Cat'; did you mean 'Car'?"


def negative_size(root):
    where = label(root, CAR.replace('1.5 1.6', '-1.5 1.6'))
    return where + 'a box of 4 x 1.6 x -1.5 m (length, width, height)'


def short_label(root):
    return label(root, 'Car 0 0') + "expected 'type truncated occluded"


def label_of_words(root):
    return label(root, CAR.replace('12.0', 'far')) + 'expected'


def no_image(root):
    part(root, 'image_2', NAMES[1]).unlink()
    return f'{part(root, "image_2", NAMES[1])}: no such file'


@pytest.mark.parametrize(
    'spoil',
    [
        *(no_sweeps, no_training, no_calibration, calibration_without_a_line),
        *(calibration_too_short, calibration_of_words, unknown_class, negative_size),
        *(short_label, label_of_words, no_image),
    ],
)
def test_what_is_wrong_is_named(root, spoil):
    said = spoil(root)
    with pytest.raises(DataError) as error:
        Kitti(root, 'train')
    assert str(error.value).startswith(said) and '\n' not in str(error.value)


def test_a_sweep_of_a_wrong_length_is_named_when_it_is_read(root):
    file = part(root, 'velodyne', NAMES[0])
    file.write_bytes(bytes(20))
    with pytest.raises(DataError, match=f'{file}: has 20 bytes; a sweep has a multiple of 16'):
        read_points(frame_of(Kitti(root, 'train')[0]))


def test_data_check_reads_every_sweep_and_image(root):
    in_box = np.array([[12, -2, -1, 0]], np.float32)  # the car is at 12.3, -1.9, -1.15
    for name in NAMES[:2]:
        part(root, 'velodyne', name).write_bytes(in_box.tobytes())
    report = check_folder(root)
    assert report.summary[0] == 'all: 3 images, 1 classes, 3 labels, 3 sweeps, 3 boxes in 3D'
    assert report.problems == {} and report.notes == {EMPTY: ["'000011': 1 of 1 boxes"]}
    part(root, 'velodyne', NAMES[0]).write_bytes(bytes(20))
    image = part(root, 'image_2', NAMES[1])
    image.write_bytes(image.read_bytes()[:-20])
    problems = check_folder(root).problems
    assert list(problems) == [BROKEN, SWEEPS]
    assert problems[SWEEPS][0].startswith(f'{part(root, "velodyne", NAMES[0])}: has 20 bytes')
    (root / 'ImageSets').mkdir()
    (root / 'ImageSets/val.txt').write_text('000011\n')
    report = check_folder(root)
    assert [line.split(':')[0] for line in report.summary] == ['val', 'val, images of each class']
    assert report.problems == {} and len(report.notes) == 2  # two images are in no list
    part(root, 'calib', NAMES[2]).unlink()
    assert list(check_folder(root).problems) == [UNREAD]


@pytest.fixture(scope='module')
def real():
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real frames')
    return Kitti(Path(os.environ['WSOL_DATA']) / 'kitti', 'train')


def test_real_boxes_hold_points(real):
    """Every car that is not much occluded has points inside: the image shows what is labelled."""
    seen = 0
    for record in real:
        points = read_points(frame_of(record))
        assert 10_000 < len(points) < 30_000 and points[:, 3].max() <= 1
        clear = [k for k in record.extra['kitti'] if k.name == 'Car' and k.occluded <= 1]
        inside = points_inside(points, [k.box for k in clear]).sum(1)
        assert (inside > 0).all()
        seen += len(clear)
    assert seen >= 15


def test_real_boxes_are_projected_onto_their_2d_boxes(real):
    overlaps = []
    for record in real:
        (camera,) = frame_of(record).cameras
        for found in record.extra['kitti']:
            pixels, depth = project(corners([found.box])[0], camera.projection)
            limit = np.array(camera.size) - 1
            if depth.min() > 0.5 and found.name == 'Car':
                hull = [*np.clip(pixels.min(0), 0, limit), *np.clip(pixels.max(0), 0, limit)]
                overlaps.append(iou(hull, found.box_2d))
    assert len(overlaps) >= 20 and min(overlaps) > 0.95


def iou(one, two):
    """Of (x0, y0, x1, y1)."""
    width, height = (min(one[k + 2], two[k + 2]) - max(one[k], two[k]) for k in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    shared = max(width, 0) * max(height, 0)
    return shared / (sum(areas) - shared)
