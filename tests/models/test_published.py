"""Weights by name: fetched once, whole, checked; and one line for all that goes wrong."""

import hashlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from safetensors.numpy import save

from wsol_jax.models import cached_weights, local_weights, torchvision_weights
from wsol_jax.models.published import _published
from wsol_jax.models.weights import WeightsError, read_tensors

REPO = 'timm/resnet10.test'
FILE = f'/{REPO}/resolve/main/model.safetensors'


@pytest.fixture
def some_weights():
    """A file of 40 kB."""
    return save({'fc.bias': np.arange(10_000, dtype=np.float32)})


def failure(name):
    with pytest.raises(WeightsError) as error:
        local_weights(name)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def left(hub):
    """What lies in the cache, but for locks."""
    names = {file.name for file in hub.cache.rglob('*') if file.is_file()}
    return sorted(names - {'.lock'})


@pytest.mark.parametrize('name', [REPO, f'hf-hub:{REPO}'])
def test_a_repository_is_fetched_once(hub, some_weights, name):
    hub.add(REPO, some_weights, {'architecture': 'resnet10'})
    file = local_weights(name)
    assert file.read_bytes() == some_weights and hub.cache in file.parents
    assert left(hub) == ['config.json', 'model.safetensors']
    assert len(read_tensors(file)['fc.bias']) == 10_000
    count = len(hub.asked)
    assert local_weights(name) == file and len(hub.asked) == count


def test_a_revision(hub, some_weights):
    hub.files[f'/{REPO}/resolve/v2/model.safetensors'] = some_weights
    assert local_weights(f'{REPO}@v2').parent.name == 'v2'


def test_files_of_transformers_and_of_torch(hub, some_weights):
    hub.add('a/b', some_weights, {'model_type': 'vit'}, 'pytorch_model.bin', preprocessor_config={})
    assert local_weights('hf-hub:a/b').name == 'pytorch_model.bin'
    assert left(hub) == ['config.json', 'preprocessor_config.json', 'pytorch_model.bin']


def test_a_cut_connection_goes_on_where_it_stopped(hub, some_weights):
    hub.add(REPO, some_weights)
    hub.cuts = [15_000, 30_000]
    assert local_weights(REPO).read_bytes() == some_weights
    ranges = [asked for path, asked in hub.asked if path.startswith('/cdn/')]
    assert ranges == [None, 'bytes=15000-', 'bytes=30000-']
    assert left(hub) == ['model.safetensors']


def test_what_an_earlier_process_left_is_gone_on_with(hub, some_weights):
    hub.add(REPO, some_weights)
    hub.cuts = [15_000, 15_000]
    message = failure(REPO)
    assert FILE in message and 'the connection was cut after 15,000 bytes' in message
    hub.asked.clear()
    assert local_weights(REPO).read_bytes() == some_weights
    assert [r for path, r in hub.asked if path.startswith('/cdn/')] == ['bytes=15000-']


def test_a_part_of_another_file_is_not_used(hub, some_weights):
    address = f'{hub.address}/net.safetensors'
    hub.files['/net.safetensors'], hub.cuts = some_weights, [15_000, 15_000]
    failure(address)
    hub.files['/net.safetensors'] = some_weights[::-1]
    assert local_weights(address).read_bytes() == some_weights[::-1]


def test_a_part_that_is_whole(hub, some_weights):
    address = f'{hub.address}/net.safetensors'
    hub.files['/net.safetensors'], hub.cuts = some_weights, [15_000, 15_000]
    failure(address)
    (part,) = hub.cache.rglob('*.part')
    part.write_bytes(some_weights)  # killed before it was renamed
    assert local_weights(address).read_bytes() == some_weights


def test_a_wrong_checksum(hub, some_weights):
    hub.add(REPO, some_weights)
    hub.said[FILE] = 'ab' * 32
    message = failure(REPO)
    right = hashlib.sha256(some_weights).hexdigest()
    assert f'wrong checksum: SHA-256 is {right}, not {"ab" * 32}' in message
    assert left(hub) == []


@pytest.mark.parametrize('form', ['#sha256={}', '?sha256={}'])
def test_the_checksum_of_an_address(hub, some_weights, form):
    right = hashlib.sha256(some_weights).hexdigest()
    address = f'{hub.address}/net.safetensors{form}'
    hub.files['/net.safetensors'] = some_weights
    hub.files[f'/net.safetensors?sha256={right}'] = some_weights
    hub.files[f'/net.safetensors?sha256={"0" * 64}'] = some_weights
    assert local_weights(address.format(right)).name == 'net.safetensors'
    assert 'wrong checksum' in failure(address.format('0' * 64))


def test_torchvision_names_end_in_their_checksum(hub, some_weights, monkeypatch):
    monkeypatch.setattr('wsol_jax.models.published.ADDRESS', f'{hub.address}/models/')
    hub.files['/models/resnet18-f37072fd.pth'] = some_weights
    digest = hashlib.sha256(some_weights).hexdigest()[:8]
    assert f'SHA-256 is {digest}, not f37072fd' in failure('torchvision/resnet18')
    files = {name: _published(f'torchvision/{name}').files[0].name for name in NEWEST}
    assert files == NEWEST


# As torchvision's DEFAULT, and by name.
NEWEST = {
    'resnet50': 'resnet50-11ad3fa6.pth',
    'resnet50.IMAGENET1K_V1': 'resnet50-0676ba61.pth',
    'resnet101.IMAGENET1K_V2': 'resnet101-cd907fc2.pth',
    'inception_v3': 'inception_v3_google-0cc3c7bd.pth',
}


def test_a_torchvision_file_with_the_right_checksum(hub, some_weights, monkeypatch):
    digest = hashlib.sha256(some_weights).hexdigest()[:8]
    known = torchvision_weights.TorchvisionWeights('resnet18', 'X', f'resnet18-{digest}.pth')
    monkeypatch.setattr('wsol_jax.models.published.ADDRESS', f'{hub.address}/')
    monkeypatch.setattr(torchvision_weights, 'TORCHVISION', (known,))
    hub.files[f'/{known.file}'] = some_weights
    assert local_weights('torchvision/resnet18.X').read_bytes() == some_weights


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('timm/nothing', 'holds neither model.safetensors nor pytorch_model.bin'),
        ('timm/private', 'not there, or not public (HTTP 401)'),
        ('timm/busy', 'the server refuses it (HTTP 503 Service Unavailable)'),
        ('timm/', 'timm/: must be timm/NAME or hf-hub:OWNER/NAME'),
        ('hf-hub:a', 'hf-hub:a: must be timm/NAME or hf-hub:OWNER/NAME'),
        ('hf-hub:../..', 'must be timm/NAME'),
        ('torchvision/resnet5', "unknown torchvision weights 'resnet5'; did you mean 'resnet50'"),
        ('torchvision/resnet18.V9', "unknown torchvision weights 'resnet18.V9'; did you mean"),
        ('http://127.0.0.1:1/a.safetensors', 'no connection'),
        ('https://127.0.0.1', 'must end in the name of a file'),
        ('{hub}/net.safetensors', 'not there (HTTP 404)'),
    ],
)
def test_what_cannot_be_fetched_is_one_line(hub, name, message):
    hub.refused = {'/timm/private/resolve/main/config.json': 401}
    hub.refused['/timm/busy/resolve/main/config.json'] = 503
    assert message in failure(name.format(hub=hub.address))


def test_damaged_facts_are_one_line(hub, some_weights):
    hub.add(REPO, some_weights)
    hub.files[f'/{REPO}/resolve/main/config.json'] = b'{'
    assert 'config.json: is not valid JSON' in failure(REPO)


def test_no_connection_is_made_offline(hub, some_weights, monkeypatch):
    hub.add(REPO, some_weights)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert failure(REPO) == f'{REPO}: not in {hub.cache}, and HF_HUB_OFFLINE is set'
    assert 'HF_HUB_OFFLINE is set' in failure('https://127.0.0.1:1/a.safetensors')
    assert hub.asked == [] and cached_weights(REPO) is None
    monkeypatch.delenv('HF_HUB_OFFLINE')
    file = local_weights(REPO)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert local_weights(REPO) == cached_weights(REPO) == file


def test_what_is_cached_needs_no_network(hub, some_weights, monkeypatch):
    hub.add(REPO, some_weights)
    file = local_weights(REPO)
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:1')
    assert local_weights(REPO) == file
    assert 'no connection' in failure('timm/another')


def test_the_cache_of_huggingface_hub_is_read(hub, some_weights, tmp_path):
    folder = tmp_path / 'hf/hub/models--timm--resnet10.test'
    snapshot = folder / 'snapshots/0123abcd'
    snapshot.mkdir(parents=True)
    (folder / 'refs').mkdir()
    (folder / 'refs/main').write_text('0123abcd')
    (snapshot / 'model.safetensors').write_bytes(some_weights)
    assert local_weights(REPO) == snapshot / 'model.safetensors'
    assert hub.asked == []


def test_a_folder_of_that_name_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / REPO).mkdir(parents=True)
    assert str(local_weights(REPO)) == REPO
    assert str(local_weights('runs/a')) == 'runs/a' and cached_weights('runs/a') is None


def test_a_cache_that_cannot_be_written(hub, some_weights, tmp_path, monkeypatch):
    hub.add(REPO, some_weights)
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('WSOL_CACHE', str(tmp_path / 'file'))
    assert 'cannot be written: Not a directory; WSOL_CACHE names another' in failure(REPO)


@pytest.mark.slow
def test_two_processes_fetch_once(hub, some_weights):
    hub.add(REPO, some_weights)
    hub.gate.clear()
    code = f"from wsol_jax.models import local_weights; print(local_weights('{REPO}'))"
    start = [sys.executable, '-c', code]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    processes = [subprocess.Popen(start, **pipes) for _ in range(2)]
    lines = []

    def waits(process):
        # One of them says that it waits, and the other one then gets what both want.
        for line in process.stderr:
            lines.append(line)
            if 'another process is fetching; waiting for it' in line:
                hub.gate.set()

    readers = [threading.Thread(target=waits, args=(process,)) for process in processes]
    for reader in readers:
        reader.start()
    printed = {process.stdout.read() for process in processes}
    for reader in readers:
        reader.join()
    assert len(printed) == 1 and printed.pop().strip().endswith('model.safetensors')
    assert [process.wait() for process in processes] == [0, 0]
    assert len([path for path, _ in hub.asked if path.startswith('/cdn/')]) == 1
    assert ''.join(lines).count('waiting for it') == 1
