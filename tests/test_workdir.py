import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from wsol_jax import workdir as workdir_module
from wsol_jax.config import ConfigError, LocalizeConfig, TrainConfig, flatten, read_config
from wsol_jax.data.files import MARKER
from wsol_jax.workdir import (
    locked,
    open_workdir,
    read_csv,
    read_json,
    record_origin,
    write_csv,
    write_text,
)

CONFIG = read_config({})


def put(path, text='x'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def other(path, value):
    group, _, key = path.rpartition('.')
    return read_config({group: {key: value}} if group else {key: value})


def test_config_json_records_the_run(tmp_path):
    open_workdir(tmp_path / 'a/b', CONFIG)
    record = json.loads((tmp_path / 'a/b/config.json').read_text())
    assert record['config'] == flatten(CONFIG)
    assert {'jax', 'flax', 'numpy'} <= set(record['versions'])
    assert record['devices'] and record['python'].startswith('3.') and 'git' in record


def test_a_run_goes_on_with_settings_of_every_kind(tmp_path):
    tree = {
        'network': {'options': {'width': 8, 'sides': (1, 2)}},
        'train': {'multipliers': (('^fc', 10.0), ('bias$', 2.0)), 'freeze': ('conv1',)},
    }
    open_workdir(tmp_path, read_config(tree))
    file = put(tmp_path / TRAINED)
    open_workdir(tmp_path, read_config(tree))
    assert file.exists()


# What there is -> which settings it binds.
TRAINED, MAPPED = 'checkpoints/last/3/params', 'maps/val/status/0'


@pytest.mark.parametrize(
    ('made', 'path', 'value'),
    [
        (TRAINED, 'seed', 1),
        (TRAINED, 'data.root', 'elsewhere'),
        (TRAINED, 'network.name', 'vgg16'),
        (TRAINED, 'augment.flip', False),
        (TRAINED, 'train.epochs', 11),
        ('checkpoints/best/3/params', 'train.multipliers', (('a', 2.0),)),
        (MAPPED, 'seed', 1),
        (MAPPED, 'network.options', {'width': 4}),
        (MAPPED, 'train.learning_rate', 1.0),
        (MAPPED, 'localize.alpha', 5.0),
        (MAPPED, 'train.keep', 'last'),
        (MAPPED, 'localize.layers', ('a',)),
    ],
)
def test_what_results_depend_on_is_refused(tmp_path, made, path, value):
    open_workdir(tmp_path, CONFIG)
    file, record = put(tmp_path / made), (tmp_path / 'config.json').read_text()
    scores = put(tmp_path / 'metrics.json')
    key = 'network.options.width' if path == 'network.options' else path
    with pytest.raises(ConfigError, match=f'was made with {key}=.*choose another --workdir'):
        open_workdir(tmp_path, other(path, value))
    assert file.exists() and scores.exists()
    assert (tmp_path / 'config.json').read_text() == record
    open_workdir(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ('made', 'path', 'value', 'scored_anew'),
    [
        (TRAINED, 'localize.alpha', 5.0, True),
        (TRAINED, 'evaluate.size', 96, True),
        (TRAINED, 'train.keep', 'last', True),
        (MAPPED, 'evaluate.closing', 5, True),
        (MAPPED, 'localize.splits', ('test',), True),
        (MAPPED, 'localize.batch_size', 1, False),
        (MAPPED, 'data.workers', 2, False),
        (MAPPED, 'data.max_pixels', 10**9, False),
        (MAPPED, 'train.log_every', 1, False),
        (TRAINED, 'train.checkpoint_every', 1, False),
        (TRAINED, 'parallel', 'pmap', False),
        (MAPPED, 'stages', ('report',), False),
        (MAPPED, 'report.images', 1, False),
    ],
)
def test_what_results_do_not_depend_on_is_allowed(tmp_path, made, path, value, scored_anew):
    open_workdir(tmp_path, CONFIG)
    file = put(tmp_path / made)
    names = ('metrics.json', 'report.html', 'boxes/val.csv', 'figures/methods.png')
    scores = [put(tmp_path / name) for name in names]
    open_workdir(tmp_path, other(path, value))
    assert file.exists() and [s.exists() for s in scores] == [not scored_anew] * 4
    recorded = json.loads((tmp_path / 'config.json').read_text())['config'][path]
    assert recorded == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize('prepared', ['checkpoints/last', 'maps/val/status/zarr.json'])
def test_folders_without_a_result_bind_nothing(tmp_path, prepared):
    open_workdir(tmp_path, CONFIG)
    path = tmp_path / prepared
    put(path) if '.' in prepared else path.mkdir(parents=True)
    open_workdir(tmp_path, replace(CONFIG, localize=LocalizeConfig(alpha=5.0)))
    assert path.exists() == prepared.startswith('checkpoints')  # no setting of the training changed
    open_workdir(tmp_path, replace(CONFIG, train=TrainConfig(epochs=1)))
    assert not path.exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"config"', 'config.json is not valid JSON .*; delete it and run again'),
        ('[1]', 'config.json is not a JSON object; delete it and run again'),
        ('{}', 'config.json records no config; delete it and run again'),
        ('{"config": 3}', 'config.json records no config; delete it and run again'),
    ],
)
def test_a_corrupted_record_is_named(tmp_path, text, message):
    file, maps = put(tmp_path / 'config.json', text), put(tmp_path / MAPPED)
    with pytest.raises(ConfigError, match=message):
        open_workdir(tmp_path, CONFIG)
    assert file.read_text() == text and maps.exists()


def test_a_file_in_the_way_is_named(tmp_path):
    for make in (lambda path: open_workdir(path, CONFIG), lambda path: locked(path).__enter__()):
        with pytest.raises(ConfigError, match=r'workdir .*/x: cannot make this folder: File exis'):
            make(put(tmp_path / 'x'))
    target = put(tmp_path / 'secret')
    (tmp_path / 'W').mkdir()
    (tmp_path / 'W' / MARKER).symlink_to(target)
    with pytest.raises(ConfigError, match='symbolic links'), locked(tmp_path / 'W'):
        pass
    assert target.read_text() == 'x'


def weights(path, **settings):
    return read_config({'network': {'weights': str(path), **settings}})


@pytest.mark.parametrize('made', [TRAINED, MAPPED])
def test_weights_of_other_contents_are_refused(tmp_path, made):
    file = put(tmp_path / 'w.safetensors', 'old')
    open_workdir(tmp_path / 'W', weights(file))
    record = json.loads((tmp_path / 'W/config.json').read_text())
    assert record['contents'] == {'network.weights': hashlib.sha256(b'old').hexdigest()}
    result, scores = put(tmp_path / 'W' / made), put(tmp_path / 'W/metrics.json')
    file.write_text('new')
    digests = [hashlib.sha256(text).hexdigest()[:12] for text in (b'old', b'new')]
    message = rf'other contents of network\.weights=.*\(SHA-256 {digests[0]}, now {digests[1]}\)'
    with pytest.raises(ConfigError, match=message):
        open_workdir(tmp_path / 'W', weights(file))
    assert result.exists() and scores.exists()
    # What is gone cannot be compared, and is not needed by what there is.
    file.unlink()
    open_workdir(tmp_path / 'W', weights(file))
    file.write_text('old')
    open_workdir(tmp_path / 'W', weights(file))


def test_a_start_from_another_workdir_is_told_by_its_checkpoint(tmp_path):
    best = put(tmp_path / 'A/checkpoints/best/9/params/d', 'old')
    put(tmp_path / 'A/checkpoints/best/7/params/d', 'older')
    put(tmp_path / 'A/progress.csv')
    config = other('train.init_from', str(tmp_path / 'A'))
    open_workdir(tmp_path / 'W', config)
    put(tmp_path / 'W' / TRAINED)
    put(tmp_path / 'A/progress.csv', 'more')
    put(tmp_path / 'A/checkpoints/best/7/params/d', 'oldest')
    open_workdir(tmp_path / 'W', config)
    kept = put(tmp_path / 'A/checkpoints/best_localization/3/params/d', 'old')
    best.write_text('new')
    with pytest.raises(ConfigError, match=r'other contents of train\.init_from='):
        open_workdir(tmp_path / 'W', config)
    # Of a training that is opened at its best localization, that counts.
    write_text(tmp_path / 'A/config.json', '{"config": {"train.keep": "best_localization"}}')
    open_workdir(tmp_path / 'V', config)
    put(tmp_path / 'V' / TRAINED)
    best.write_text('newer')
    open_workdir(tmp_path / 'V', config)
    kept.write_text('new')
    with pytest.raises(ConfigError, match=r'other contents of train\.init_from='):
        open_workdir(tmp_path / 'V', config)


@pytest.mark.parametrize(
    ('made', 'path', 'value'),
    [
        (TRAINED, 'train.learning_rate', 1.0),
        (MAPPED, 'train.learning_rate', 1.0),
        (MAPPED, 'localize.alpha', 5.0),
    ],
)
def test_results_tell_what_they_were_made_with(tmp_path, made, path, value):
    """Without config.json, too."""
    open_workdir(tmp_path, CONFIG)
    file, scores = put(tmp_path / made), put(tmp_path / 'metrics.json')
    folder = tmp_path / ('checkpoints' if made == TRAINED else 'maps/val')
    record_origin(tmp_path, folder, 'abc')
    (tmp_path / 'config.json').unlink()
    with pytest.raises(ConfigError, match=f'was made with {path}='):
        open_workdir(tmp_path, other(path, value))
    assert scores.exists()
    open_workdir(tmp_path, CONFIG)
    # Scores tell nothing themselves: without config.json they are made anew.
    assert file.exists() and not scores.exists()


def test_results_that_nothing_tells_of_are_refused(tmp_path):
    file = put(tmp_path / TRAINED)
    with pytest.raises(ConfigError, match=r'checkpoints: config\.json, .* is gone: choose another'):
        open_workdir(tmp_path, CONFIG)
    assert file.exists()


def test_maps_of_another_network_are_refused(tmp_path):
    open_workdir(tmp_path, CONFIG)
    put(tmp_path / MAPPED)
    record_origin(tmp_path, tmp_path / 'maps/val', 'abc')
    record_origin(tmp_path, tmp_path / 'maps/val', 'abc')
    message = r'maps/val was made with another network \(abc, now abd\): delete that folder'
    with pytest.raises(ConfigError, match=message):
        record_origin(tmp_path, tmp_path / 'maps/val', 'abd')


HOLD = """import sys, time
from pathlib import Path
from wsol_jax.workdir import locked
with locked(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_workdir_is_of_one_process_at_a_time(tmp_path, number):
    command = [sys.executable, '-c', HOLD, str(tmp_path / 'W')]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b'held\n'
        message = rf'W is in use by process {owner.pid} on \S+ since 20\d\d-.*\(-c .*W\): wait'
        for _ in range(2):
            with pytest.raises(ConfigError, match=message), locked(tmp_path / 'W'):
                pass
        owner.send_signal(number)
    with locked(tmp_path / 'W'):
        assert json.loads((tmp_path / 'W' / MARKER).read_text())['pid'] == os.getpid()
    with locked(tmp_path / 'W'):
        pass


def test_an_owner_that_has_not_said_who_it_is(tmp_path):
    with locked(tmp_path):
        (tmp_path / MARKER).write_text('')
        with pytest.raises(ConfigError, match='in use by another process'), locked(tmp_path):
            pass


def test_files_are_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / 'a/b.csv'

    def rows(count):
        yield from ((k, 'é,"') for k in range(count))
        raise RuntimeError('half way')

    write_csv(file, ('k', 'text'), [(1, 'é,"')])
    with pytest.raises(RuntimeError):
        write_csv(file, ('k', 'text'), rows(5))
    assert read_csv(file) == [{'k': '1', 'text': 'é,"'}]
    assert read_csv(tmp_path / 'none.csv') == []
    write_text(tmp_path / 'c/d.json', '{"é": 1}')
    write_text(tmp_path / 'c/d.json', '{"é": 2}')
    assert read_json(tmp_path / 'c/d.json') == {'é': 2}
    assert [p.name for p in (tmp_path / 'c').iterdir()] == ['d.json']


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    unfinished = [tmp_path / n for n in ('.metrics.json.7', 'boxes/.val.csv.31', 'maps/t/.a.csv.5')]
    maps = ('label_maps/cam/late/test/.0.png.png.9', 'maps/t/label_maps/t/.1.png.12')
    unfinished += [tmp_path / name for name in maps]
    others = [tmp_path / n for n in ('boxes/val.csv', 'boxes/.val.csv', 'note.7', 'maps/t/top/0.0')]
    for file in (*unfinished, *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with locked(tmp_path):
        assert [file.exists() for file in unfinished] == [False] * 5
        assert all(file.exists() for file in others)


@pytest.mark.parametrize(
    ('source', 'orientation', 'refused'),
    [
        ('class_folder', 'auto', True),  # older versions did not turn its images
        ('class_folder', 'stored', False),
        ('wsol_folder', 'auto', False),
    ],
)
def test_what_older_versions_did_without_a_setting(tmp_path, source, orientation, refused):
    config = read_config({'data': {'source': source, 'orientation': orientation}})
    open_workdir(tmp_path, config)
    put(tmp_path / TRAINED)
    record = read_json(tmp_path / 'config.json')
    del record['config']['data.orientation']
    write_text(tmp_path / 'config.json', json.dumps(record))
    if not refused:
        open_workdir(tmp_path, config)
        return
    message = r"made with data\.orientation='stored', now it is 'auto'"
    with pytest.raises(ConfigError, match=message):
        open_workdir(tmp_path, config)


def test_a_run_leaves_the_index_of_the_repository_alone(tmp_path, monkeypatch):
    """Git would write it anew, under a lock, when only the time of a file has changed."""
    git = ['git', '-C', str(tmp_path), '-c', 'user.name=n', '-c', 'user.email=e@x']
    file = tmp_path / 'a.py'
    file.write_text('')
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'A file']):
        subprocess.run(git + command, check=True)
    os.utime(file, (1, 1))
    before = (tmp_path / '.git/index').read_bytes()
    monkeypatch.setattr(workdir_module, '__file__', str(file))
    assert len(workdir_module._git_revision()) == 12
    assert (tmp_path / '.git/index').read_bytes() == before
    file.write_text('changed')
    assert workdir_module._git_revision().endswith('-dirty')


def test_a_repository_that_it_is_only_installed_in_is_not_recorded(tmp_path, monkeypatch):
    subprocess.run(['git', '-C', str(tmp_path), 'init', '-q'], check=True)
    (tmp_path / 'a.py').write_text('')
    monkeypatch.setattr(workdir_module, '__file__', str(tmp_path / 'a.py'))
    assert workdir_module._git_revision() == ''
