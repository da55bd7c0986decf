"""The evaluator for anybody's score maps, fed with junk: one line, exit code 2, nothing written."""

import io
import os
import random
import resource
import struct
from contextlib import contextmanager

import numpy as np
import pytest

from wsol_jax.data import DataError
from wsol_jax.evaluation.__main__ import main
from wsol_jax.evaluation.scoremaps import read_scoremap

pytestmark = pytest.mark.faults

MAP = np.outer(np.hanning(224), np.linspace(0, 1, 224))


@pytest.fixture
def data(tmp_path):
    """maps/ and metadata/ of one image."""
    for name in ('maps', 'metadata'):
        (tmp_path / name).mkdir()
    np.save(tmp_path / 'maps/a.jpg.npy', MAP)
    lines = {'image_ids': 'a.jpg', 'image_sizes': 'a.jpg,50,40', 'localization': 'a.jpg,1,2,30,40'}
    for name, line in lines.items():
        (tmp_path / 'metadata' / f'{name}.txt').write_text(f'{line}\n')
    return tmp_path


def run(data, capsys, *more):
    """(exit code, standard error) of the command."""
    folders = ('--scoremaps', str(data / 'maps'), '--metadata', str(data / 'metadata'))
    try:
        code = main([*folders, *(() if '--out' in more else ('--out', str(data / 'out'))), *more])
    except SystemExit as stopped:
        code = stopped.code
    return code, capsys.readouterr().err


def npy(header, data=b'', version=1):
    text = header if isinstance(header, bytes) else header.encode()
    length = struct.pack('<H' if version == 1 else '<I', len(text))
    return b'\x93NUMPY' + bytes([version, 0]) + length + text + data


def head(descr="'<f8'", order='False', shape='(224, 224)'):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


def zipped():
    file = io.BytesIO()
    np.savez(file, MAP)
    return file.getvalue()


def objects():
    file = io.BytesIO()
    np.save(file, MAP.astype(object), allow_pickle=True)
    return file.getvalue()


BYTES = MAP.tobytes()
BROKEN = {
    'empty': (b'', 'not a .npy file that can be read'),
    'text': (b'hello', 'not a .npy file that can be read'),
    'a .npz': (zipped(), 'not a .npy file that can be read'),
    'objects': (objects(), 'expected floats, got object'),
    'cut': (npy(head(), BYTES[:-1]), 'not a .npy file that can be read (it ends too early)'),
    'no data': (npy(head()), 'it ends too early'),
    '8 GB': (npy(head(shape='(32768, 32768)'), BYTES), 'at most 4096 * 4096, got [32768, 32768]'),
    '10**40': (npy(head(shape=f'({10**40}, 1)'), BYTES), 'at most 4096 * 4096, got [1000'),
    'negative': (npy(head(shape='(-224, 224)'), BYTES), 'expected shape'),
    'many axes': (npy(head(shape=f'({"1," * 3000})'), BYTES), 'expected shape'),
    'deep': (npy('(' * 9000), 'not a .npy file that can be read'),
    'deeper': (npy('[' * 60_000), 'not a .npy file that can be read'),
    'open bracket': (npy(head().replace('}', '')), 'not a .npy file that can be read'),
    'long': (npy(b' ' * 100_000, version=2), 'not a .npy file that can be read'),
    'version': (npy(head(), BYTES, version=9), 'not a .npy file that can be read'),
    'record': (npy(head(descr="[('a', '<f8')]"), BYTES), 'expected floats, got'),
    'times': (npy(head(descr="'<M8[s]'"), BYTES), 'expected floats, got datetime64'),
    'complex': (npy(head(descr="'<c16'"), BYTES * 2), 'expected floats, got complex128'),
    'no type': (npy(head(descr='7'), BYTES), 'not a .npy file that can be read'),
    'infinite': (npy(head(), np.full_like(MAP, np.inf).tobytes()), 'must lie in [0, 1]'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_arrays_are_one_line(data, capsys, name):
    content, reason = BROKEN[name]
    file = data / 'maps/a.jpg.npy'
    file.write_bytes(content)
    code, err = run(data, capsys)
    assert code == 2 and err.count('\n') == 1 and len(err) < 800
    assert err.startswith(f'python -m wsol_jax.evaluation: {file}: ') and reason in err
    assert not (data / 'out').exists()


@pytest.mark.parametrize('kind', ['<f4', '>f4', '<f8', '>f8', '<f2', np.longdouble])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_arrays_of_any_float_and_order_are_read(tmp_path, kind, order):
    values = MAP.astype(kind, order=order)
    np.save(tmp_path / 'a.npy', values)
    read = read_scoremap(tmp_path / 'a.npy')
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, np.load(tmp_path / 'a.npy').astype(np.float64))


def test_mutated_arrays_are_read_as_numpy_does_or_named(tmp_path):
    rng, file = random.Random(1), tmp_path / 'a.npy'
    whole = npy(head(), BYTES)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(120)] = rng.randrange(256)
        file.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        try:
            read = read_scoremap(file)
        except DataError as error:
            assert str(error).startswith(f'{file}: ') and '\n' not in str(error)
            continue
        np.testing.assert_array_equal(read, np.load(file, allow_pickle=False))


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda f: f.symlink_to('/dev/zero')])
def test_maps_that_are_no_files_are_not_opened(data, capsys, make):
    (data / 'maps/a.jpg.npy').unlink()
    make(data / 'maps/a.jpg.npy')
    code, err = run(data, capsys)
    assert code == 2 and 'a.jpg.npy: no such score map' in err and err.count('\n') == 1


@pytest.mark.parametrize(
    ('more', 'reason'),
    [
        (['--interval', '1e-12'], 'interval must be at least 0.0001 and below 1, got 1e-12'),
        (['--interval', 'nan'], 'interval must be a finite number, got nan'),
        (['--interval', 'inf'], 'interval must be a finite number, got inf'),
        (['--interval=-1'], 'interval must be at least 0.0001 and below 1, got -1.0'),
        (['--processes', str(10**12)], 'processes must be at most 256, got 1000000000000'),
        (['--protocols', 'bas:nan'], 'the threshold of a protocol is a number in [0, 1)'),
        (['--protocols', 'bas:' + '9' * 5000], 'the threshold of a protocol is a number in [0, 1)'),
        (['--protocols', 'x' * 5000], "unknown protocol 'xxx"),
        (['--masks', '/dev/null'], ''),
    ],
)
def test_options_beyond_reason(data, capsys, more, reason):
    code, err = run(data, capsys, *more)
    assert (code == 2 and err.count('\n') == 1 and len(err) < 1000) if reason else code == 0
    assert reason in err and (data / 'out').exists() == (not reason)


def link_to(target):
    return lambda file: file.symlink_to(target)


@pytest.mark.parametrize(
    ('make', 'kind'),
    [
        (link_to('other'), 'link'),
        (link_to('/dev/null'), 'link'),
        (link_to('nowhere/at/all'), 'link'),
        (os.mkfifo, 'device or a pipe'),
        (os.mkdir, 'folder'),
    ],
)
def test_nothing_but_a_plain_file_is_replaced(data, capsys, make, kind):
    (data / 'other').write_text('precious')
    make(data / 'x')
    before = sorted(os.listdir(data))
    code, err = run(data, capsys, '--out', str(data / 'x'))
    assert (code, err.count('\n')) == (2, 1) and f'{data}/x: is a {kind}; name a plain file' in err
    assert sorted(os.listdir(data)) == before and (data / 'other').read_text() == 'precious'


def test_devices_stay_devices(data, capsys):
    code, err = run(data, capsys, '--out', '/dev/null')
    assert code == 2 and '/dev/null: is a device or a pipe' in err
    assert not os.path.isfile('/dev/null')


def test_an_old_file_is_replaced_whole(data, capsys):
    (data / 'out').write_text('old')
    assert run(data, capsys)[0] == 0 and '"MaxBoxAcc"' in (data / 'out').read_text()


@contextmanager
def full_disk():
    """No file may grow beyond 1000 bytes; that of the test run itself is one, too: be short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file(data, capsys):
    (data / 'out').write_text('old')
    with full_disk():
        code, err = run(data, capsys)
    assert code == 2 and err.endswith(f'{data}/out: cannot be written: File too large\n')
    assert (data / 'out').read_text() == 'old' and len(os.listdir(data)) == 3


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('image_ids', b'../metadata/a.jpg'),
        ('image_ids', b'/etc/passwd'),
        ('image_ids', b'a\0.jpg'),
        ('image_ids', b'\xff.jpg'),
        ('localization', b'a.jpg,0,0,5,' + b'1' + b'0' * 23),
        ('localization', b'a.jpg,0,0,5,' + b'9' * 5000),
        ('localization', b'a.jpg,nan,0,5,5'),
        ('localization', b'a.jpg,../../x.png,'),
        ('image_sizes', b'a.jpg,1000000000000,5'),
        ('class_labels', b'a.jpg,1000000000'),
        ('class_labels', b'a.jpg,-1'),
    ],
)
def test_metadata_beyond_reason(data, capsys, name, content):
    (data / 'metadata' / f'{name}.txt').write_bytes(content + b'\n')
    code, err = run(data, capsys, '--protocols', 'cvpr16')
    assert code == 2 and err.count('\n') == 1 and len(err) < 1000, err
    assert f'{name}.txt' in err or 'a.jpg' in err
    assert not (data / 'out').exists()
