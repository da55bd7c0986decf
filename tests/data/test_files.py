import json
import os
import sys

import pytest

from wsol_jax.data.files import (
    AGAIN,
    ENDING,
    HIDDEN,
    MARKER,
    NAMES,
    SPECIAL,
    WORKDIR,
    find_images,
    open_file,
    printable,
    read_file,
    stays_below,
)


def made(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'')
    return root


def passed(root):
    return [(kind, str(path.relative_to(root))) for kind, path in find_images(root).passed]


@pytest.mark.parametrize(
    ('name', 'below'),
    [
        ('a.png', True),
        ('a/b..c/..png', True),
        ('./a.png', True),
        ('../a.png', False),
        ('a/../../b.png', False),
        ('a/..', False),
        ('/a.png', False),
        ('//host/a.png', False),
        ('a\0.png', False),
    ],
)
def test_what_stays_below(name, below):
    assert stays_below(name) == below


def test_text_for_one_line():
    assert printable('ä b.png') == 'ä b.png'
    assert printable('a\r\n\x1b[2J\udcff\u2028') == r'a\r\n\x1b[2J\udcff\u2028'


def test_only_regular_files_are_read(tmp_path):
    made(tmp_path, 'a.txt')
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'zero').symlink_to('/dev/zero')
    assert read_file(tmp_path / 'a.txt') == b''
    for name in ('pipe', 'zero', '.'):
        with pytest.raises(OSError, match='not a regular file'):
            open_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / 'gone')


def test_every_ending_and_no_other(tmp_path):
    images = ['a.JPG', 'b.jfif', 'c.gif', 'd/e.Tif', 'd/f.jpe', 'g.pgm', 'h.avif', 'i.jp2']
    made(tmp_path, *images, 'notes.txt', 'raw.dng', 'noending')
    assert list(find_images(tmp_path).images) == images
    assert passed(tmp_path) == [(ENDING, name) for name in ('noending', 'notes.txt', 'raw.dng')]


def test_what_is_hidden_or_special_is_named(tmp_path):
    made(tmp_path, 'a.png', '._a.png', '.x/b.png', 'deep/.c.png')
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'gone.png').symlink_to('nowhere.png')
    (tmp_path / 'self.png').symlink_to('self.png')
    assert list(find_images(tmp_path).images) == ['a.png']
    assert passed(tmp_path) == [
        *((HIDDEN, name) for name in ('._a.png', '.x', 'deep/.c.png')),
        *((SPECIAL, name) for name in ('gone.png', 'pipe.png', 'self.png')),
    ]


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems refuse such names')
def test_names_that_break_lines_or_are_not_utf8(tmp_path):
    made(tmp_path, 'a.png', 'b\n.png', 'c\r.png', 'd\udcff.png', 'e\n/f.png', 'g h=.png')
    assert list(find_images(tmp_path).images) == ['a.png', 'g h=.png']
    assert passed(tmp_path) == [
        (NAMES, name) for name in ('b\n.png', 'c\r.png', 'd\udcff.png', 'e\n')
    ]


def test_links_are_followed_and_each_folder_read_once(tmp_path):
    made(tmp_path, 'store/1.png', 'store/deep/2.png', 'root/real/3.png', 'root/9.png')
    root = tmp_path / 'root'
    (root / 'a_link').symlink_to('real')  # sorts before what it leads to
    (root / 'b').symlink_to('../store')
    (root / 'one.png').symlink_to('../store/1.png')
    (tmp_path / 'store/back').symlink_to('../root')  # round and round
    assert list(find_images(root).images) == [
        *('9.png', 'b/1.png', 'b/deep/2.png', 'one.png', 'real/3.png')
    ]
    assert passed(root) == [(AGAIN, 'a_link'), (AGAIN, 'b/back')]


def test_many_links_to_each_other_end(tmp_path):
    for k in range(12):
        made(tmp_path, f'{k}/a.png')
        for other in range(12):
            (tmp_path / str(k) / f'to{other}').symlink_to(f'../{other}')
    assert len(find_images(tmp_path).images) == 12


@pytest.mark.parametrize('way', ['marker', 'config'])
def test_workdirs_are_no_data(tmp_path, way):
    made(tmp_path, 'a.png', 'w/figures/b.png', 'c/config.json', 'c/1.png')
    (tmp_path / 'c/config.json').write_text('{"versions": 1}')  # somebody else's
    if way == 'marker':
        made(tmp_path, f'w/{MARKER}')
    else:
        (tmp_path / 'w/config.json').write_text(json.dumps({'config': {}, 'versions': {}}))
    found = find_images(tmp_path)
    assert list(found.images) == ['a.png', 'c/1.png'] and (WORKDIR, tmp_path / 'w') in found.passed


@pytest.mark.parametrize('text', ['', '[' * 100_000, '[]', 'null', '\ud800'])
def test_any_config_may_lie_beside_images(tmp_path, text):
    made(tmp_path, 'w/1.png')
    (tmp_path / 'w/config.json').write_text(text, errors='surrogatepass')
    assert list(find_images(tmp_path).images) == ['w/1.png']
