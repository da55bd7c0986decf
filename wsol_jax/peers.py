"""The other processes of a run: one that is lost ends the rest, each with one clear line.

JAX has its own way: when the heartbeats of one stop, or the first is gone and its coordination
service with it, code of C++ aborts the process, whatever Python does, and no callback is called.
So each process tells that it lives, through that service, in a thread, and the first says who was
not heard of, before JAX takes notice. That the first is gone JAX sees at once: there the handler
of SIGABRT says so behind JAX's lines.
"""

import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import jax
from jax._src.distributed import global_state  # as orbax does: nothing public has the service

SILENCE = 30  # seconds after which a process that is not heard of is lost
_BEAT = 5  # seconds between signs of life
_GRACE = 2  # seconds for the main thread to say it first, or for all to hear it
_BEATS, _VERDICT = 'wsol_jax/beats', 'wsol_jax/verdict'
_FINISHED = 'finished'


def loss_of(who: str) -> str:
    """What is said where a process is lost.

    Args:
        who: it.
    """
    return (
        f'{who} of this run has ended or does not answer, see what it says; '
        'the same commands go on from here'
    )


ANOTHER = loss_of('another process')


def watch() -> None:
    """From now on the loss of another process ends this one: a line on stderr, exit code 2."""
    job = global_state
    facts = job.client, job.process_id, job.num_processes
    threading.Thread(target=_watch, args=facts, daemon=True).start()
    if job.process_id:
        ctypes.CDLL(None).signal(signal.SIGABRT, _abort_handler())


def finish() -> None:
    """Ends the watching in all processes; each may end now without being missed."""
    if global_state.client and global_state.process_id == 0:
        global_state.client.key_value_set(_VERDICT, _FINISHED, allow_overwrite=True)


def _watch(client: Any, index: int, count: int) -> None:
    """Tells the others that this process lives until all are done or one is lost."""
    silent = silence(count)
    try:
        for beat in itertools.count():
            client.key_value_set(f'{_BEATS}/{index}', str(beat), allow_overwrite=True)
            if index == 0 and (lost := silent(client.key_value_dir_get(_BEATS))):
                client.key_value_set(_VERDICT, f'process {lost[0]}')
            if verdict := _verdict(client):
                break
    except jax.errors.JaxRuntimeError:  # this process ends, or the first one is gone
        return
    if verdict != _FINISHED:
        if index == 0:
            time.sleep(_GRACE)
        _end(loss_of(verdict))


def _verdict(client: Any) -> str:
    """What the first has found, for which is waited until the next beat; '' for nothing yet."""
    try:
        return client.blocking_key_value_get(_VERDICT, _BEAT * 1000)
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' in str(error):
            return ''
        raise


def silence(count: int) -> Callable[[Iterable[tuple[str, str]]], list[int]]:
    """A function of what all processes told last, which lists those not heard of for too long.

    Args:
        count: how many processes there are.
    """
    heard = {str(i): ('', time.monotonic()) for i in range(count)}

    def silent(told: Iterable[tuple[str, str]]) -> list[int]:
        now = time.monotonic()
        for key, beat in told:
            name = key.rpartition('/')[2]
            if heard[name][0] != beat:
                heard[name] = beat, now
        return [int(name) for name, (_, since) in heard.items() if now - since > SILENCE]

    return silent


@cache  # for ever: C calls it
def _abort_handler() -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted)


def _aborted(_: int) -> None:
    """Ends the process clearly where JAX aborts it for want of the first one; else returns."""
    time.sleep(_GRACE)
    if _is_gone(global_state.coordinator_address or ''):
        _end(loss_of('the first process'))


def _is_gone(address: str) -> bool:
    """Whether no service answers there; one that does, speaks first."""
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host.strip('[]'), int(port)), timeout=3) as connection:
            return not connection.recv(1)
    except OSError:
        return True


def _end(line: str) -> None:
    sys.stdout.flush()
    print(f'error: {line}', file=sys.stderr, flush=True)
    os._exit(2)
