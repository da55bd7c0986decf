import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import DataError, Labels, Voc, decode_image, open_source, read_label_map
from wsol_jax.data.voc import VOC_CLASSES

NAMES = {'train': ('2007_01', '2007_02'), 'val': ('2007_03',), 'test': ('2007_04',)}
MAPS = {
    '2007_01': [[0, 15, 255], [0, 15, 2]],
    '2007_02': [[7, 7, 7], [0, 0, 0]],
    '2007_03': [[0] * 3] * 2,
}
ANNOTATION = '<annotation><filename>x.jpg</filename>{}</annotation>'
PERSON = '<object><name>person</name><part><name>head</name></part></object>'


def write_map(root, name, values, folder='SegmentationClass'):
    file = root / folder / f'{name}.png'
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(file)
    return file


def annotate(root, name, *objects):
    file = root / 'Annotations' / f'{name}.xml'
    file.parent.mkdir(exist_ok=True)
    file.write_text(ANNOTATION.format(''.join(objects)))
    return file


@pytest.fixture
def root(tmp_path):
    """Four images of 3x2 pixels, all but that of test with label maps."""
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (tmp_path / 'JPEGImages').mkdir()
    for split, names in NAMES.items():
        (lists / f'{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            Image.new('RGB', (3, 2), 'red').save(tmp_path / 'JPEGImages' / f'{name}.jpg')
    for name, values in MAPS.items():
        write_map(tmp_path, name, values)
    return tmp_path


def test_labels_are_those_of_the_label_maps(root):
    train = open_source('voc', root, 'train')
    assert [record.image_id for record in train] == list(NAMES['train'])
    assert [record.labels for record in train] == [(1, 14), (6,)]
    assert [train.class_name(k) for k in (1, 14, 6)] == ['bicycle', 'person', 'car']
    assert train.num_classes == len(train.class_names) == 20 and train.class_names == VOC_CLASSES
    assert train.most_labels == 2
    assert Labels(train.most_labels)(train[1])['labels'].tolist() == [6, -1]
    for record in train:
        assert decode_image(record).shape == (2, 3, 3)
        label_map = read_label_map(record.extra['segmentation'], record.decoding)
        np.testing.assert_array_equal(label_map, MAPS[record.image_id])
    assert pickle.loads(pickle.dumps(train))[0] == train[0]


def test_images_without_a_label_map_or_objects_have_no_label(root):
    assert [(r.labels, dict(r.extra)) for r in Voc(root, 'test')] == [((), {})]
    (val,) = Voc(root, 'val')
    assert val.labels == () and val.extra['segmentation'].name == '2007_03.png'
    assert Voc(root, 'test').most_labels == 1


def test_labels_are_those_of_the_annotation_where_there_is_one(root):
    annotate(root, '2007_01', PERSON, '<object><name> bird </name></object>', PERSON)
    annotate(root, '2007_04', PERSON)
    assert [record.labels for record in Voc(root, 'train')] == [(2, 14), (6,)]
    (test,) = Voc(root, 'test')
    assert test.labels == (14,) and not test.extra


def test_augmented_label_maps_come_first(root):
    file = write_map(root, '2007_02', [[20, 0, 0], [0, 0, 0]], 'SegmentationClassAug')
    first, second = Voc(root, 'train')
    assert second.labels == (19,) and second.extra['segmentation'] == file
    assert first.extra['segmentation'].parent.name == 'SegmentationClass'


@pytest.mark.parametrize('listed', ['train_aug', 'trainaug'])
@pytest.mark.parametrize('asked', ['train_aug', 'trainaug'])
def test_augmented_lists_go_by_two_names(root, asked, listed):
    (root / f'ImageSets/Segmentation/{listed}.txt').write_text('2007_02\n2007_04\n')
    file = write_map(root, '2007_04', [[0, 9, 9], [0, 0, 255]], 'SegmentationClassAug')
    first, second = open_source('voc', root, asked)
    assert first.extra['segmentation'].parent.name == 'SegmentationClass'
    assert (second.image_id, second.labels, second.extra['segmentation']) == ('2007_04', (8,), file)


def test_of_two_lists_that_of_the_name_counts(root):
    for name, listed in (('train_aug', '2007_01'), ('trainaug', '2007_03')):
        (root / f'ImageSets/Segmentation/{name}.txt').write_text(f'{listed}\n')
        assert [record.image_id for record in Voc(root, name)] == [listed]
    (root / 'ImageSets/Segmentation/trainaug.txt').unlink()
    assert [record.image_id for record in Voc(root, 'trainaug')] == ['2007_01']


@pytest.mark.parametrize(
    'line',
    [
        '/JPEGImages/2007_02.jpg /SegmentationClassAug/2007_02.png',
        'JPEGImages/2007_02.jpg SegmentationClass/2007_02.png',
        '/JPEGImages/2007_02.jpg',
    ],
)
def test_a_list_of_paths_is_told_to_be_of_ids(root, line):
    file = root / 'ImageSets/Segmentation/train_aug.txt'
    file.write_text(f'2007_01\n\n{line}\n')
    with pytest.raises(DataError) as caught:
        Voc(root, 'train_aug')
    assert str(caught.value) == f"{file}:3: expected ids alone, such as '2007_02', got {line!r}"


@pytest.mark.parametrize('place', ['VOC2012', 'VOCdevkit/VOC2012'])
def test_a_folder_that_holds_it(root, tmp_path_factory, place):
    outer = tmp_path_factory.mktemp('outer')
    (outer / place).parent.mkdir(exist_ok=True)
    (outer / place).symlink_to(root)
    assert len(Voc(outer, 'train')) == 2 and Voc(outer, 'train')[0].labels == (1, 14)
    assert decode_image(Voc(outer, 'train')[0]).shape == (2, 3, 3)


def test_other_classes(root):
    (root / 'class_names.txt').write_text('background\nauk\nbat\ncod\n')
    for name in ('2007_01', '2007_02'):
        write_map(root, name, [[0, 3, 255], [3, 1, 1]])
    train = Voc(root, 'train')
    assert train.class_names == ('auk', 'bat', 'cod') and train[0].labels == (0, 2)


def test_files_may_lie_elsewhere_by_links_of_folders_alone(root, tmp_path_factory):
    away = tmp_path_factory.mktemp('away')
    for name in ('JPEGImages', 'SegmentationClass'):
        os.rename(root / name, away / name)
        (root / name).symlink_to(away / name)
    assert decode_image(Voc(root, 'train')[0]).shape == (2, 3, 3)
    secret = write_map(away, '2007_02', [[1, 1, 1]], '.')
    (away / 'SegmentationClass/2007_02.png').unlink()
    (away / 'SegmentationClass/2007_02.png').symlink_to(secret)
    with pytest.raises(DataError, match='leaves the data set'):
        Voc(root, 'train')


def truncated(root):
    file = root / 'SegmentationClass/2007_02.png'
    file.write_bytes(file.read_bytes()[:-30])
    return f'label map {file}: damaged'


def no_class(root):
    file = write_map(root, '2007_02', [[0, 21, 0]])
    return f'label map {file}: has index 21; the classes are 0..20, 255 is ignored'


def colours(root):
    file = root / 'SegmentationClass/2007_02.png'
    Image.new('RGB', (3, 2)).save(file)
    return f'label map {file}: a PNG of mode RGB; '


def unknown_object(root):
    file = annotate(root, '2007_02', '<object><name>bycicle</name></object>')
    return f"{file}: unknown class 'bycicle'; did you mean 'bicycle'?"


def nameless_object(root):
    return f"{annotate(root, '2007_02', '<object/>')}: unknown class ''"


def no_xml(root):
    return f'{annotate(root, "2007_02", "<object>")}: mismatched tag'


def entities(root):
    file = annotate(root, '2007_02')
    file.write_text('<!DOCTYPE a [<!ENTITY b "bird">]><a><object><name>&b;</name></object></a>')
    return f'{file}: has a DOCTYPE'


def endless(root):
    return f'{annotate(root, "2007_02", PERSON * 20_000)}: larger than 1000000 bytes'


def latin(root):
    file = annotate(root, '2007_02')
    file.write_bytes(b'<a>\xe9</a>')
    return f"{file}: 'utf-8' codec can't decode"


def no_such_split(root):
    (root / 'ImageSets/Segmentation/train.txt').unlink()
    file = root / 'ImageSets/Segmentation/train.txt'
    return f"{file}: no split 'train'; available: test, val"


def listed_twice(root):
    file = root / 'ImageSets/Segmentation/train.txt'
    file.write_text('2007_01\n2007_01\n')
    return f"{file}:2: '2007_01' is listed twice"


def leaves(root):
    file = root / 'ImageSets/Segmentation/train.txt'
    file.write_text('../2007_01\n')
    return f"{file}:1: '../2007_01' leaves its folder"


def no_background(root):
    file = root / 'class_names.txt'
    file.write_text('auk\nbat\n')
    return f"{file}:1: expected 'background', got 'auk'"


def many_classes(root):
    file = root / 'class_names.txt'
    file.write_text('background\n' + ''.join(f'c{k}x\n' for k in range(255)))
    return f'{file}: names 255 classes after the background; label maps have room for 1..254'


@pytest.mark.parametrize(
    'harm',
    [
        *(truncated, no_class, colours, unknown_object, nameless_object, no_xml, entities, endless),
        *(latin, no_such_split, listed_twice, leaves, no_background, many_classes),
    ],
)
def test_each_fault_is_one_line(root, harm):
    said = harm(root)
    with pytest.raises(DataError) as error:
        Voc(root, 'train')
    assert str(error.value).startswith(said) and '\n' not in str(error.value)


def test_faults_of_single_images_are_counted_or_collected(root):
    truncated(root)
    annotate(root, '2007_01', '<object/>')
    with pytest.raises(DataError, match=r'unknown class .* \(2 such faults; .* check DIR'):
        Voc(root, 'train')
    faults = []
    assert [record.labels for record in Voc(root, 'train', faults=faults)] == [(), ()]
    assert len(faults) == 2


def test_no_voc_folder(tmp_path):
    with pytest.raises(DataError, match='no folder ImageSets/Segmentation in it'):
        Voc(tmp_path, 'train')


@pytest.mark.skipif('WSOL_DATA' not in os.environ, reason='WSOL_DATA is not set: no real images')
def test_real_images():
    val = Voc(Path(os.environ['WSOL_DATA']) / 'coco_seg', 'val')
    assert (len(val), val.num_classes, val.class_name(0)) == (50, 80, 'person')
    known = val[0]
    values = np.unique(read_label_map(known.extra['segmentation']))
    assert known.labels == tuple(int(v) - 1 for v in values if v not in (0, 255))
