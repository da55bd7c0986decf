import errno
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import Listed, failing_at_first

from wsol_jax.data import (
    DataError,
    Labels,
    Record,
    Shapes,
    decode_image,
    evaluation_batches,
    resize_image,
    training_batches,
)
from wsol_jax.data.augment import AugmentConfig, augment
from wsol_jax.data.files import open_file
from wsol_jax.data.records import ReadError

SIZE = 28
MARGIN = 4


@pytest.fixture(scope='module')
def source():
    return Shapes('train', 23, size=48)


def by_index(batches):
    return {
        int(k): image
        for batch in batches
        for k, image, ok in zip(batch.index, batch.images, batch.valid, strict=True)
        if ok
    }


@pytest.mark.parametrize('batch_size', [1, 5, 23, 40])
def test_every_image_once_in_order_equal_to_a_plain_loop(source, batch_size):
    batches = list(evaluation_batches(source, SIZE, batch_size, targets=Labels()))
    assert len(batches) == -(-23 // batch_size)
    index = np.concatenate([batch.index for batch in batches])
    assert index[:23].tolist() == list(range(23)) and (index[23:] == -1).all()
    for k, image in by_index(batches).items():
        np.testing.assert_array_equal(
            image, resize_image(decode_image(source[k]), (SIZE, SIZE)), strict=True
        )
    labels = np.concatenate([batch.targets['labels'] for batch in batches])
    assert labels[:23].tolist() == [[k % 6] for k in range(23)]


def test_last_batch_is_padded(source):
    *_, last = evaluation_batches(source, SIZE, 10, targets=Labels(2))
    assert last.images.shape == (10, SIZE, SIZE, 3) and last.images.dtype == np.uint8
    labels = last.targets['labels']
    assert (labels.dtype, last.index.dtype, last.valid.dtype) == (np.int32, np.int64, bool)
    assert last.valid.tolist() == [True] * 3 + [False] * 7
    assert labels.tolist() == [[2, -1], [3, -1], [4, -1]] + [[-1, -1]] * 7
    assert (last.index[3:] == -1).all()
    assert not last.images[3:].any() and last.errors == {}


def test_chosen_indices(source):
    (batch,) = evaluation_batches(source, SIZE, 4, indices=[20, 3, 7], targets=Labels())
    assert batch.index.tolist() == [20, 3, 7, -1]
    assert batch.targets['labels'].tolist() == [[2], [3], [1], [-1]]
    assert list(evaluation_batches(source, SIZE, 4, indices=[])) == []


def test_labels_are_as_many_as_an_image_of_the_source_has(source):
    several = Listed(replace(source[k], labels=some) for k, some in enumerate([(4,), (), (7, 2)]))
    assert (several.most_labels, source.most_labels, Listed([]).most_labels) == (2, 1, 1)
    (batch,) = evaluation_batches(several, SIZE, 4, targets=Labels(several.most_labels))
    assert batch.targets['labels'].tolist() == [[4, -1], [-1, -1], [7, 2], [-1, -1]]
    assert batch.valid.tolist() == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_where_one_label_is_needed_an_image_with_several_is_named(source, workers):
    records = list(source)
    records[3] = replace(source[3], labels=(4, 1))
    several = r'^train/00003.png: has 2 labels \(4, 1\), but can have 1 here; .* check DIR'
    with pytest.raises(DataError, match=several):
        list(evaluation_batches(Listed(records), SIZE, 4, workers=workers, targets=Labels()))


def words_and_place(record):
    """What a task may add: read from `Record.extra`, of a kind of its own."""
    return {
        'words': np.array(record.extra['words'], np.int16),
        'place': np.array([[record.extra['x'], 0.5]], np.float32),
        'seen': np.array([1], np.uint8),
    }


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_a_batch_carries_what_a_task_adds_to_a_record(source, workers):
    facts = [{'words': [k, 7], 'x': k / 4} for k in range(5)]
    records = [replace(source[k], extra=facts[k]) for k in range(5)]
    records[1] = replace(records[1], image=b'no image')
    batches = [
        evaluation_batches(Listed(records), SIZE, 3, None, workers, words_and_place),
        training_batches(Listed(records), SIZE, 3, 0, range(2), workers, targets=words_and_place),
    ]
    for batch in (batch for some in batches for batch in some):
        for row, index in enumerate(batch.index):
            assert batch.targets['words'][row].tolist() == ([index, 7] if index >= 0 else [-1, -1])
            place = [[index / 4, 0.5]] if index >= 0 else [[0, 0]]
            assert batch.targets['place'][row].tolist() == place
            assert batch.targets['seen'][row] == [index >= 0]
        assert {k: v.dtype for k, v in batch.targets.items()} == {
            'words': np.int16,
            'place': np.float32,
            'seen': np.uint8,
        }


def broken(source, index):
    records = list(source)
    records[index] = Record('broken.png', b'no image', (5,), None)
    return Listed(records)


def test_broken_image_is_reported_and_harms_no_other(source):
    batches = list(evaluation_batches(broken(source, 7), SIZE, 5, targets=Labels()))
    assert batches[1].errors == {7: 'broken.png: not an image that can be decoded'}
    assert batches[1].valid.tolist() == [True, True, False, True, True]
    assert batches[1].index.tolist() == [5, 6, 7, 8, 9] and batches[1].targets['labels'][2] == 5
    assert not batches[1].images[2].any()
    assert not any(batch.errors for k, batch in enumerate(batches) if k != 1)
    whole, rest = by_index(evaluation_batches(source, SIZE, 5)), by_index(batches)
    assert set(whole) - set(rest) == {7}
    assert all((rest[k] == whole[k]).all() for k in rest)


def test_broken_image_keeps_its_place_in_training(source):
    whole = list(training_batches(source, SIZE, 5, seed=1, steps=range(10)))
    found = list(training_batches(broken(source, 7), SIZE, 5, seed=1, steps=range(10)))
    for one, two in zip(whole, found, strict=True):
        bad = two.index == 7
        np.testing.assert_array_equal(one.index, two.index)
        np.testing.assert_array_equal(two.valid, one.valid & ~bad)
        np.testing.assert_array_equal(one.images[~bad], two.images[~bad])
        assert two.errors == (
            {7: 'broken.png: not an image that can be decoded'} if bad.any() else {}
        )
        # Batch normalization sees another image of the batch, no black one.
        assert all((two.images[~bad][0] == image).all() for image in two.images[bad])
    assert sum((batch.index == 7).sum() for batch in found) >= 2


def test_unlabelled_image_stops_training_by_name(source, tmp_path):
    (tmp_path / 'image.png').write_bytes(source[3].image)
    for image, name in (
        (source[3].image, 'train/00003.png'),
        (tmp_path / 'image.png', 'image.png'),
    ):
        records = list(source)
        records[3] = replace(source[3], image=image, labels=())
        with pytest.raises(DataError, match=f'{name}: has no label; .* check DIR'):
            required = Labels(required=True)
            list(training_batches(Listed(records), SIZE, 5, 0, range(5), targets=required))


def threads():
    return [t for t in threading.enumerate() if 'grain' in t.name]


def test_stopping_early_leaves_no_thread(source):
    before = len(threads())
    batches = evaluation_batches(source, SIZE, 2)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 5
    while len(threads()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(threads()) <= before


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(source):
    threaded = list(evaluation_batches(source, SIZE, 10, targets=Labels()))
    others = evaluation_batches(source, SIZE, 10, workers=2, targets=Labels())
    for one, two in zip(threaded, others, strict=True):
        for field in ('images', 'targets', 'index', 'valid'):
            np.testing.assert_equal(getattr(one, field), getattr(two, field))


def test_training_epoch_is_shuffled_and_whole(source):
    batches = list(training_batches(source, SIZE, 5, 1, range(5), targets=Labels()))
    index = np.concatenate([batch.index[batch.valid] for batch in batches])
    assert sorted(index.tolist()) == list(range(23)) != index.tolist()
    assert all((b.targets['labels'][:, 0] == b.index % 6).all() for b in batches)
    assert all(batch.valid.all() for batch in batches[:-1])


@pytest.mark.parametrize('batch_size', [5, 7, 22, 24, 60])
def test_last_training_batch_is_filled_up_with_the_first_images(source, batch_size):
    steps = range(-(-23 // batch_size))
    batches = list(training_batches(source, SIZE, batch_size, 1, steps, targets=Labels()))
    index = np.concatenate([batch.index for batch in batches])
    valid = np.concatenate([batch.valid for batch in batches])
    np.testing.assert_array_equal(valid, np.arange(len(index)) < 23)
    np.testing.assert_array_equal(index, index[np.arange(len(index)) % 23])
    images = np.concatenate([batch.images for batch in batches])
    np.testing.assert_array_equal(images, images[np.arange(len(index)) % 23])
    assert all((b.targets['labels'][:, 0] == b.index % 6).all() for b in batches)


def test_rows_of_a_batch_are_shared(source):
    """By those who read them; behind its last image a batch has its first ones again."""

    def batches(rows):
        facts = {'targets': Labels(), 'balanced': True, 'rows': rows}
        return list(training_batches(source, SIZE, 5, 1, range(3, 7), **facts))

    whole, shares = batches(None), [batches(np.array(rows)) for rows in ([0, 1, 4], [2, 3, 5, 6])]
    for batch, *parts in zip(whole, *shares, strict=True):
        for field in ('images', 'index', 'valid'):
            one, two = (getattr(part, field) for part in parts)
            found, expected = np.concatenate([one[:2], two[:2], one[2:]]), getattr(batch, field)
            np.testing.assert_array_equal(found, expected)
            if field != 'valid':
                np.testing.assert_array_equal(two[2:], expected[:2])
        assert not parts[1].valid[2:].any()


class Counted(Listed):
    """Remembers which images were asked for."""

    def __init__(self, records):
        super().__init__(records)
        self.asked = set()

    def __getitem__(self, index):
        self.asked.add(index)
        return super().__getitem__(index)


@pytest.mark.parametrize(('start', 'stop'), [(0, 5), (1, 5), (4, 7), (5, 10), (13, 15), (9, 9)])
def test_an_interrupted_training_goes_on_exactly(source, start, stop):
    whole = list(training_batches(source, SIZE, 5, 1, range(15), targets=Labels()))
    counted = Counted(source)
    some = list(training_batches(counted, SIZE, 5, 1, range(start, stop), targets=Labels()))
    for one, two in zip(whole[start:stop], some, strict=True):
        for field in ('images', 'targets', 'index', 'valid'):
            np.testing.assert_equal(getattr(one, field), getattr(two, field))
    assert counted.asked == {int(k) for batch in some for k in batch.index}


@pytest.mark.slow
@pytest.mark.parametrize(('batch_size', 'workers'), [(1, 0), (5, 0), (23, 0), (60, 0), (5, 2)])
def test_a_training_is_its_epochs_one_after_the_other(source, batch_size, workers):
    """Each shuffled by (seed, epoch), filled up from its own start."""
    setting = AugmentConfig()
    steps = -(-23 // batch_size)
    batches = training_batches(source, SIZE, batch_size, 3, range(3 * steps), workers)
    for epoch in range(3):
        order = np.random.default_rng([3, epoch]).permutation(23).tolist() * 60
        for step in range(steps):
            batch = next(batches)
            first = step * batch_size
            assert batch.index.tolist() == order[first : first + batch_size]
            assert batch.valid.tolist() == [first + row < 23 for row in range(batch_size)]
            for k, image in zip(batch.index, batch.images, strict=True):
                rng = np.random.default_rng([3, epoch, k, 1])
                expected = augment(decode_image(source[int(k)]), {}, SIZE, setting, rng)[0]
                np.testing.assert_array_equal(image, expected)
    assert next(batches, None) is None


class Processes(Listed):
    """Its labels tell which process read the image."""

    def __getitem__(self, index):
        return replace(super().__getitem__(index), labels=(os.getpid(),))


@pytest.mark.slow
def test_worker_processes_start_once(source):
    batches = training_batches(Processes(source), SIZE, 12, 0, range(6), 1, targets=Labels())
    pids = {int(k) for batch in batches for k in batch.targets['labels'][:, 0]}
    assert len(pids) == 1 and os.getpid() not in pids


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_is_drawn_again_in_an_epoch_is_augmented_anew(source, workers):
    """Three images of one class and one of another, which stands in every second place."""
    records = Listed(replace(source[k], labels=(int(k == 2),)) for k in range(4))
    facts = {'targets': Labels(), 'balanced': True, 'workers': workers}
    batches = list(training_batches(records, SIZE, 2, 5, range(2, 6), **facts))
    turns = {}
    for step, batch in zip(range(2, 6), batches, strict=True):
        assert sorted(batch.targets['labels'][:, 0]) == [0, 1] and batch.valid.all()
        for k, image in zip(batch.index.tolist(), batch.images, strict=True):
            turn = turns[step // 2, k] = turns.get((step // 2, k), 0) + 1
            rng = np.random.default_rng([5, step // 2, k, turn])
            expected = augment(decode_image(source[k]), {}, SIZE, AugmentConfig(), rng)[0]
            np.testing.assert_array_equal(image, expected)
    assert turns[1, 2] == turns[2, 2] == 2 and set(turns.values()) == {1, 2}


@pytest.mark.slow
def test_the_augmentation_is_chosen(source):
    """Each image draws from (seed, epoch, index), in worker processes too."""
    setting = AugmentConfig(crop='resized', flip=False, jitter=0.3)
    for k, image in by_index(
        training_batches(source, SIZE, 8, 4, range(3, 6), workers=1, setting=setting)
    ).items():
        rng = np.random.default_rng([4, 1, k, 1])
        expected, _ = augment(decode_image(source[k]), {}, SIZE, setting, rng)
        np.testing.assert_array_equal(image, expected)


def test_training_is_determined_by_seed_epoch_and_index(source):
    def epoch(batch_size, seed, epoch):
        steps = -(-23 // batch_size)
        some = range(epoch * steps, (epoch + 1) * steps)
        return by_index(training_batches(source, SIZE, batch_size, seed, some))

    one, two = epoch(23, 1, 0), epoch(1, 1, 0)
    assert list(one) == list(two)
    assert all((one[k] == two[k]).all() for k in one)
    for other in (epoch(23, 1, 1), epoch(23, 2, 0)):
        assert list(other) != list(one)
        assert sum((other[k] != one[k]).any() for k in one) > 12


def test_augmentation_is_a_crop_and_a_flip_of_the_squashed_image(source):
    side = SIZE + MARGIN
    seen = set()
    for epoch in range(4):
        for k, image in by_index(
            training_batches(source, SIZE, 23, 0, range(epoch, epoch + 1))
        ).items():
            whole = resize_image(decode_image(source[k]), (side, side))
            found = [
                (top, left, flip)
                for top in range(MARGIN + 1)
                for left in range(MARGIN + 1)
                for flip in (1, -1)
                if (whole[top : top + SIZE, left : left + SIZE][:, ::flip] == image).all()
            ]
            assert len(found) == 1
            seen.add(found[0])
    tops, lefts, flips = map(set, zip(*seen, strict=True))
    assert tops == lefts == set(range(MARGIN + 1)) and flips == {1, -1}


@pytest.mark.parametrize(
    ('number', 'fails', 'tries'),
    [(errno.EIO, 2, 3), (errno.EACCES, 2, 1), (errno.EIO, 9, 4)],
)
def test_a_read_that_fails_is_tried_again(tmp_path, monkeypatch, number, fails, tries):
    """An error of the disk says nothing of the image; a lasting one skips it."""
    file = tmp_path / 'a.png'
    file.write_bytes(Shapes('train', 1, size=48)[0].image)

    failing, tried = failing_at_first(open_file, number, fails)
    monkeypatch.setattr('wsol_jax.data.decode.open_file', failing)
    monkeypatch.setattr('wsol_jax.data.loader._PAUSES', (0, 0, 0))
    batches = evaluation_batches(Listed([Record('a', file, (0,), None)]), 8, 1)
    if fails == 9:
        with pytest.raises(ReadError, match=r'a.png: Input/output error'):
            next(batches)
    else:
        lasting = {0: f'{file}: Permission denied'}
        assert next(batches).errors == (lasting if number == errno.EACCES else {})
    assert len(tried) == tries


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_targets_of_another_shape_name_the_image(workers):
    with pytest.raises(DataError, match=r"00002.png: target 'x' has shape \[2\], that .* \[1\]"):
        list(evaluation_batches(Shapes('val', 4), SIZE, 4, workers=workers, targets=uneven))


def test_a_target_that_an_image_lacks_is_named():
    with pytest.raises(DataError, match=r"00001.png: target 'x' has none, that .*00000.png \[1\]"):
        list(evaluation_batches(Shapes('val', 4), SIZE, 4, targets=lacking))


def uneven(record):
    return {'x': np.zeros(1 + (record.image_id == 'val/00002.png'), np.float32)}


def lacking(record):
    return {'x': np.zeros(1)} if record.image_id == 'val/00000.png' else {}


def drawn_on(record):
    """A label map of a size of its own, beside a target that stays as it is."""
    rows = np.arange(10 + record.labels[0], dtype=np.uint8)
    return {'true_label_map': np.tile(rows, (7, 1)), 'row': rows[:2]}


def test_label_maps_lie_on_their_images(source):
    records = Listed(source[k] for k in range(6))
    records.records[2] = Record('broken.png', b'no image', (2,), None)
    (batch,) = evaluation_batches(records, (14, 30), 8, targets=drawn_on)
    found = batch.targets['true_label_map']
    assert found.shape == (8, 14, 30) and found.dtype == np.uint8
    for k in range(8):
        columns = np.floor((np.arange(30) + 0.5) / 30 * (10 + k))
        expected = np.tile({2: [255] * 30, 6: [0] * 30, 7: [0] * 30}.get(k, columns), (14, 1))
        np.testing.assert_array_equal(found[k], expected)
    facts = {'setting': AugmentConfig(crop='scale'), 'targets': drawn_on}
    steps = training_batches(records, SIZE, 3, 2, range(4), **facts)
    for step, batch in enumerate(steps):
        for k, label_map in zip(batch.index.tolist(), batch.targets['true_label_map'], strict=True):
            if k == 2:
                assert (label_map == 255).all()
                continue
            maps = {'label_map': drawn_on(source[k])['true_label_map']}
            rng = np.random.default_rng([2, step // 2, k, 1])
            _, expected = augment(decode_image(source[k]), maps, SIZE, facts['setting'], rng)
            np.testing.assert_array_equal(label_map, expected['label_map'])
        assert (batch.targets['row'] == [0, 1]).all()
