"""Files of the web, fetched once: whole, checked, and taken up again where a connection was cut.

The standard library does all of it, so that weights by name need no package more.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from absl import logging
from tqdm import tqdm

from wsol_jax.models.weights import WeightsError

_TIMEOUT = 30  # seconds without a byte
_PIECE = 1 << 18  # bytes
_SHA256 = re.compile('"?([0-9a-f]{64})"?')


class NotThere(WeightsError):
    """The server has no such file."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that no connection is to be made."""
    return os.environ.get('HF_HUB_OFFLINE', '').lower() in ('1', 'true', 'yes', 'on')


def download(address: str, file: Path, sha256: str = '') -> Path:
    """Fetches a file unless it is there already.

    What came before a connection was cut lies in a file `.part`, and a later call goes on from
    there. Of several processes one fetches, the others wait for it.

    Args:
        address: http or https.
        file: where to put it.
        sha256: its SHA-256 in hexadecimal digits, or the first of them; '' for what the server
            says of it, as the Hugging Face hub does of large files.

    Returns:
        `file`.

    Raises:
        NotThere: the server has no such file.
        WeightsError: there is no connection, it was cut, the checksum is another one, or the file
            cannot be written.
    """
    if file.is_file():
        return file
    if is_offline():
        raise WeightsError(f'{address}: not in {file.parent}, and HF_HUB_OFFLINE is set')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            if not file.is_file():
                _fetch(address, file, sha256)
    except OSError as error:
        raise WeightsError(
            f'{file}: cannot be written: {error.strerror or error}; WSOL_CACHE names another folder'
        ) from None
    return file


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keeps other processes away from the folder of a file; waits while one of them is there."""
    with (file.parent / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning('%s: another process is fetching; waiting for it', file)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(address: str, file: Path, sha256: str) -> None:
    part, whole, said = file.with_name(f'{file.name}.part'), False, ''
    while not whole:
        before = _size(part)
        whole, said = _receive(address, part)
        if not whole and _size(part) <= before:
            raise WeightsError(
                f'{address}: the connection was cut after {_size(part):,} bytes; '
                'the same again goes on from there'
            )
    wanted = sha256 or said
    found = _sha256(part) if wanted else ''
    _tag(part).unlink(missing_ok=True)
    if not found.startswith(wanted):
        part.unlink()
        raise WeightsError(
            f'{address}: wrong checksum: SHA-256 is {found[: max(len(wanted), 8)]}, not {wanted}; '
            'nothing of it is kept'
        )
    part.replace(file)


class _Answer(NamedTuple):
    """Body of a response, where it starts, how many bytes the whole file has (0: unknown)."""

    body: HTTPResponse
    start: int
    total: int


def _receive(address: str, part: Path) -> tuple[bool, str]:
    """Adds to `part` what comes; whether that is all, and the SHA-256 that the server says."""
    redirects = _Redirects()
    with _opened(address, part, redirects) as body:
        answer = _Answer(body, *_extent(body))
        _tag(part).write_text(body.headers.get('ETag', ''))
        with part.open('r+b' if answer.start else 'wb') as out:
            out.seek(answer.start)
            ended = _copy(answer, out, part.name.removesuffix('.part'))
    said = _SHA256.fullmatch(redirects.linked or body.headers.get('X-Linked-Etag', ''))
    return ended and _size(part) >= answer.total, said[1] if said else ''


class _Redirects(HTTPRedirectHandler):
    """Remembers what the hub says of a file before it sends its reader elsewhere."""

    linked = ''

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        self.linked = headers.get('X-Linked-Etag', self.linked)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(address: str, part: Path, redirects: _Redirects) -> HTTPResponse:
    request = Request(address, headers={'User-Agent': 'wsol_jax', **_rest(part)})
    try:
        return build_opener(redirects).open(request, timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # there is nothing behind the part: it is no part of this file
            part.unlink(missing_ok=True)
            return _opened(address, part, redirects)
        raise _refused(address, error.code, error.reason) from None
    except (URLError, HTTPException, OSError) as error:
        raise WeightsError(
            f'{address}: no connection ({getattr(error, "reason", error)}); '
            'files that are there already are found without one'
        ) from None


def _refused(address: str, code: int, reason: str) -> WeightsError:
    if code in (401, 403):  # the hub says so of what it does not have, too
        return WeightsError(f'{address}: not there, or not public (HTTP {code})')
    if code in (404, 410):
        return NotThere(f'{address}: not there (HTTP {code})')
    return WeightsError(f'{address}: the server refuses it (HTTP {code} {reason})')


def _rest(part: Path) -> dict[str, str]:
    """Headers that ask for what is missing, or for all if the file there is another one now."""
    tag = _tag(part).read_text() if _tag(part).is_file() else ''
    if not tag.startswith('"') or not _size(part):  # a weak one says nothing of bytes
        return {}
    return {'Range': f'bytes={_size(part)}-', 'If-Range': tag}


def _extent(body: HTTPResponse) -> tuple[int, int]:
    """Where a body starts in its file, and the length of that; 0 where it is unknown."""
    length = int(body.headers.get('Content-Length') or 0)
    found = re.match(r'bytes (\d+)-', body.headers.get('Content-Range', ''))
    start = int(found[1]) if body.status == 206 and found else 0
    return start, start + length if length else 0


def _copy(answer: _Answer, out: IO[bytes], name: str) -> bool:
    """Copies until the end; whether it was one, and no cut that the connection tells of."""
    progress = tqdm(
        desc=name,
        initial=answer.start,
        total=answer.total or None,
        unit='B',
        unit_scale=True,
        disable=None,
    )
    with progress:
        while piece := _piece(answer.body):
            out.write(piece)
            progress.update(len(piece))
    return piece is not None


def _piece(body: HTTPResponse) -> bytes | None:
    """What comes next: nothing at the end, None where the connection is cut."""
    try:
        return body.read(_PIECE)
    except (HTTPException, OSError):
        return None


def _tag(part: Path) -> Path:
    """Where the server's name of the contents lies, which tells them from newer ones."""
    return part.with_suffix('.etag')


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _sha256(file: Path) -> str:
    with file.open('rb') as opened:
        return hashlib.file_digest(opened, 'sha256').hexdigest()
