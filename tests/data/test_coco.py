import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import Coco, DataError, decode_image, open_source, read_label_map

CATEGORIES = [{'id': 44, 'name': 'bottle'}, {'id': 1, 'name': 'person'}, {'id': 7, 'name': 'train'}]
# Rows 1 to 3 of columns 2 and 3, of 6 rows and 5 columns; and as pycocotools compresses it.
RUNS = [13, 3, 3, 3, 8]
COMPRESSED = '=3305'


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def thing(key, image, category, segmentation, crowd=0):
    known = {'id': key, 'image_id': image, 'category_id': category, 'iscrowd': crowd}
    return known | {'segmentation': segmentation, 'area': 1.0, 'bbox': [0, 0, 1, 1]}


def sound():
    """Of 9: a train, a bottle before it, a person of two parts and a crowd; nothing of 4."""
    return {
        'info': {},
        'images': [
            {'id': 9, 'file_name': '09.jpg', 'width': 5, 'height': 6, 'license': 1},
            {'id': 4, 'file_name': '04.jpg', 'width': 5, 'height': 6},
        ],
        'annotations': [
            thing(1, 9, 44, [box(1, 1, 3, 2)]),
            thing(2, 9, 7, [box(0, 0, 4, 3)]),
            thing(3, 9, 1, [box(0, 4, 1, 5), box(2.0, 4.0, 4.0, 5.0)]),
            thing(4, 9, 1, {'size': [6, 5], 'counts': [12, 18]}, 1),
        ],
        'categories': CATEGORIES,
    }


DRAWN = [
    [2, 2, 2, 2, 255],
    [2, 3, 3, 2, 255],
    [2, 2, 2, 2, 255],
    [0, 0, 255, 255, 255],
    [1, 0, 1, 1, 255],
    [0, 0, 255, 255, 255],
]


def write(root, content, split='val2014'):
    (root / 'annotations').mkdir(exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    file = root / 'annotations' / f'instances_{split}.json'
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def of_objects(root, *objects):
    write(root, sound() | {'annotations': list(objects)})
    return Coco(root, 'val2014')[0]


def label_map(record):
    return read_label_map(record.extra['segmentation'])


def test_labels_are_the_categories_of_all_objects(tmp_path):
    write(tmp_path, sound())
    source = open_source('coco', tmp_path, 'val2014')
    assert source.class_names == ('person', 'train', 'bottle') and source.num_classes == 3
    assert [(r.image_id, r.labels, r.size) for r in source] == [
        ('09.jpg', (0, 1, 2), (5, 6)),
        ('04.jpg', (), (5, 6)),
    ]
    assert source.most_labels == 3
    assert pickle.loads(pickle.dumps(source))[0] == source[0]
    assert len(pickle.dumps(source[0])) < 3000


def test_images_lie_in_the_folder_of_their_split(tmp_path):
    write(tmp_path, sound())
    Image.new('RGB', (5, 6)).save(tmp_path / 'val2014' / '09.jpg')
    assert decode_image(Coco(tmp_path, 'val2014')[0]).shape == (6, 5, 3)
    (tmp_path / '04.jpg').write_bytes(b'')
    (tmp_path / 'val2014/04.jpg').symlink_to(tmp_path.parent)
    with pytest.raises(DataError, match='leaves the data set'):
        decode_image(Coco(tmp_path, 'val2014')[1])


def test_small_objects_are_before_large_ones_and_crowds_behind(tmp_path):
    write(tmp_path, sound())
    for record, expected in zip(Coco(tmp_path, 'val2014'), (DRAWN, np.zeros((6, 5))), strict=True):
        np.testing.assert_array_equal(label_map(record), expected)
        assert dict(record.extra).keys() == {'segmentation'}
        assert record.extra.get('context') is None


@pytest.mark.parametrize('counts', [RUNS, COMPRESSED])
def test_runs_go_down_the_columns(tmp_path, counts):
    record = of_objects(tmp_path, thing(1, 9, 1, {'size': [6, 5], 'counts': counts}))
    expected = np.zeros((6, 5), int)
    expected[1:4, 2:4] = 1
    np.testing.assert_array_equal(label_map(record), expected)


def test_runs_and_polygons_are_those_of_pycocotools(tmp_path):
    from pycocotools import mask as tools

    rng = np.random.default_rng(3)
    for _ in range(20):
        pixels = rng.random((6, 5)) < rng.uniform(0.1, 0.9)
        counts = tools.encode(np.asfortranarray(pixels, np.uint8))['counts'].decode()
        record = of_objects(tmp_path, thing(1, 9, 1, {'size': [6, 5], 'counts': counts}))
        np.testing.assert_array_equal(label_map(record), pixels)
        corners = rng.uniform(0, 6, (2, 8)).round(2).tolist()
        drawn = tools.decode(tools.merge(tools.frPyObjects(corners, 6, 5)))
        record = of_objects(tmp_path, thing(1, 9, 1, corners))
        np.testing.assert_array_equal(label_map(record), drawn)


@pytest.mark.parametrize(
    ('changed', 'said'),
    [
        ({'image_id': 5}, 'there is no image 5'),
        ({'image_id': [9]}, 'there is no image [9]'),
        ({'category_id': 2}, 'there is no category 2'),
        ({'segmentation': []}, 'has no segmentation, neither polygons nor size and counts'),
        ({'segmentation': None}, 'has no segmentation'),
        ({'segmentation': [[1, 1, 3, 3]]}, 'has a polygon that is no list of the x, y of at least'),
        ({'segmentation': [[1, 1, 3, 3, 4, 5, 6]]}, 'has a polygon that is no list'),
        ({'segmentation': [[1, 1, 3, 3, 4, 'a']]}, 'has a polygon that is no list'),
        ({'segmentation': [1, 1, 3, 3, 4, 5]}, 'has a polygon that is no list'),
        ({'segmentation': [[1, 1, 3, 3, 4, 1e6]]}, 'has a polygon with corners beyond 100000'),
        ({'segmentation': [[1, 1, 3, 3, 4, float('nan')]]}, 'has a polygon with corners beyond'),
        (
            {'segmentation': {'size': [5, 6], 'counts': [30]}},
            'size [5, 6] is not [6, 5], the height and width of its image',
        ),
        (
            {'segmentation': {'size': [6, 5], 'counts': [1, 2, 3]}},
            'counts are of 6 pixels, the image has 30',
        ),
        ({'segmentation': {'size': [6, 5], 'counts': [40, -10]}}, 'counts are neither whole'),
        ({'segmentation': {'size': [6, 5]}}, 'counts are neither whole numbers nor'),
        ({'segmentation': {'size': [6, 5], 'counts': '=3 05'}}, "counts have the character ' '"),
        ({'segmentation': {'size': [6, 5], 'counts': 'o' * 99}}, 'counts are neither whole'),
    ],
)
def test_wrong_objects_are_named_and_left_out(tmp_path, changed, said):
    content = sound()
    content['annotations'][1] |= changed
    file = write(tmp_path, content)
    with pytest.raises(DataError) as error:
        Coco(tmp_path, 'val2014')
    assert str(error.value).startswith(f'{file}: annotation 2: {said}')
    faults = []
    assert Coco(tmp_path, 'val2014', faults=faults)[0].labels == (0, 2)
    assert faults == [str(error.value)]


def image(**changed):
    return {'images': [sound()['images'][0] | changed]}


@pytest.mark.parametrize(
    ('changed', 'said'),
    [
        ('{"images": [', ': Expecting value: line 1'),
        ('[]', ': expected lists of objects images, annotations, categories; no images'),
        (
            {'annotations': {}},
            ': expected lists of objects images, annotations, categories; no ann',
        ),
        ({'categories': [1]}, ': expected lists of objects'),
        ({'images': []}, ': lists no image'),
        ({'categories': []}, ': lists 0 categories; label maps have room for 1..254'),
        ({'categories': [{'id': [1], 'name': 'a'}]}, ': category [1]: each needs an id of its own'),
        ({'categories': [{'id': 1}]}, ': category 1: each needs an id of its own and a name'),
        ({'categories': CATEGORIES * 2}, ': category 44: each needs an id of its own'),
        (image(id='9'), ": image '9': not a whole number, or that of another image"),
        ({'images': sound()['images'] * 2}, ': image 9: not a whole number, or that of another'),
        (image(file_name='../a.jpg'), ": image 9: file_name '../a.jpg' is missing, leaves its fol"),
        (image(file_name=None), ': image 9: file_name None is missing'),
        (image(width=0), ': image 9: width 0 and height 6 must be whole numbers, of 1..500000000'),
        (image(height=10**9), ': image 9: width 5 and height 1000000000 must be whole'),
        (image(height=None), ': image 9: width 5 and height None'),
    ],
)
def test_wrong_files_are_one_line(tmp_path, changed, said):
    content = changed if isinstance(changed, str) else sound() | changed
    file = write(tmp_path, content)
    with pytest.raises(DataError) as error:
        Coco(tmp_path, 'val2014')
    assert str(error.value).startswith(f'{file}{said}') and '\n' not in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"instances_val.json: no split 'val'; available: none"):
        Coco(tmp_path, 'val')
    write(tmp_path, sound())
    with pytest.raises(DataError, match=r"no split 'train'; available: val2014"):
        Coco(tmp_path, 'train')
    (tmp_path / 'val2014').rmdir()
    with pytest.raises(DataError, match=r'val2014: no such folder \(expected the images of inst'):
        Coco(tmp_path, 'val2014')


def test_the_year_of_a_split_may_be_left_out_where_there_is_one(tmp_path):
    write(tmp_path, sound())
    assert Coco(tmp_path, 'val')[0] == Coco(tmp_path, 'val2014')[0]
    write(tmp_path, sound(), 'val2017')
    with pytest.raises(DataError, match=r"no split 'val'; available: val2014, val2017"):
        Coco(tmp_path, 'val')
    write(tmp_path, sound(), 'val')
    assert Coco(tmp_path, 'val')[0].image == tmp_path / 'val' / '09.jpg'


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycocotools', None)  # as if it were not there
    with pytest.raises(DataError, match=r"this needs pycocotools: pip install 'wsol_jax\[coco\]'"):
        Coco(tmp_path, 'val2014')
