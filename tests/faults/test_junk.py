"""Hundreds of damaged images and metadata files: read as they are, or named in one line.

Every reader works in a process whose memory is bounded, against a clock.
"""

import json
import resource
import signal
import traceback
from itertools import chain, cycle
from random import Random

import cv2
import numpy as np
import pytest
from mutants import images, mutant
from test_main import FORKS

from wsol_jax.data import DataError, open_source
from wsol_jax.data.check import UNREAD, check_folder
from wsol_jax.data.check_images import BROKEN
from wsol_jax.data.decode import decode_image, stored_size
from wsol_jax.data.records import BadImage
from wsol_jax.evaluation.scoremaps import scoremap_records

pytestmark = pytest.mark.faults

MUTANTS = 210  # of each kind
SPARE = 2**30  # bytes that a reader may take beyond what the program itself has


def bounded(work, folder):
    with open('/proc/self/statm') as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE, size + SPARE))
    signal.alarm(100)  # ends this process
    try:
        result = work(folder)
    except BaseException:
        result = traceback.format_exc()
    (folder / 'result.json').write_text(json.dumps(result))


def in_bounds(work, folder):
    """What `work(folder)` returns in a process of its own."""
    process = FORKS.Process(target=bounded, args=(work, folder))
    process.start()
    process.join(120)
    assert process.exitcode == 0, 'it hangs, or the process died'
    result = json.loads((folder / 'result.json').read_text())
    assert not isinstance(result, str), result
    return result


def one_line(error, folder):
    text = str(error)
    assert '\n' not in text and len(text) < 1000 and str(folder) in text, text
    return text


def source_of(kind, folder, name, content):
    """A source of one image."""
    places = {'wsol_folder': 'images', 'class_folder': 'train/duck', 'image_folder': '.'}
    file = folder / kind / places[kind] / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    if kind == 'wsol_folder':
        metadata = folder / kind / 'metadata/train'
        metadata.mkdir(parents=True, exist_ok=True)
        (metadata / 'image_ids.txt').write_text(name)
        (metadata / 'class_labels.txt').write_text(f'{name},0')
    (folder / kind / 'train/swan').mkdir(parents=True, exist_ok=True)
    (folder / kind / 'train/swan/x.png').write_bytes(images()['rgb.png'])
    source = open_source(kind, folder / kind, 'train')
    record = next(source[i] for i in range(len(source)) if source[i].image == file)
    return record, file


def decoded(record, folder):
    """Pixels, or None where the file is named as broken."""
    try:
        stored_size(record)
    except BadImage as error:
        one_line(error, folder)
    try:
        pixels = decode_image(record)
    except BadImage as error:
        one_line(error, folder)
        return None
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return pixels


def damaged(whole, seed):
    """(name, content) of as many mutants of these files."""
    rng = Random(seed)
    for _, name in zip(range(MUTANTS), cycle(whole), strict=False):
        yield name, mutant(whole[name], rng)


def feed_images(folder):
    """[number of mutants that are read, named, and of those read unlike OpenCV does]."""
    whole, counts, kinds = images(), [0, 0], []
    for number, (name, content) in enumerate(damaged(whole, 5)):
        kind = ('wsol_folder', 'class_folder', 'image_folder')[number % 3]
        record, file = source_of(kind, folder, name, content)
        pixels = decoded(record, folder)
        counts[pixels is None] += 1
        if pixels is not None and unlike(pixels, content, whole[name]):
            kinds.append(name)
        file.unlink()
    return [*counts, kinds]


def unlike(pixels, content, whole):
    """Whether OpenCV sees another picture; where it sees none, whether damage was passed over."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if expected is None:  # such as a PNG whose end mark is cut, its pixels whole
        expected = cv2.imdecode(np.frombuffer(whole, np.uint8), flags)
    if expected is None:  # a GIF, in old versions of OpenCV
        return False
    if expected.shape != pixels.shape:
        return True
    return np.abs(expected[:, :, ::-1].astype(int) - pixels).mean() > 3


def feed_check(folder):
    """[lines of `data check` that name a mutant as unreadable, mutants that are]."""
    whole, named = images(), []
    for number, (name, content) in enumerate(damaged(whole, 7)):
        file = folder / f'train/duck/{number:03}_{name}'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / 'train/swan').mkdir()
    (folder / 'train/swan/x.png').write_bytes(whole['rgb.png'])
    for split in ('train', 'val'):  # a tenth of train
        source = open_source('class_folder', folder, split)
        records = [source[index] for index in range(len(source))]
        named += [r.image.name for r in records if decoded(r, folder) is None]
    report = check_folder(folder)
    assert '\n' not in ''.join(chain.from_iterable(report.problems.values()))
    lines = report.problems[BROKEN]
    return [sum(any(name in line for line in lines) for name in named), len(named), len(lines)]


@pytest.mark.slow
def test_check_names_every_image_that_is_not_read(tmp_path):
    said, broken, lines = in_bounds(feed_check, tmp_path)
    assert said == broken == lines > 90


@pytest.mark.slow
def test_damaged_images_are_read_as_another_decoder_does_or_named(tmp_path):
    read, named, kinds = in_bounds(feed_images, tmp_path)
    assert read > 30 and named > 90 and read + named == MUTANTS
    # Nothing in a GIF tells of damage: what its codes say is the image, up to where they end.
    assert [name for name in kinds if name != 'palette.gif'] == []


FILES = {
    'image_ids': 'a.png\nb/c.png\nd.png\n',
    'class_labels': 'a.png,0\nb/c.png,1\nd.png,0\n',
    'image_sizes': 'a.png,40,30\nb/c.png,40,30\nd.png,40,30\n',
    'localization': 'a.png,1,2,30,20\nb/c.png,0,0,40,30\nd.png,5,5,9,9\nd.png,1,1,9,9\n',
    'class_names': 'duck\nswan\n',
}
TOKENS = (
    *(b'-1', b'0', b'1e5', b'nan', b'inf', b'1' + b'0' * 23, b'9' * 5000, b'0x10', b'1_0', b''),
    *(
        '٣'.encode(),
        b'\xff',
        b'\0',
        b'\xef\xbb\xbf',
        b'\r',
        b'\n\n',
        b',',
        b',,',
        b' ',
        b'\t',
        b'"',
    ),
    *(b'../a.png', b'/etc/passwd', b'a.png', b'x.png', b'b/../../x.png', b'm.png,', b'40', b'duck'),
)


def mutated(text, rng):
    """One metadata file with one or two faults."""
    data = text.encode()
    for _ in range(rng.randint(1, 2)):
        lines = data.split(b'\n')
        row = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                cells = lines[row].split(b',')
                cells[rng.randrange(len(cells))] = rng.choice(TOKENS)
                lines[row] = b','.join(cells)
            case 1:
                del lines[row]
            case 2:
                lines.insert(row, rng.choice([*lines, b'x' * 100_000, rng.choice(TOKENS)]))
            case 3:
                lines[row] = lines[row][: rng.randrange(1 + len(lines[row]))]
            case 4:
                place = rng.randrange(1 + len(lines[row]))
                lines[row] = lines[row][:place] + rng.choice(TOKENS) + lines[row][place:]
        data = b'\n'.join(lines)
    return data


def feed_metadata(folder):
    """[number of mutants that are read, named] by the source and by the evaluator."""
    rng, counts = Random(6), [0, 0]
    metadata, maps = folder / 'metadata/test', folder / 'maps'
    for place in (metadata, folder / 'images/b', maps / 'b'):
        place.mkdir(parents=True)
    for name in FILES['image_ids'].split():
        (folder / 'images' / name).write_bytes(images()['rgb.png'])
        np.save(maps / f'{name}.npy', np.zeros((224, 224)))
    for number in range(MUTANTS):
        broken = list(FILES)[number % len(FILES)]
        for name, text in FILES.items():
            place = folder if name == 'class_names' else metadata
            content = mutated(text, rng) if name == broken else text.encode()
            (place / f'{name}.txt').write_bytes(content)
        for read in (read_source, read_scoremaps, read_check):
            try:
                read(folder)
                counts[0] += 1
            except DataError as error:
                one_line(error, folder)
                counts[1] += 1
    return counts


def read_source(folder):
    source = open_source('wsol_folder', folder, 'test')
    for record in (source[i] for i in range(len(source))):
        assert source.class_name(record.labels[0]) and '..' not in record.image.parts
        width, height = record.size or (40, 30)
        assert all(
            0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in record.boxes
        )


def read_scoremaps(folder):
    for record in scoremap_records(folder / 'maps', folder / 'metadata/test', folder):
        assert (folder / 'maps') in record.image.parents
        assert max(map(max, record.boxes), default=0) < 2**31


def read_check(folder):
    report = check_folder(folder)
    unread = report.problems.get(UNREAD, ())
    for line in chain.from_iterable(report.problems.values()):
        assert '\n' not in line and len(line) < 1000, line
    if unread:
        raise DataError(unread[0])


@pytest.mark.slow
def test_damaged_metadata_is_read_or_named(tmp_path):
    read, named = in_bounds(feed_metadata, tmp_path)
    assert read + named == 3 * MUTANTS and read > 60 and named > 300
