"""Names of public weights -> files: of the Hugging Face hub, of torchvision, of any address."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from wsol_jax.models.download import NotThere, download, is_offline
from wsol_jax.models.torchvision_weights import ADDRESS, of_name
from wsol_jax.models.weights import WeightsError

# What a repository of the hub calls its weights; the second is read with torch.
HUB_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
HUB_CONFIG, HUB_PREPROCESSOR = 'config.json', 'preprocessor_config.json'
_REPOSITORY = re.compile(r'(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w.-]*))?')
_SHA256 = re.compile(r'[#?&]sha256=([0-9a-fA-F]{64})\b')


@dataclass(frozen=True)
class _Published:
    """Where weights lie once they are fetched, and what fetches them."""

    files: tuple[Path, ...]
    fetch: Callable[[], Path]

    def cached(self) -> Path | None:
        return next((file for file in self.files if file.is_file()), None)


def local_weights(weights: str | Path) -> Path:
    """The file, or folder, that weights stand for; public ones are fetched into a cache once.

    The cache is `$WSOL_CACHE`, or ~/.cache/wsol_jax. What huggingface_hub has in its own is found
    there. HF_ENDPOINT names another hub; where HF_HUB_OFFLINE is 1 no connection is made.

    Args:
        weights: a file or folder; 'timm/NAME', a repository of timm on the hub;
            'hf-hub:OWNER/NAME', any repository (both with '@REVISION', or else 'main');
            'torchvision/NAME' or 'torchvision/NAME.WEIGHTS'; an address, which '#sha256=...' gives
            a checksum.

    Returns:
        Its path, which is not there if it is none of these names.

    Raises:
        WeightsError: it cannot be fetched, or the name is misspelt.
    """
    published = _published(weights)
    return Path(weights) if published is None else published.cached() or published.fetch()


def cached_weights(weights: str | Path) -> Path | None:
    """As `local_weights`, without a connection: None where the file is not there.

    Raises:
        WeightsError: the name is misspelt.
    """
    published = _published(weights)
    file = Path(weights) if published is None else published.cached()
    return file if file and file.exists() else None


def cache_folder() -> Path:
    """Where fetched weights are kept."""
    return Path(os.environ.get('WSOL_CACHE') or '~/.cache/wsol_jax').expanduser()


def _published(weights: str | Path) -> _Published | None:
    name = str(weights)
    if isinstance(weights, Path) or not name or Path(name).exists():
        return None
    if name.startswith(('https://', 'http://')):
        return _of_address(name)
    if name.startswith('torchvision/'):
        return _of_torchvision(name.removeprefix('torchvision/'))
    if name.startswith('timm/') or name.startswith('hf-hub:'):
        return _of_hub(name)
    return None


def _of_address(address: str) -> _Published:
    said = _SHA256.search(address)
    name = unquote(urlsplit(address).path).rpartition('/')[2]
    if not name:
        raise WeightsError(f'{address}: must end in the name of a file')
    place = hashlib.sha256(address.encode()).hexdigest()[:16]
    file = cache_folder() / 'addresses' / place / name
    plain = address.partition('#')[0]
    return _Published((file,), partial(download, plain, file, said[1].lower() if said else ''))


def _of_torchvision(name: str) -> _Published:
    known = of_name(name)
    file = cache_folder() / 'torchvision' / known.file
    return _Published((file,), partial(download, ADDRESS + known.file, file, known.sha256))


def _of_hub(name: str) -> _Published:
    found = _REPOSITORY.fullmatch(name.removeprefix('hf-hub:'))
    if not found:
        raise WeightsError(f'{name}: must be timm/NAME or hf-hub:OWNER/NAME')
    repo, revision = found['repo'], found['revision'] or 'main'
    folder = cache_folder() / 'hub' / repo / revision
    places = [folder, *_hub_snapshots(repo, revision)]
    files = tuple(place / file for place in places for file in HUB_WEIGHTS)
    return _Published(files, partial(_fetch_hub, name, repo, revision, folder))


def _hub_snapshots(repo: str, revision: str) -> list[Path]:
    """The folder of a repository in the cache of huggingface_hub, where it is there."""
    home = os.environ.get('HF_HOME') or '~/.cache/huggingface'
    cache = Path(os.environ.get('HF_HUB_CACHE') or f'{home}/hub').expanduser()
    folder = cache / f'models--{repo.replace("/", "--")}'
    note = folder / 'refs' / revision
    commit = note.read_text().strip() if note.is_file() else revision
    return [folder / 'snapshots' / commit]


def _fetch_hub(name: str, repo: str, revision: str, folder: Path) -> Path:
    if is_offline():
        raise WeightsError(f'{name}: not in {cache_folder()}, and HF_HUB_OFFLINE is set')
    endpoint = (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')

    def fetch(file: str) -> Path | None:
        try:
            return download(f'{endpoint}/{repo}/resolve/{revision}/{file}', folder / file)
        except NotThere:
            return None

    # What tells of the weights first: where they are in the cache, it is there, too.
    config = fetch(HUB_CONFIG)
    if config and 'model_type' in read_object(config):
        fetch(HUB_PREPROCESSOR)
    if found := next(filter(None, map(fetch, HUB_WEIGHTS)), None):
        return found
    raise WeightsError(f'{name}: {endpoint}/{repo} holds neither {" nor ".join(HUB_WEIGHTS)}')


def read_object(file: Path) -> dict:
    """A JSON object beside weights.

    Raises:
        WeightsError: it is none.
    """
    try:
        value = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f'{file}: is not valid JSON ({error})') from None
    if not isinstance(value, dict):
        raise WeightsError(f'{file}: is not a JSON object')
    return value
