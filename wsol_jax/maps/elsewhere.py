"""Arrays of stores under a URL: in object storage, gs:// or s3://, or on another disk, file://.

Only they go there. What is small, or added to, renamed and locked, stays in the workdir, and with
it the status, which says what there is: object storage has no rename, and nothing is appended to.
"""

import re
from functools import cache
from typing import TYPE_CHECKING

from wsol_jax.fields import ConfigError

if TYPE_CHECKING:  # counting processes know of the store, and open none
    import tensorstore as ts

_OWNER = 'wsol_jax_run'  # under the URL: the id of the run whose maps lie there
_BODY = re.compile(r" \[http_response_body='.*?'\](?= \[|$)", re.DOTALL)
_RETRIES = 6  # of a request, with pauses that add up to a minute


@cache  # one for all arrays: memory:// is of a context
def context() -> 'ts.Context':
    """What tensorstore shares between arrays."""
    import tensorstore as ts

    retries = {'max_retries': _RETRIES}
    return ts.Context({'gcs_request_retries': retries, 's3_request_retries': retries})


def claim(url: str, run: str) -> None:
    """Takes a place for the maps of a run, or checks that it has it.

    Args:
        url: where; without a slash at its end.
        run: its id.

    Raises:
        ConfigError: maps of another run lie there, or something else; or it is out of reach.
    """
    try:
        owner = _owner_of(url, run)
    except ValueError as error:
        raise ConfigError(f'config.localize.store={url!r}: {reason_of(error)}') from None
    if owner != run:
        what = 'the maps of another run' if owner else 'other files in its folder maps'
        raise ConfigError(
            f'config.localize.store={url!r} holds {what}: choose another, or delete what is there'
        )


def _owner_of(url: str, run: str) -> str:
    """Whose it is now: this run's if it was nobody's, and empty; '' for nobody's."""
    place = _opened(url)
    found = place.read(_OWNER).result()
    if found.state == 'missing':
        if _opened(f'{url}/maps').list().result():
            return ''
        place.write(_OWNER, run.encode(), if_equal=found.stamp.generation).result()
        found = place.read(_OWNER).result()  # another run may have been faster
    return found.value.decode(errors='replace')


def clear(url: str) -> None:
    """Removes all that lies under a URL.

    Raises:
        ConfigError: it is out of reach.
    """
    import tensorstore as ts

    try:
        _opened(url).delete_range(ts.KvStore.KeyRange()).result()
    except ValueError as error:
        raise ConfigError(f'{url}: {reason_of(error)}') from None


def _opened(url: str) -> 'ts.KvStore':
    import tensorstore as ts

    return ts.KvStore.open(f'{url}/', context=context()).result()


def reason_of(error: Exception) -> str:
    """The one line of tensorstore's message that says what is wrong."""
    text = _BODY.sub('', str(error).split(' [tensorstore_spec')[0])
    return ' '.join(text.split())
