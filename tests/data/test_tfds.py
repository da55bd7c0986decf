import io
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from wsol_jax.data import (
    BadImage,
    DataError,
    Labels,
    Record,
    WsolFolder,
    decode_image,
    decode_mask,
    evaluation_batches,
    open_source,
    stored_size,
    tfds_builders,
)
from wsol_jax.data.__main__ import main
from wsol_jax.data.tfds import TfdsSource, prepare
from wsol_jax.data.tfds_builders import BUILDERS

IMAGES = {  # id: colour mode, width, height
    'a.jpg': ('RGB', 20, 12),
    'bees/b,c.png': ('RGB', 9, 15),
    'bees/cmyk.jpg': ('CMYK', 16, 16),
    'grey.jpg': ('L', 11, 8),
    'clear.png': ('RGBA', 8, 8),
    'ü.jpg': ('RGB', 30, 10),
}
BOXES = [
    'a.jpg,0,0,20,12\na.jpg,1,2,3,4\nbees/b,c.png,0,0,9,15\nbees/cmyk.jpg,3,4,15,16',
    'grey.jpg,1,1,2,2\nclear.png,0,0,8,8\nü.jpg,10,0,29,10',
]
MASKS = [
    'a.jpg,masks/0.png,masks/i.png\na.jpg,masks/1.png,\nbees/b,c.png,masks/2.png,',
    'bees/cmyk.jpg,masks/0.png,\ngrey.jpg,masks/1.png,masks/i.png\nclear.png,masks/1.png,',
    'ü.jpg,masks/2.png,masks/i.png',
]


def picture(rng, mode, width, height, form):
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    stored = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode=mode).save(stored, form)
    return stored.getvalue()


def wsol_folder(root, localization):
    """Test and val of the six images with all that is known of them, train with labels alone."""
    rng = np.random.default_rng(3)
    for name, (mode, width, height) in IMAGES.items():
        form = 'PNG' if name.endswith('png') else 'JPEG'
        write(root / 'images' / name, picture(rng, mode, width, height, form))
    for name in ('0', '1', '2', 'i'):
        write(root / f'masks/{name}.png', picture(rng, 'L', 14, 10, 'PNG'))
    write(root / 'class_names.txt', 'ant, red\nbee\ncrow')
    labels = [f'{name},{k % 3}' for k, name in enumerate(IMAGES)]
    sizes = [f'{name},{width},{height}' for name, (_, width, height) in IMAGES.items()]
    for split, ids in (('test', list(IMAGES)), ('val', list(IMAGES)[::-1]), ('train', ['a.jpg'])):
        folder = root / 'metadata' / split
        write(folder / 'image_ids.txt', '\n'.join(ids))
        write(folder / 'class_labels.txt', '\n'.join([*labels, 'a.jpg,2'][: 7 if ids[1:] else 1]))
        if split != 'train':
            write(folder / 'image_sizes.txt', '\n'.join(sizes))
            write(folder / 'localization.txt', '\n'.join(localization))
    return root


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """The folder of each data set of wsolevaluation, and the data_dir of all of them."""
    data_dir = tmp_path_factory.mktemp('tfds')
    roots = {}
    for name in BUILDERS:
        masked = name == 'openimages_wsol'
        roots[name] = wsol_folder(tmp_path_factory.mktemp(name), MASKS if masked else BOXES)
        prepare(name, roots[name], data_dir)
    return roots, data_dir


def in_memory(record):
    """The record of a folder with the bytes of its files in place of their names."""
    masks = tuple((m.read_bytes(), i and i.read_bytes()) for m, i in record.masks)
    return replace(record, image=record.image.read_bytes(), masks=masks)


def assert_same(source, folder):
    assert len(source) == len(folder)
    assert source.class_names == folder.class_names and source.num_classes == folder.num_classes
    for record, expected in zip(source, folder, strict=True):
        assert record == in_memory(expected)
        np.testing.assert_array_equal(decode_image(record), decode_image(expected))
        if expected.masks:
            mask = decode_mask(record, (12, 9))
            np.testing.assert_array_equal(mask, decode_mask(expected, (12, 9)))


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
@pytest.mark.parametrize('name', ['cub200_wsol', 'ilsvrc_wsol', 'openimages_wsol'])
def test_records_are_those_of_the_folder(prepared, name, split):
    roots, data_dir = prepared
    assert_same(TfdsSource(name, data_dir, split), WsolFolder(roots[name], split))


def test_records_by_hand(prepared):
    _, data_dir = prepared
    source = TfdsSource('cub200_wsol', data_dir, 'test')
    assert [r.image_id for r in source] == list(IMAGES)
    assert [r.labels for r in source] == [(0, 2), (1,), (2,), (0,), (1,), (2,)]
    assert source[1].boxes == ((0, 0, 9, 15),) and source[-1].size == (30, 10)
    assert len(source[0].boxes) == 2 and source[0].masks == ()
    assert [source.class_name(k) for k in (0, 2, 9, -1)] == ['ant, red', 'crow', '9', '-1']
    with pytest.raises(IndexError):
        source[6]
    assert TfdsSource('cub200_wsol:1.0.0', data_dir, 'train')[0].size is None
    masked = TfdsSource('openimages_wsol', data_dir, 'test')
    assert [i is None for _, i in masked[0].masks] == [False, True]
    for record in (source[5], masked[0]):  # what arrives is plain: it goes into JSON and CSV
        numbers = (*record.labels, *record.size, *sum(record.boxes, ()))
        assert {type(number) for number in numbers} == {int}
        assert {type(stored) for stored in (record.image, *sum(record.masks, ()))} <= {
            bytes,
            type(None),
        }


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_batches_are_those_of_the_folder(prepared, workers):
    roots, data_dir = prepared
    source = TfdsSource('cub200_wsol', data_dir, 'test')
    folder = WsolFolder(roots['cub200_wsol'], 'test')
    assert source.most_labels == folder.most_labels == 2
    batches = evaluation_batches(source, 16, 4, workers=workers, targets=Labels(2))
    expected = evaluation_batches(folder, 16, 4, targets=Labels(2))
    for one, two in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(one.targets['labels'], two.targets['labels'], strict=True)
        for field in ('images', 'index', 'valid'):
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field), strict=True)
        assert one.valid.sum() in (4, 2) and one.errors == {}


def test_pickle(prepared):
    _, data_dir = prepared
    source = TfdsSource('openimages_wsol', data_dir, 'val')
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == list(source) and copy.class_names == source.class_names
    assert len(pickle.dumps(source)) < 500


def test_without_the_package_one_line_says_what_to_install(monkeypatch, capsys):
    for name in ('wsol_jax.data.tfds', 'wsol_jax.data.tfds_builders'):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)  # as if it were not there
    with pytest.raises(DataError, match=r"pip install 'wsol_jax\[tfds\]'$"):
        open_source('tfds', 'there', 'test', name='cub200_wsol')
    with pytest.raises(SystemExit) as left:
        main(['prepare', 'cub200_wsol', 'here', 'there'])
    assert left.value.code == 2 and capsys.readouterr().err.count('\n') == 1


def test_without_tensorflow(prepared, tmp_path):
    roots, _ = prepared
    script = (
        'import sys\n'
        'from wsol_jax.data.tfds import TfdsSource, prepare\n'
        'prepare("cub200_wsol", *sys.argv[1:])\n'
        'print([r.labels for r in TfdsSource("cub200_wsol", sys.argv[2], "val")])\n'
        'assert "tensorflow" not in sys.modules'
    )
    command = [sys.executable, '-c', script, roots['cub200_wsol'], tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith('[(2,), (1,), (0,), (2,), (1,), (0, 2)]\n')


def test_large_data_sets_keep_their_order_and_need_no_buffer(prepared, tmp_path, monkeypatch):
    """Several shards; TFDS's shuffling writer would turn to TensorFlow beyond its buffer."""
    roots, _ = prepared
    monkeypatch.setattr(tfds_builders, 'SHARD_IMAGES', 4)
    monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 0)
    prepare('cub200_wsol', roots['cub200_wsol'], tmp_path)
    assert len(list(tmp_path.rglob('*test.array_record-*-of-00002'))) == 2
    source = TfdsSource('cub200_wsol', tmp_path, 'test')
    assert_same(source, WsolFolder(roots['cub200_wsol'], 'test'))


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


def test_second_run_does_nothing_and_says_so(prepared, tmp_path, capsys):
    _, data_dir = prepared
    before = files(data_dir)
    prepare('cub200_wsol', tmp_path, data_dir)
    said = f'cub200_wsol: already prepared in {data_dir}/cub200_wsol/1.0.0; remove that'
    assert said in capsys.readouterr().out
    assert files(data_dir) == before


@pytest.mark.parametrize(
    ('missing', 'said'),
    [
        ('images/ü.jpg', 'images/ü.jpg: no such file'),
        ('masks/i.png', 'masks/i.png: no such file'),
        ('metadata/val/class_labels.txt', 'metadata/val/class_labels.txt: no such file'),
        ('metadata', 'metadata: holds no split'),
    ],
)
def test_failure_names_the_file_and_leaves_nothing(tmp_path, missing, said):
    root, data_dir = wsol_folder(tmp_path / 'root', MASKS), tmp_path / 'tfds'
    shutil.move(root / missing, tmp_path / 'away')
    with pytest.raises(DataError) as error:
        prepare('openimages_wsol', root, data_dir)
    assert str(error.value).startswith(f'{root}/{said}') and '\n' not in str(error.value)
    assert files(data_dir) == {}
    with pytest.raises(DataError, match='openimages_wsol: not prepared in'):
        TfdsSource('openimages_wsol', data_dir, 'val')
    shutil.move(tmp_path / 'away', root / missing)
    prepare('openimages_wsol', root, data_dir)
    assert len(TfdsSource('openimages_wsol', data_dir, 'val')) == 6


def test_missing_root(tmp_path):
    with pytest.raises(DataError, match='nowhere/metadata: holds no split'):
        prepare('cub200_wsol', tmp_path / 'nowhere', tmp_path / 'tfds')
    assert not (tmp_path / 'tfds').exists()


def test_folder_in_place_of_an_image(tmp_path):
    root = wsol_folder(tmp_path / 'root', BOXES)
    (root / 'images/a.jpg').unlink()
    (root / 'images/a.jpg').mkdir()
    with pytest.raises(DataError, match=r'images/a\.jpg: not a regular file'):
        prepare('cub200_wsol', root, tmp_path / 'tfds')


def test_class_names_must_differ(tmp_path):
    root = wsol_folder(tmp_path / 'root', BOXES)
    write(root / 'class_names.txt', 'ant\ncrane\ncrane')
    with pytest.raises(DataError, match=r"class_names\.txt: 'crane' names two classes"):
        prepare('cub200_wsol', root, tmp_path / 'tfds')


def test_class_names_may_be_absent(tmp_path):
    """Each split of such a folder counts its own classes; the data set has those of all."""
    root = wsol_folder(tmp_path / 'root', BOXES)
    (root / 'class_names.txt').unlink()
    write(root / 'metadata/train/class_labels.txt', 'a.jpg,4')
    prepare('cub200_wsol', root, tmp_path / 'tfds')
    folder = WsolFolder(root, 'test')
    assert (folder.class_names, folder.num_classes, folder.class_name(1)) == ((), 3, '1')
    for split in ('train', 'val', 'test'):
        source = TfdsSource('cub200_wsol', tmp_path / 'tfds', split)
        assert (source.class_names, source.num_classes, source.class_name(3)) == ((), 5, '3')


def test_broken_image_is_kept_and_reported_when_it_is_decoded(tmp_path):
    root = wsol_folder(tmp_path / 'root', BOXES)
    write(root / 'images/grey.jpg', b'no image')
    prepare('cub200_wsol', root, tmp_path / 'tfds')
    source = TfdsSource('cub200_wsol', tmp_path / 'tfds', 'test')
    assert source[3] == in_memory(WsolFolder(root, 'test')[3])
    (batch,) = evaluation_batches(source, 16, 6)
    assert batch.errors == {3: 'grey.jpg: not an image that can be decoded'}


class Third(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of somebody else, from the features and the examples it is given."""

    VERSION = tfds.core.Version('2.1.0')
    code_path = None

    def __init__(self, data_dir, name, features, examples):
        self.name, self._features, self._splits = name, features, examples
        super().__init__(data_dir=data_dir)
        self.download_and_prepare(file_format='array_record')

    def _info(self):
        features = tfds.features.FeaturesDict(self._features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: enumerate(examples) for split, examples in self._splits.items()}

    def _generate_examples(self):
        raise NotImplementedError


def encoded(width, height, mode='RGB'):
    return picture(np.random.default_rng(width), mode, width, height, 'JPEG')


BIRDS = {
    'bbox': tfds.features.BBoxFeature(),
    'image': tfds.features.Image(),
    'image/filename': tfds.features.Text(),
    'label': tfds.features.ClassLabel(names=['albatross', 'auk']),
    'label_name': tfds.features.Text(),
    'segmentation_mask': tfds.features.Image(shape=(None, None, 1)),
}


def bird(name, image, label, corners):
    box = tfds.features.BBox(*corners)
    names = {'image/filename': name, 'label_name': 'bird', 'segmentation_mask': b'never decoded'}
    return {'image': image, 'label': label, 'bbox': box, **names}


def test_data_set_like_caltech_birds(tmp_path):
    """Corners by hand: y / height and x / width of the box, its far corner exclusive."""
    first, second = encoded(30, 40), encoded(7, 3, 'L')
    examples = [
        bird('001/é.jpg', first, 1, (5 / 40, 3 / 30, 39 / 40, 17 / 30)),
        bird('002/b.jpg', second, 0, (1 / 3, 2 / 7, 1.0, 6 / 7)),
        bird('002/c.jpg', b'broken', 0, (0.0, 0.0, 1.0, 1.0)),
    ]
    Third(tmp_path, 'third_birds', BIRDS, {'train': examples[1:], 'test': examples})
    source = TfdsSource('third_birds', tmp_path, 'test')
    assert list(source) == [
        Record('001/é.jpg', first, (1,), (30, 40), ((3, 5, 17, 39),)),
        Record('002/b.jpg', second, (0,), (7, 3), ((2, 1, 6, 3),)),
        Record('002/c.jpg', b'broken', (0,), None),
    ]
    assert source.class_names == ('albatross', 'auk')
    (batch,) = evaluation_batches(source, 8, 3)
    assert batch.valid.tolist() == [True, True, False] and list(batch.errors) == [2]
    train, val = (TfdsSource('third_birds:2.*.*', tmp_path, split) for split in ('train', 'val'))
    assert [r.image_id for r in (*train, *val)] == ['002/b.jpg', '002/c.jpg']
    with pytest.raises(DataError, match="no split 'valid'; available: train, test"):
        TfdsSource('third_birds', tmp_path, 'valid')
    with pytest.raises(DataError, match=r'third_birds:9.0.0: not prepared in .*there are: 2.1.0'):
        TfdsSource('third_birds:9.0.0', tmp_path, 'test')


def test_val_is_drawn_from_train_where_there_is_none(tmp_path):
    """Every tenth: 9, 19 of 0..22; whole where the data set has one of its own."""
    features = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(num_classes=23)}
    examples = [{'image': b'x', 'label': k} for k in range(23)]
    Third(tmp_path, 'third_drawn', features, {'train': examples})
    train, val = (TfdsSource('third_drawn', tmp_path, split) for split in ('train', 'val'))
    assert [r.labels[0] for r in val] == [9, 19] and [r.image_id for r in val][1] == 'train/19'
    assert [r.labels[0] for r in train] == sorted(set(range(23)) - {9, 19})
    assert train[-1].labels == (22,) and pickle.loads(pickle.dumps(val))[0] == val[0]
    Third(tmp_path, 'third_own', features, {'train': examples, 'validation': examples[:1]})
    assert len(TfdsSource('third_own', tmp_path, 'train')) == 23
    Third(tmp_path, 'third_one', features, {'train': examples[:1]})
    assert [len(TfdsSource('third_one', tmp_path, split)) for split in ('train', 'val')] == [1, 0]


def test_several_labels_and_boxes_no_names_and_validation(tmp_path):
    features = {
        'image': tfds.features.Image(),
        'labels': tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)),
        'bbox': tfds.features.Sequence(tfds.features.BBoxFeature()),
    }
    image = encoded(10, 20)
    boxes = [tfds.features.BBox(0.5, 0.1, 0.75, 0.3), tfds.features.BBox(0.0, 0.0, 1.0, 1.0)]
    examples = [
        {'image': image, 'labels': [2, 0], 'bbox': boxes},
        {'image': image, 'labels': [], 'bbox': []},
    ]
    Third(tmp_path, 'third_many', features, {'validation': examples})
    source = TfdsSource('third_many', tmp_path, 'val')
    two = ((1, 10, 3, 15), (0, 0, 10, 20))
    assert source[0] == Record('validation/0', image, (2, 0), (10, 20), two)
    assert source[1] == Record('validation/1', image, (), (10, 20))
    assert source.class_names == ('0', '1', '2')


def test_boxes_lie_in_the_frame_that_is_set(tmp_path):
    """Normalised boxes of a picture that is stored as 10 x 20 and shown as 20 x 10."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.new('RGB', (10, 20)).save(stored, 'JPEG', exif=exif)
    features = {
        'image': tfds.features.Image(),
        'label': tfds.features.ClassLabel(num_classes=3),
        'bbox': tfds.features.BBoxFeature(),
    }
    box = tfds.features.BBox(0.5, 0.1, 0.8, 0.3)
    example = {'image': stored.getvalue(), 'label': 2, 'bbox': box}
    Third(tmp_path, 'third_turned', features, {'test': [example]})
    for orientation, size, corners in (
        ('auto', (10, 20), (1, 10, 3, 16)),
        ('displayed', (20, 10), (2, 5, 6, 8)),
    ):
        source = pickle.loads(
            pickle.dumps(TfdsSource('third_turned', tmp_path, 'test', orientation, 300))
        )
        assert (source[0].size, source[0].boxes) == (size, (corners,))
        assert decode_image(source[0]).shape == (*size[::-1], 3)
    small = TfdsSource('third_turned', tmp_path, 'test', max_pixels=199)
    with pytest.raises(BadImage, match=r'test/0: 10x20 pixels are more than config\.data\.max'):
        decode_image(small[0])


def test_data_set_like_imagenet_without_boxes(tmp_path):
    features = {
        'image': tfds.features.Image(),
        'label': tfds.features.ClassLabel(num_classes=5),
        'file_name': tfds.features.Text(),
    }
    image = encoded(6, 6)
    examples = [{'image': image, 'label': label, 'file_name': f'{label}.jpg'} for label in (4, -1)]
    Third(tmp_path, 'third_net', features, {'test': examples})
    four, unlabelled = TfdsSource('third_net', tmp_path, 'test')
    assert four == Record('4.jpg', image, (4,), None) and stored_size(four) == (6, 6)
    assert unlabelled == Record('-1.jpg', image, (), None)


@pytest.mark.parametrize(
    ('features', 'said'),
    [
        ({'text': tfds.features.Text()}, 'has text (Text)'),
        ({'image': tfds.features.Image()}, 'has image (Image)'),
        (
            {'image': tfds.features.Text(), 'label': tfds.features.ClassLabel(num_classes=2)},
            'needs the features image (Image) and label or labels (ClassLabel); '
            'has image (Text), label (ClassLabel)',
        ),
        (
            {**BIRDS, 'bbox': tfds.features.BBoxFeature(bbox_format='XYWH')},
            'bbox is no BBox of normalised (ymin, xmin, ymax, xmax)',
        ),
        (
            {**BIRDS, 'bbox': tfds.features.Tensor(shape=(4,), dtype=np.float32)},
            'bbox is no BBox of normalised (ymin, xmin, ymax, xmax)',
        ),
    ],
)
def test_wrong_features(tmp_path, features, said):
    corners = np.arange(4, dtype=np.float32)
    values = {**bird('a', encoded(8, 8), 0, corners), 'bbox': corners, 'text': 'a'}
    if isinstance(features.get('image'), tfds.features.Text):
        values['image'] = 'a'
    example = {key: values[key] for key in features}
    Third(tmp_path, 'third_odd', features, {'test': [example]})
    with pytest.raises(DataError) as error:
        TfdsSource('third_odd', tmp_path, 'test')
    assert said in str(error.value) and '\n' not in str(error.value)


BUILD = "run `tfds.builder('{}', data_dir='{}').download_and_prepare(file_format='array_record')`"


@pytest.mark.parametrize(
    ('name', 'split', 'said'),
    [
        ('cub200_wsl', 'val', "unknown TFDS data set 'cub200_wsl'; did you mean 'cub200_wsol'?"),
        ('imagenet_2012', 'val', "unknown TFDS data set 'imagenet_2012'; did you mean 'imagenet2"),
        ('x y', 'val', "'x y' is no TFDS name; write 'name', 'name/config' or"),
        ('', 'val', "'' is no TFDS name"),
        ('cub200_wsol', 'tset', "cub200_wsol: no split 'tset'; available: test, train, val"),
        ('cub200_wsol', 'validation', "no split 'validation'; available: test, train, val"),
        ('cub200_wsol', '', "no split ''; available: test, train, val"),
        ('cub200_wsol:3.0.0', 'val', 'cub200_wsol:3.0.0: not prepared in {} (there are: 1.0.0);'),
        ('cub200_wsol/x', 'val', 'run `python -m wsol_jax.data prepare cub200_wsol ROOT {}`'),
        ('imagenet2012', 'val', 'imagenet2012: not prepared in {}; ' + BUILD),
        ('coco/2017:1.1.0', 'val', BUILD),
    ],
)
def test_wrong_name_or_split(prepared, name, split, said):
    _, data_dir = prepared
    with pytest.raises(DataError) as error:
        TfdsSource(name, data_dir, split)
    for part in said.replace(BUILD, BUILD.format(name, data_dir)).split('; '):
        assert part.format(data_dir) in str(error.value)
    assert '\n' not in str(error.value)


def test_empty_root_is_the_default_of_tfds(prepared, tmp_path, monkeypatch):
    roots, data_dir = prepared
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(data_dir))
    assert len(TfdsSource('cub200_wsol', '', 'val')) == 6
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
    with pytest.raises(DataError, match=f'cub200_wsol: not prepared in {tmp_path}; run'):
        TfdsSource('cub200_wsol', '', 'val')
    prepare('cub200_wsol', roots['cub200_wsol'], '')
    assert (tmp_path / 'cub200_wsol/1.0.0').is_dir()


def test_unknown_name_to_prepare(tmp_path):
    with pytest.raises(DataError, match="'cub200'; did you mean 'cub200_wsol'"):
        prepare('cub200', tmp_path, tmp_path)


def test_other_file_format_and_missing_files(prepared, tmp_path):
    shutil.copytree(prepared[1] / 'cub200_wsol', tmp_path / 'cub200_wsol')
    folder = tmp_path / 'cub200_wsol/1.0.0'
    (folder / 'cub200_wsol-val.array_record-00000-of-00001').unlink()
    with pytest.raises(DataError, match='-of-00001: no such file'):
        TfdsSource('cub200_wsol', tmp_path, 'val')
    assert len(TfdsSource('cub200_wsol', tmp_path, 'test')) == 6
    info = folder / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(DataError, match='as tfrecord; convert it with `tfds convert_format '):
        TfdsSource('cub200_wsol', tmp_path, 'test')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('folder', 'name'), [('cub30', 'cub200_wsol'), ('pets', 'openimages_wsol')]
)
def test_real_folder(tmp_path, folder, name):
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real images')
    root = Path(os.environ['WSOL_DATA']) / folder
    prepare(name, root, tmp_path)
    for split in ('train', 'val', 'test'):
        source, expected = TfdsSource(name, tmp_path, split), WsolFolder(root, split)
        assert len(source) == len(expected) and source.class_names == expected.class_names
        assert all(a == in_memory(b) for a, b in zip(source, expected, strict=True))
    masks = [decode_mask(r, (60, 50)) for r in (source[7], expected[7]) if r.masks]
    assert len(masks) == (2 if folder == 'pets' else 0)
    assert all((mask == masks[0]).all() for mask in masks)
