"""Damaged files of exported maps, and places that an export cannot be written to."""

import json
import os
import random
import resource
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load, save

from wsol_jax.exported import ExportError, export, load_exported

pytestmark = pytest.mark.faults


@pytest.fixture(scope='module')
def whole(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp('export') / 'toy.wsol'
    export(toy, ('dgl',), ('late',), path)
    return path


def parts_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def refused(path):
    """The one line that is said of a file."""
    with pytest.raises(ExportError) as caught:
        load_exported(path)
    text = str(caught.value)
    assert text.startswith(f'{path}: ') and '\n' not in text and len(text) < 800
    return text[len(f'{path}: ') :]


def packed(path, parts, **options):
    with zipfile.ZipFile(path, 'w', **options) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def header(whole, **changed):
    return json.dumps(json.loads(parts_of(whole)['export.json']) | changed).encode()


@pytest.mark.slow
def test_a_bomb_is_not_unpacked(whole, tmp_path):
    bomb = parts_of(whole) | {'weights.safetensors': bytes(200_000_000)}
    path = packed(tmp_path / 'bomb', bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 3_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 'export.json is compressed' in refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_a_size_in_the_directory_is_not_believed(whole, tmp_path):
    content = bytearray(whole.read_bytes())
    entry = content.rindex(b'weights.safetensors') - 46  # of the central directory
    for field in (20, 24):  # compressed and full size
        content[entry + field : entry + field + 4] = (0xF0000000).to_bytes(4, 'little')
    (tmp_path / 'huge').write_bytes(content)
    assert refused(tmp_path / 'huge').startswith('not a whole file of wsol_jax.export (')


def test_every_damaged_byte_is_found(whole, tmp_path):
    rng, content, path = random.Random(0), whole.read_bytes(), tmp_path / 'x'
    directory = content.index(b'PK\1\2')
    places = [rng.randrange(directory) for _ in range(60)]
    places += [rng.randrange(directory, len(content)) for _ in range(120)]
    loaded = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert load_exported(path).header == load_exported(whole).header
            loaded += 1  # dates, permissions and the like: nothing that is read
        except ExportError as error:
            assert str(error).startswith(f'{path}: ') and '\n' not in str(error)
    assert loaded < len(places) / 2


def test_truncated_files(whole, tmp_path):
    content = whole.read_bytes()
    for size in (0, 1, 3, 22, 100, len(content) // 3, len(content) - 23, len(content) - 1):
        (tmp_path / 'x').write_bytes(content[:size])
        assert refused(tmp_path / 'x').startswith('not a whole file of wsol_jax.export (')


def test_what_is_no_file(tmp_path):
    os.mkdir(tmp_path / 'folder')
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'device').symlink_to('/dev/zero')
    for name in ('folder', 'pipe', 'device'):
        assert refused(tmp_path / name) == 'not a regular file'


HEADERS = {
    b'': 'export.json is damaged: Expecting value',
    b'{}': 'export.json is damaged: nothing said of format',
    b'[]': 'export.json is damaged: no JSON object',
    b'[' * 200_000: 'export.json is damaged: maximum recursion depth',
    b'\xff\xff\xff': 'export.json is damaged: ',
    b'{"format": 1}': 'export.json is damaged: nothing said of jax',
    b'{"format": "1", "jax": "1"}': "export.json is damaged: format cannot be '1'",
    b'{"format": true, "jax": "1"}': 'export.json is damaged: format cannot be True',
    b'{"format": 1, "jax": "dev"}': "export.json is damaged: jax cannot be 'dev'",
    b'{"format": 1, "jax": "0.1", "platforms": 1}': 'export.json is damaged: platforms cannot be 1',
}


@pytest.mark.parametrize('text', HEADERS)
def test_damaged_headers(whole, tmp_path, text):
    path = packed(tmp_path / 'x', parts_of(whole) | {'export.json': text})
    assert refused(path).startswith(HEADERS[text])


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'keys': [['dgl']]}, "export.json is damaged: keys cannot be [['dgl']]"),
        ({'keys': 5}, 'export.json is damaged: keys cannot be 5'),
        ({'input_size': [8]}, 'export.json is damaged: input_size cannot be [8]'),
        ({'input_size': -8}, 'export.json is damaged: input_size cannot be -8'),
        ({'predicted': 'top9'}, "export.json is damaged: predicted cannot be 'top9'"),
        ({'num_classes': 10**9}, 'its programs, weights and export.json belong to different exp'),
        ({'input_size': 9}, 'its programs, weights and export.json belong to different exports'),
        ({'keys': []}, 'its programs, weights and export.json belong to different exports'),
        ({'channels': 1}, 'its programs, weights and export.json belong to different exports'),
    ],
)
def test_headers_that_say_something_else(whole, tmp_path, changed, message):
    path = packed(tmp_path / 'x', parts_of(whole) | {'export.json': header(whole, **changed)})
    assert refused(path).startswith(message)


def test_parts_that_do_not_belong_together(whole, tmp_path):
    parts = parts_of(whole)
    weights = load(parts['weights.safetensors'])
    name = next(iter(weights))
    for wrong in (
        {k: v for k, v in weights.items() if k != name},
        weights | {name: np.zeros((1, 2), np.float32)},
        weights | {name: weights[name].astype(np.float16)},
        weights | {'more': np.zeros(3, np.float32)},
    ):
        path = packed(tmp_path / 'x', parts | {'weights.safetensors': save(wrong)})
        assert 'belong to different exports' in refused(path)
    for part, content in (
        ('weights.safetensors', b'\xff' * 8 + b'{}'),
        ('weights.safetensors', b''),
        ('weights.safetensors', parts['predicted.jax']),
        ('predicted.jax', b''),
        ('predicted.jax', b'\0' * 64),
        ('given.jax', parts['weights.safetensors']),
        ('given.jax', parts['given.jax'][:200]),
    ):
        assert refused(packed(tmp_path / 'x', parts | {part: content}))


def test_other_members_are_left_alone(whole, tmp_path):
    more = {'../outside': b'x', str(tmp_path / 'absolute'): b'x', 'a/../../b': b'x'}
    found = load_exported(packed(tmp_path / 'x', parts_of(whole) | more))
    assert found.header == load_exported(whole).header
    assert os.listdir(tmp_path) == ['x'] and not (tmp_path.parent / 'outside').exists()


def link_to(target):
    return lambda file: file.symlink_to(target)


@pytest.mark.parametrize(
    'make', [link_to('precious'), link_to('/dev/null'), link_to('nowhere'), os.mkfifo, os.mkdir]
)
def test_an_export_replaces_plain_files_only(toy, tmp_path, make):
    (tmp_path / 'precious').write_text('kept')
    make(tmp_path / 'x')
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(
        OSError, match=r'/x: is a (link|folder|device or a pipe); name a plain file'
    ):
        export(toy, ('dgl',), ('late',), tmp_path / 'x')
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / 'precious').read_text() == 'kept'


def test_an_export_onto_a_full_disk_leaves_the_old_one(toy, whole, tmp_path, capfd):
    path = tmp_path / 'x'
    path.write_bytes(whole.read_bytes())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'/x: cannot be written: File too large') as caught:
            export(toy, ('cam',), ('late',), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert '\n' not in str(caught.value) and capfd.readouterr().err == ''
    assert os.listdir(tmp_path) == ['x'] and path.read_bytes() == whole.read_bytes()
    export(toy, ('cam',), ('late',), path)
    assert load_exported(path).header.keys == (('cam', 'late'),)


def test_an_export_into_a_place_that_is_none(toy, tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OSError, match='file is no folder that can be written to'):
        export(toy, ('dgl',), ('late',), tmp_path / 'file/x')
