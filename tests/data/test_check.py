import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Listed
from PIL import Image

from wsol_jax.data import (
    ClassFolder,
    DataError,
    Shapes,
    WsolFolder,
    check_folder,
    check_training,
)
from wsol_jax.data.__main__ import main
from wsol_jax.data.check import CLASS, OBJECTLESS, SAME, SEVERAL, SHARED, UNLISTED, UNREAD
from wsol_jax.data.check_images import (
    BOX,
    BROKEN,
    DAMAGED,
    DEEP,
    MASK,
    MASK_SIZE,
    MISSING,
    SIZE,
    TRANSPARENT,
    TURNED,
    UNTURNED,
)
from wsol_jax.data.files import AGAIN, ENDING, HIDDEN, MARKER, NAMES, WORKDIR

SPLITS = {'train': ('a.png', 'b.png', 'c.png'), 'val': ('d.png', 'e.png'), 'test': ('f.png',)}
LABELS = {'a.png': 0, 'b.png': 1, 'c.png': 2, 'd.png': 0, 'e.png': 2, 'f.png': 1}


def picture(file, seed, size=(8, 6)):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def root(tmp_path):
    """A sound data set of 8x6 images, with boxes on val and masks on test."""
    for seed, name in enumerate(LABELS):
        picture(tmp_path / 'images' / name, seed)
    for split, names in SPLITS.items():
        write(tmp_path, f'{split}/image_ids.txt', names)
        write(tmp_path, f'{split}/class_labels.txt', [f'{name},{LABELS[name]}' for name in names])
        write(tmp_path, f'{split}/image_sizes.txt', [f'{name},8,6' for name in names])
    write(tmp_path, 'val/localization.txt', ['d.png,0,0,8,6', 'e.png,1,1,2,2', 'e.png,3,3,5,5'])
    write(tmp_path, 'test/localization.txt', ['f.png,masks/f.png,masks/i.png'])
    picture(tmp_path / 'masks/f.png', 20)
    picture(tmp_path / 'masks/i.png', 21)
    (tmp_path / 'class_names.txt').write_text('duck\nswan\ngoose')
    return tmp_path


def write(root, name, lines):
    file = root / 'metadata' / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('\n'.join(lines))


def relist(root, split, labels):
    """Gives a split other images; it has neither sizes nor boxes any more."""
    write(root, f'{split}/image_ids.txt', dict.fromkeys(name for name, _ in labels))
    write(root, f'{split}/class_labels.txt', [f'{name},{label}' for name, label in labels])
    for name in ('image_sizes.txt', 'localization.txt'):
        (root / 'metadata' / split / name).unlink(missing_ok=True)


def test_a_sound_folder(root):
    report = check_folder(root)
    assert report.problems == {} and report.notes == {}
    assert report.summary == (
        'test: 1 images, 1 classes, 1 labels, 1 masks',
        'train: 3 images, 3 classes, 3 labels',
        'val: 2 images, 2 classes, 2 labels, 3 boxes',
    )
    assert report.text().splitlines()[3:] == ['no problems found']


def missing_image(root):
    (root / 'images/b.png').unlink()


def broken_image(root):
    (root / 'images/b.png').write_bytes((root / 'images/b.png').read_bytes()[:60])


def other_size(root):
    picture(root / 'images/b.png', 1, (8, 7))


def box_outside(root):
    (root / 'metadata/val/image_sizes.txt').unlink()
    write(root, 'val/localization.txt', ['d.png,0,0,9,6', 'e.png,0,0,8,7', 'e.png,0,0,8,6'])


def bad_masks(root):
    (root / 'masks/f.png').unlink()
    (root / 'masks/i.png').write_bytes(b'hello')


def no_goose(root):
    relist(root, 'train', [('a.png', 0), ('b.png', 1)])


def label_gap(root):
    (root / 'class_names.txt').unlink()
    relist(root, 'train', [('a.png', 0), ('c.png', 3)])


def two_splits(root):
    relist(root, 'val', [('d.png', 0), ('a.png', 0), ('b.png', 1)])


def same_content(root):
    (root / 'images/f.png').write_bytes((root / 'images/a.png').read_bytes())


def several_labels(root):
    relist(root, 'train', [('a.png', 2), ('b.png', 1), ('c.png', 0), ('c.png', 1)])


def unlisted(root):
    picture(root / 'images/deep/er.png', 30)


@pytest.mark.parametrize(
    ('harm', 'kind', 'lines'),
    [
        (missing_image, MISSING, ['{root}/images/b.png: no such file']),
        (broken_image, BROKEN, ['{root}/images/b.png: ']),
        (other_size, SIZE, ["'b.png': stored as 8x7, listed as 8x6"]),
        (
            box_outside,
            BOX,
            ["'d.png': box (0, 0, 9, 6), image of 8x6", "'e.png': box (0, 0, 8, 7), image of 8x6"],
        ),
        (
            bad_masks,
            MASK,
            ['mask {root}/masks/f.png: no such file', 'mask {root}/masks/i.png: not an image'],
        ),
        (no_goose, CLASS, ["class 2 'goose' has no training image"]),
        (
            label_gap,
            CLASS,
            ['no training image has label 1; labels', 'no training image has label 2; labels'],
        ),
        (
            two_splits,
            SHARED,
            ["'a.png' is in both train and val", "'b.png' is in both train and val"],
        ),
        (same_content, SAME, ["'f.png' in test, 'a.png' in train"]),
    ],
)
def test_each_problem_is_found_alone(root, harm, kind, lines):
    harm(root)
    report = check_folder(root)
    assert list(report.problems) == [kind]
    assert len(report.problems[kind]) == len(lines)
    for found, line in zip(report.problems[kind], lines, strict=True):
        assert found.startswith(line.format(root=root)) and '\n' not in found
    assert main(['check', str(root)]) == 1


def turned(root, name='b.png', orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(root / 'images' / name) as image:
        image.load()
    image.save(root / 'images' / name, exif=exif)


def deep(root):
    values = np.arange(48, dtype=np.uint16).reshape(6, 8)
    Image.fromarray(values).save(root / 'images/b.png')


def see_through(root):
    Image.new('RGBA', (8, 6)).save(root / 'images/b.png')


def other_mask(root):
    picture(root / 'masks/f.png', 20, (16, 12))


def no_object(root):
    write(root, 'val/localization.txt', ['d.png,0,0,8,6'])


def no_image(root):
    (root / 'images/notes.txt').write_text('')


def hidden(root):
    (root / 'images/._a.png').write_text('')


@pytest.mark.parametrize(
    ('harm', 'kind', 'line'),
    [
        (turned, UNTURNED, "'b.png': orientation 6"),
        (deep, DEEP, "'b.png'"),
        (see_through, TRANSPARENT, "'b.png'"),
        (other_mask, MASK_SIZE, '{root}/masks/f.png: 16x12, image of 8x6'),
        (no_object, OBJECTLESS, "'e.png' in val"),
        (no_image, ENDING, '{root}/images/notes.txt'),
        (hidden, HIDDEN, '{root}/images/._a.png'),
        (several_labels, SEVERAL, "'c.png' in train: 0, 1"),
        (unlisted, UNLISTED, '{root}/images/deep/er.png'),
    ],
)
def test_notes_are_no_problems(root, harm, kind, line):
    harm(root)
    report = check_folder(root)
    assert report.problems == {} and report.notes == {kind: [line.format(root=root)]}
    assert main(['check', str(root)]) == 0


def test_a_frame_that_the_sizes_do_not_have(root):
    turned(root)
    assert check_folder(root, 'displayed').problems == {
        SIZE: ["'b.png': displayed as 6x8, listed as 8x6, as with config.data.orientation='stored'"]
    }
    assert check_folder(root, 'displayed').notes == {TURNED: ["'b.png': orientation 6"]}
    assert main(['check', str(root), '--orientation', 'displayed']) == 1
    assert main(['check', str(root), '--orientation', 'stored']) == 0


def test_what_cannot_be_opened_does_not_stop_the_check(root, capsys):
    for name in ('b.png', 'c.png', 'odd.png'):
        (root / 'images' / name).unlink(missing_ok=True)
    os.mkfifo(root / 'images/b.png')
    (root / 'images/c.png').symlink_to('gone.png')
    (root / 'images/odd\x1b[31m\n.png').write_bytes(b'')
    (root / 'masks/i.png').unlink()
    os.mkfifo(root / 'masks/i.png')
    report = check_folder(root)
    assert report.problems == {
        BROKEN: [
            f'{root}/images/b.png: not a regular file',
            f'{root}/images/c.png: no such file',
        ],
        MASK: [f'mask {root}/masks/i.png: not a regular file'],
        NAMES: [f'{root}/images/odd\x1b[31m\n.png'],
    }
    assert main(['check', str(root)]) == 1
    assert f'  {root}/images/odd\\x1b[31m\\n.png\n' in capsys.readouterr().out


def test_damage_that_decoding_passes_over(tmp_path):
    """A hole in the middle, as of a lost packet: libjpeg makes up the rest, and goes on."""
    for k in range(3):
        pixels = np.random.default_rng(k).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{k}.jpg')
    whole = (tmp_path / '1.jpg').read_bytes()
    middle = len(whole) // 2
    (tmp_path / '1.jpg').write_bytes(whole[:middle] + whole[middle + 300 :])
    report = check_folder(tmp_path)
    assert list(report.problems) == [DAMAGED] and report.notes == {}
    assert report.problems[DAMAGED][0] == f'{tmp_path}/1.jpg: premature end of data segment'


def test_a_plain_folder_of_images(tmp_path):
    for k in range(3):
        picture(tmp_path / f'{k}.png', k)
    report = check_folder(tmp_path)
    assert (report.summary, report.problems, report.notes) == (('images: 3 images',), {}, {})


def test_links_and_workdirs_of_class_folders(tmp_path):
    for k, name in enumerate(['store/1', 'root/ant/2', 'root/ant/3']):
        picture(tmp_path / f'{name}.png', k)
    (tmp_path / 'root/bee').symlink_to('../store')
    (tmp_path / 'root/ant/loop').symlink_to('.')
    (tmp_path / 'root/W').mkdir()
    (tmp_path / 'root/W' / MARKER).write_text('')
    report = check_folder(tmp_path / 'root')
    assert report.problems == {}
    assert report.notes == {
        AGAIN: [f'{tmp_path}/root/ant/loop'],
        WORKDIR: [f'{tmp_path}/root/W'],
    }


def test_unreadable_splits_do_not_hide_the_others(root):
    write(root, 'val/class_labels.txt', ['d.png,0', 'e.png,x'])
    (root / 'metadata/test/image_ids.txt').unlink()
    (root / 'images/b.png').unlink()
    report = check_folder(root)
    assert report.problems[UNREAD] == [
        f'{root}/metadata/test/image_ids.txt: no such file',
        f"{root}/metadata/val/class_labels.txt:2: expected 'path,label' with whole numbers, "
        "got 'e.png,x'",
    ]
    assert list(report.problems) == [UNREAD, MISSING] and report.notes == {}
    assert report.summary == ('train: 3 images, 3 classes, 3 labels',)


def test_what_harms_every_split_is_said_once(root):
    (root / 'class_names.txt').write_text('')
    assert check_folder(root).problems == {UNREAD: [f'{root}/class_names.txt: names no class']}


def test_all_images_missing(root):
    for file in (root / 'images').iterdir():
        file.unlink()
    assert len(check_folder(root).problems[MISSING]) == 6


def test_long_lists_are_cut_on_the_terminal_alone(root, capsys):
    for k in range(13):
        picture(root / f'images/more/{k:02d}.png', 100 + k)
    assert len(check_folder(root).notes[UNLISTED]) == 13
    assert main(['check', str(root)]) == 0
    *_, last, cut, end = capsys.readouterr().out.splitlines()
    assert last.endswith('more/09.png')
    assert (cut, end) == ('  ... and 3 more', 'no problems found')


def test_class_folders(tmp_path):
    for seed, name in enumerate(['train/ant/1', 'train/bee/1', 'val/ant/1', 'other/x']):
        picture(tmp_path / f'{name}.png', seed)
    (tmp_path / 'val/ant/2.png').write_bytes((tmp_path / 'train/bee/1.png').read_bytes())
    (tmp_path / 'val/ant/3.png').write_bytes(b'hello')
    report = check_folder(tmp_path)
    assert report.problems == {
        BROKEN: [f'{tmp_path}/val/ant/3.png: not an image that can be decoded'],
        SAME: ["'train/bee/1.png' in train, 'val/ant/2.png' in val"],
    }
    assert report.notes == {UNLISTED: [f'{tmp_path}/other/x.png']}
    picture(tmp_path / 'val/cat/1.png', 9)
    assert check_folder(tmp_path).problems[UNREAD] == [
        f"{tmp_path}/val/cat: {tmp_path}/train has no class 'cat'"
    ]


def test_drawn_splits_are_sound(tmp_path):
    for k in range(12):
        picture(tmp_path / f'ant/{k:02d}.png', k)
    report = check_folder(tmp_path)
    assert report.problems == {} and report.notes == {}
    assert [line.split(',')[0] for line in report.summary] == ['train: 11 images', 'val: 1 images']


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize('name', ['imagenette', 'cub30', 'pets', 'tiny20'])
def test_real_folders_are_sound(name):
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real images')
    report = check_folder(Path(os.environ['WSOL_DATA']) / name)
    assert report.problems == {} and report.notes == {} and len(report.summary) == 3


def test_a_wrong_path_is_one_line_and_code_2(tmp_path, capsys):
    for path, said in ((tmp_path / 'gone', 'no such folder'), (tmp_path, 'holds no class folder')):
        with pytest.raises(SystemExit) as left:
            main(['check', str(path)])
        message = capsys.readouterr().err
        assert left.value.code == 2 and message.count('\n') == 1
        assert f'{path}: {said}' in message


def test_prepare_is_passed_on(monkeypatch, capsys):
    def prepare(name, root, data_dir):
        if name == 'bad':
            raise DataError('no bad')
        called.append((name, root, data_dir))

    called = []
    monkeypatch.setattr('wsol_jax.data.tfds.prepare', prepare)
    assert main(['prepare', 'cub', 'here', 'there']) == 0 and called == [('cub', 'here', 'there')]
    with pytest.raises(SystemExit) as left:
        main(['prepare', 'bad', 'here', 'there'])
    assert left.value.code == 2 and capsys.readouterr().err == 'python -m wsol_jax.data: no bad\n'


def split(root, name):
    return WsolFolder(root, name)


def test_sound_splits_can_be_trained_on(root):
    check_training(split(root, 'train'), split(root, 'val'))
    for k in range(12):
        picture(root / f'drawn/ant/{k:02d}.png', k)
    check_training(ClassFolder(root / 'drawn', 'train'), ClassFolder(root / 'drawn', 'val'))


@pytest.mark.parametrize(
    ('harm', 'said'),
    [
        (no_goose, "class 2 'goose' has no training image; labels must be 0..n-1 without gaps"),
        (label_gap, 'no training image has label 1; labels must be 0..n-1 without gaps'),
        (
            two_splits,
            "'a.png' is in both train and val (2 such images); take them out of one split",
        ),
        (
            several_labels,
            "'c.png' in train: 0, 1 (1 such images); "
            'training a classifier takes one label an image, unless '
            "config.train.loss='sigmoid'",
        ),
    ],
)
def test_splits_that_cannot_be_trained_on(root, harm, said):
    harm(root)
    with pytest.raises(DataError) as error:
        check_training(split(root, 'train'), split(root, 'val'))
    assert str(error.value) == said


def test_several_labels_can_be_trained_on_where_they_may_be(root):
    several_labels(root)
    check_training(split(root, 'train'), split(root, 'val'), several=True)


def test_a_class_of_val_alone_counts(root):
    (root / 'class_names.txt').unlink()
    relist(root, 'val', [('d.png', 3)])
    with pytest.raises(DataError, match='no training image has label 3'):
        check_training(split(root, 'train'), split(root, 'val'))


def test_files_that_are_not_there_are_told_before_the_training(root, caplog):
    train, val = split(root, 'train'), split(root, 'val')
    check_training(train, val)
    assert not caplog.text
    train[1].image.unlink()
    train[1].image.symlink_to('nowhere')
    check_training(train, val)
    count = f'1 of the {len(train)} images of train are missing, and passed over'
    assert f'{train[1].image}: no such file ({count})' in caplog.text
    for record in val:
        record.image.unlink()
    count = f'{len(val)} of the {len(val)} images of val are missing'
    with pytest.raises(DataError, match=re.escape(f'{val[0].image}: no such file ({count})')):
        check_training(train, val)


def test_other_sources_are_not_read():
    class Unread(Listed):
        def __getitem__(self, index):
            raise AssertionError('read')

    check_training(Unread([1, 2]), Unread([1]))
    check_training(Shapes('train', 1), Shapes('val', 1))
