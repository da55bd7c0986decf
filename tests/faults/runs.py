"""A tiny run of all stages in a process of its own, to be killed and starved."""

import ctypes
import resource
import struct

import jax
from test_main import CACHE, FORKS, TINY, run_main

from wsol_jax.maps.columns import CHUNK

SMALL = TINY.replace(
    '    return config',
    f"""    config.data.shapes_counts = (24, 12, {8 * CHUNK})
    config.train.epochs = 6
    config.train.checkpoint_every = 1
    config.localize.batch_size = 8
    config.localize.methods = ('dgl',)
    config.localize.layers = ('stage1', 'stage4')
    config.report.images = 1
    config.report.gallery = 4
    return config""",
)
COMMAND = ('--config', 'small.py', '--workdir', 'W')


def _limited(limit, *arguments):
    _drop_rights()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if limit != resource.RLIM_INFINITY:  # programs are read, not written: those would be cut
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', 2**60)
    run_main(*arguments)


def _drop_rights():
    """What is read-only is so for the root user, too."""
    version, own_process = 0x20080522, 0
    assert ctypes.CDLL(None).capset(struct.pack('Ii', version, own_process), bytes(24)) == 0


def begin(folder, *arguments, limit=resource.RLIM_INFINITY):
    """Starts the command in a folder with small.py; no file may grow beyond `limit` bytes."""
    folder.mkdir(exist_ok=True)
    (folder / 'small.py').write_text(SMALL)
    whole = (limit, (*COMMAND, *arguments), folder, CACHE.name, None)
    process = FORKS.Process(target=_limited, args=whole)
    process.start()
    return process
