"""What the experiments on seeds of real images make of data sets and of metrics."""

import cv2
import numpy as np
from conftest import Listed

from experiments.seed_table import refined, rows_of
from experiments.voc_folder import most_frequent, write_split
from wsol_jax.data import Record, open_source
from wsol_jax.data.label_maps import true_label_map
from wsol_jax.workdir import write_text


def png(values):
    return cv2.imencode('.png', values)[1].tobytes()


def written(tmp_path, records, kept, names, known='abcdefgh'):
    """The source 'voc' of what is written of these images."""
    file = tmp_path / 'x.jpg'
    cv2.imwrite(str(file), np.full((2, 3, 3), 90, np.uint8))
    records = [
        Record(f'a/{i}.jpg', file, r.pop('labels'), (3, 2), **r) for i, r in enumerate(records)
    ]
    write_text(tmp_path / 'voc/class_names.txt', '\n'.join(['background', *names]))
    count = write_split(Listed(records, known), 'train', kept, tmp_path / 'voc')
    source = open_source('voc', tmp_path / 'voc', 'train')
    assert count == len(source) and source.class_names == tuple(names)
    return [source[i] for i in range(count)]


def test_classes_that_are_kept_are_numbered_anew(tmp_path):
    truth = np.array([[0, 3, 3], [255, 1, 6]], np.uint8)  # the classes 2, 0 and 5
    records = [
        {'labels': (0, 2, 5), 'extra': {'segmentation': png(truth)}},
        {'labels': (0,), 'extra': {'segmentation': png(np.minimum(truth, 1))}},
    ]
    (found,) = written(tmp_path, records, [5, 2], ['f', 'c'])  # in the second there is neither
    assert (found.image_id, found.labels) == ('0', (0, 1))
    assert true_label_map(found).tolist() == [[0, 2, 2], [255, 0, 1]]


def test_masks_become_label_maps_and_labels_need_none(tmp_path):
    mask, ignore = np.array([[[0, 9, 0], [0, 9, 9]], [[0, 9, 9], [0, 0, 0]]], np.uint8)
    records = [{'labels': (1,), 'masks': ((png(mask), png(ignore)),)}, {'labels': (0,)}]
    first, second = written(tmp_path, records, [0, 1], ['a', 'b & c'], ['a', 'b & c'])
    assert true_label_map(first).tolist() == [[0, 2, 255], [0, 2, 2]]
    assert (first.labels, second.labels) == ((1,), (0,)) and 'segmentation' not in second.extra


def test_the_most_frequent_are_those_of_most_images():
    labels = [(3, 1), (1,), (2, 3), (5,)]
    source = Listed([Record(str(i), b'', own, None) for i, own in enumerate(labels)])
    assert most_frequent(source, 3) == [1, 3, 2]
    assert most_frequent(source, 0) == list(range(8))


def test_rows_are_of_test_at_the_layer_of_val_the_best_on_val_first():
    def row(method, layer, split, score, **more):
        return {'method': method, 'layer': layer, 'split': split, 'mIoU': score, **more}

    rows = [
        row('cam', 'a', 'val', 20, chosen=True),
        row('dgl', 'a', 'val', 30, chosen=False),
        row('dgl', 'b', 'val', 40, chosen=True),
        *(row(*key, 'test', k) for k, key in enumerate([('cam', 'a'), ('dgl', 'a'), ('dgl', 'b')])),
    ]
    found = rows_of({'segmentation': rows})
    assert [(key, found[key]['mIoU']) for key in found] == [(('dgl', 'b'), 2), (('cam', 'a'), 0)]


def test_the_crf_moves_an_outline_to_the_edge_and_adds_no_class():
    image = np.full((24, 24, 3), 20, np.uint8)
    image[:, 12:] = 230
    record = Record('x', png(image), (4,), None)
    seeds = np.zeros((24, 24), np.uint8)
    seeds[:, 14:] = 5
    found = refined(seeds, record)
    assert (found[:, 12:] == 5).all() and not found[:, :12].any()
    assert not refined(np.zeros((24, 24), np.uint8), record).any()
