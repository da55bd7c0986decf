import copyreg
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import DataError, check_folder, convert_refs, decode_image, open_source
from wsol_jax.data.__main__ import main
from wsol_jax.data.check import SHARED
from wsol_jax.data.check_segmentation import LABELS
from wsol_jax.data.expressions import Expression
from wsol_jax.data.refcoco import RefCoco


def annotation(key, image, category, bbox, crowd=0):
    known = {'id': key, 'image_id': image, 'category_id': category, 'bbox': bbox}
    return known | {'iscrowd': crowd, 'segmentation': [[0, 0, 1, 0, 1, 1]], 'area': 1.0}


def instances():
    """Of 9 two people, a dog and a crowd; of 4 a dog."""
    return {
        'images': [
            {'id': 9, 'file_name': '09.png', 'width': 40, 'height': 30},
            {'id': 4, 'file_name': '04.png', 'width': 40, 'height': 30},
        ],
        'annotations': [
            annotation(1, 9, 1, [0.4, 0, 9.8, 29.6]),
            annotation(2, 9, 1, [30, 0, 10.02, 30]),
            annotation(3, 9, 18, [15, 20, 10, 10]),
            annotation(4, 9, 1, [0, 0, 40, 3], crowd=1),
            annotation(5, 4, 18, [1, 2, 3, 4]),
        ],
        'categories': [{'id': 18, 'name': 'dog'}, {'id': 1, 'name': 'person'}],
    }


def ref(key, ann, image, split, *texts):
    sentences = [
        {'sent': text, 'raw': text, 'sent_id': k, 'tokens': text.split()}
        for k, text in enumerate(texts)
    ]
    known = {'ref_id': key, 'ann_id': ann, 'image_id': image, 'category_id': 1, 'split': split}
    return known | {'sentences': sentences, 'file_name': 'COCO_9.jpg', 'sent_ids': [0]}


def refs():
    return [
        ref(70, 2, 9, 'train', 'man right of the dog', 'second from right'),
        ref(71, 3, 9, 'train', 'the dog'),
        ref(72, 5, 4, 'testA', 'dog'),
    ]


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'images').mkdir()
    for k, name in enumerate(('09.png', '04.png')):
        pixels = np.random.default_rng(k).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'images' / name)
    write(tmp_path, refs(), instances())
    return tmp_path


def write(folder, said, known):
    for name, content in (('refs', said), ('instances', known)):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f'{name}.json').write_text(text)


def test_a_record_is_an_image_with_its_sentences(root):
    source = open_source('refcoco', root, 'train')
    (record,) = source
    assert source.class_names == ('person', 'dog') and decode_image(record).shape == (30, 40, 3)
    assert (record.image_id, record.labels, record.size) == ('09.png', (0, 1), (40, 30))
    boxes = ((0, 0, 10, 30), (30, 0, 40, 30), (15, 20, 25, 30))  # not the crowd
    assert record.boxes == boxes and record.extra['proposal_classes'] == (0, 0, 1)
    assert record.extra['expressions'] == (
        Expression('man right of the dog', 'man', 'right of', 'dog', boxes[1], False),
        Expression('second from right', 'unk', 'right', '', boxes[1], False),
        Expression('the dog', 'dog', '', '', boxes[2], False),
    )
    assert pickle.loads(pickle.dumps(source))[0] == record
    assert [r.image_id for r in RefCoco(root, 'testA')] == ['04.png']


def test_a_crowd_may_be_meant_but_is_no_proposal(root):
    write(root, [ref(1, 4, 9, 'train', 'people')], instances())
    (record,) = RefCoco(root, 'train')
    assert len(record.boxes) == 3 and record.extra['expressions'][0].box == (0, 0, 40, 3)


def changed(base, index, **values):
    found = base()
    part = found['annotations'] if isinstance(found, dict) else found
    part[index] |= values
    return found


@pytest.mark.parametrize(
    ('said', 'known', 'message'),
    [
        ('{', instances(), r'refs\.json: Expecting'),
        ({}, instances(), r'refs\.json: expected a list of refs, got \{\}'),
        ([3], instances(), r'refs\.json: ref 3: expected an object with ref_id'),
        (changed(refs, 0, ann_id='2'), instances(), r"ref 70: ann_id '2' is no whole number"),
        (changed(refs, 0, split=None), instances(), r'ref 70: split None is no name'),
        (changed(refs, 0, sentences=[]), instances(), r'ref 70: sentences \[\] are no list'),
        (changed(refs, 0, sentences=[{'raw': 'a'}]), instances(), r"'a'\} has no 'sent', its"),
        (changed(refs, 0, ann_id=5), instances(), r'ref 70: .* no annotation 5 of image 9'),
        (changed(refs, 0, image_id=8), instances(), r'ref 70: instances.json has no image 8'),
        ([ref(1, 1, 4, 'val', 'dog')], instances(), r"no split 'train'; available: val"),
        (refs(), {'images': []}, r'instances\.json: expected lists of objects'),
        (refs(), changed(instances, 0, bbox=[0, 0, 5]), r'annotation 1: bbox \[0, 0, 5\] is not'),
        (refs(), changed(instances, 0, bbox=[0, 0, -5, 4]), r'bbox \[0, 0, -5, 4\] is not \[x, y'),
        (refs(), changed(instances, 0, bbox=[0, 0, 41, 4]), r'box \(0, 0, 41, 4\).* of 40x30'),
        (refs(), changed(instances, 0, bbox=[41, 0, 0, 4]), r'box \(41, 0, 42, 4\).* of 40x30'),
        (refs(), changed(instances, 1, id=1), r'instances\.json: annotation 1: another one of its'),
        (refs(), changed(instances, 3, id=1), r'instances\.json: annotation 1: another one of its'),
        (refs(), changed(instances, 0, category_id=7), 'annotation 1: there is no category 7'),
        (refs(), instances() | {'annotations': []}, r'ref 70: image 9 has no boxes .*\(2 such'),
    ],
)
def test_what_is_wrong_is_named(root, said, known, message):
    write(root, said, known)
    with pytest.raises(DataError, match=message):
        RefCoco(root, 'train')


def test_the_first_of_two_annotations_of_one_id_counts(root):
    write(root, refs()[1:], changed(instances, 1, id=1))
    faults = []
    (record,) = RefCoco(root, 'train', faults=faults)
    assert record.boxes == ((0, 0, 10, 30), (15, 20, 25, 30)) and len(faults) == 1


@pytest.mark.parametrize(
    ('bbox', 'box'),
    [
        ([40, 10, 0, 5], (39, 10, 40, 15)),
        ([40.2, 10, 0, 5], (39, 10, 40, 15)),
        ([-0.3, 10, 0.1, 5], (0, 10, 1, 15)),
        ([3, 30, 4, 0], (3, 29, 7, 30)),
        ([3.7, 10, 0, 5], (3, 10, 4, 15)),
    ],
)
def test_a_box_without_a_side_is_a_pixel_of_the_image(root, bbox, box):
    write(root, refs(), changed(instances, 0, bbox=bbox))
    assert RefCoco(root, 'train')[0].boxes[0] == box


def test_faults_of_single_refs_may_be_left_out(root):
    write(root, changed(refs, 0, ann_id=5), changed(instances, 0, bbox=[0, 0, 41, 4]))
    faults = []
    (record,) = RefCoco(root, 'train', faults=faults)
    assert [each.text for each in record.extra['expressions']] == ['the dog']
    assert len(record.boxes) == 2 and len(faults) == 2


def test_a_missing_file_is_named(root):
    (root / 'instances.json').unlink()
    with pytest.raises(DataError, match=r'instances\.json: no such file'):
        RefCoco(root, 'train')
    (root / 'refs.json').rename(root / 'refs(unc).p')
    with pytest.raises(DataError, match=r'refs\.json: no such file; make it of refs\(unc\)\.p by'):
        RefCoco(root, 'train')


def test_the_folder_is_checked(root):
    report = check_folder(root)
    assert report.problems == {}
    assert report.summary[:2] == (
        'testA: 1 images, 1 classes, 1 labels, 1 boxes, 1 expressions',
        'train: 1 images, 2 classes, 2 labels, 3 boxes, 3 expressions',
    )
    said = [*refs(), ref(73, 1, 9, 'val', 'man'), ref(74, 8, 9, 'val', 'man')]
    write(root, said, instances())
    problems = check_folder(root).problems
    assert problems.keys() == {SHARED, LABELS}
    assert problems[SHARED] == ["'09.png' is in both train and val"]
    assert 'ref 74' in problems[LABELS][0]


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_refs_are_converted(root, protocol):
    file = root / 'refs(unc).p'
    file.write_bytes(pickle.dumps(refs(), protocol))
    (root / 'refs.json').unlink()
    assert main(['refs', str(file), str(root / 'refs.json')]) == 0
    assert json.loads((root / 'refs.json').read_text()) == refs()
    assert not list(root.glob('.*'))
    assert len(RefCoco(root, 'train')[0].extra['expressions']) == 3


def test_strings_of_python_2_are_read(tmp_path):
    text = pickle.dumps(refs(), 2)
    old = text.replace(b'X\x05\x00\x00\x00train', b'U\x05train')  # SHORT_BINSTRING
    assert old != text
    (tmp_path / 'refs.p').write_bytes(old)
    convert_refs(tmp_path / 'refs.p', tmp_path / 'refs.json')
    assert json.loads((tmp_path / 'refs.json').read_text()) == refs()


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def hostile(mark):
    """Pickles that would run `mkdir mark`, by each opcode that finds a function or a class."""
    path = os.fsencode(mark)
    yield from (pickle.dumps([Hostile(mark)], protocol) for protocol in (0, 2, 4))
    yield b"(S'" + path + b"'\nios\nmkdir\n."
    yield b"(cos\nmkdir\nS'" + path + b"'\no."
    yield b'cbuiltins\nexec\n(S\'import os; os.mkdir("' + path + b'")\'\ntR.'


def test_a_pickle_runs_nothing(tmp_path):
    mark, file, target = tmp_path / 'ran', tmp_path / 'refs.p', tmp_path / 'refs.json'
    for content in hostile(str(mark)):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r'refs\.p: it wants \w+\.(mkdir|exec), which a list'):
            convert_refs(file, target)
        assert not mark.exists() and not target.exists()
        pickle.loads(content)  # it is what it is held for
        assert mark.is_dir()
        mark.rmdir()


def test_a_registered_extension_is_refused_too(tmp_path):
    copyreg.add_extension('os', 'mkdir', 240)
    try:
        (tmp_path / 'refs.p').write_bytes(b'\x80\x02\x82\xf0.')
        with pytest.raises(DataError, match=r'it wants os\.mkdir'):
            convert_refs(tmp_path / 'refs.p', tmp_path / 'refs.json')
    finally:
        copyreg.remove_extension('os', 'mkdir', 240)


@pytest.mark.parametrize(
    'content',
    [
        *(b'', b'junk', b'\x80\x04', pickle.dumps([{1, 2}]), pickle.dumps({'a': b'x'})),
        *(pickle.dumps([float('nan')]), pickle.dumps(3), b"P'some id'\n.", b'(lp0\ng0\na.'),
    ],
)
def test_what_is_no_list_of_refs_is_one_line(tmp_path, content):
    (tmp_path / 'refs.p').write_bytes(content)
    with pytest.raises(DataError, match=r'^[^\n]*refs\.p: [^\n]+$'):
        convert_refs(tmp_path / 'refs.p', tmp_path / 'refs.json')
    with pytest.raises(DataError, match=r'none\.p: no such file'):
        convert_refs(tmp_path / 'none.p', tmp_path / 'refs.json')
    assert not (tmp_path / 'refs.json').exists()
