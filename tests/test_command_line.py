"""What the command prints when threads of other libraries fail beside it."""

import subprocess
import sys

import pytest

# A disk that is full for many files at once, again and again: what is left of them comes late.
FULL = """import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp
from absl import logging
from wsol_jax.command_line import run_command
from wsol_jax.training.checkpoints import CheckpointError, Checkpoints, TrainState

def main(_):
    logging.set_verbosity(logging.WARNING)
    weights = {f'{i}': jnp.arange(5e3) + i for i in range(40)}
    state = TrainState(jnp.int32(1), weights, {}, None, None)
    for number in range(20):
        try:
            with Checkpoints(Path(f'{number}')) as checkpoints:
                checkpoints.save_best(state, 'accuracy', 50.0)
        except CheckpointError as error:
            assert str(error).endswith('/best: File too large; the checkpoint before stays'), error
    raise ValueError('twenty times')

resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run_command(main)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_but_the_error(tmp_path):
    options = {'cwd': tmp_path, 'capture_output': True, 'text': True, 'timeout': 100}
    run = subprocess.run([sys.executable, '-c', FULL], **options)
    assert (run.returncode, run.stdout, run.stderr) == (2, '', 'error: twenty times\n')


@pytest.mark.slow
def test_other_threads_show_where_they_failed(tmp_path):
    code = """import threading
from wsol_jax.command_line import run_command

class Leaky:
    def __del__(self):
        raise RuntimeError('a bug')

def fail():
    raise RuntimeError('another')

def main(_):
    Leaky()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()

run_command(main)
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0
    for message in ('RuntimeError: a bug', 'RuntimeError: another'):
        assert message in run.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize('module', ['main --help', 'models'])
def test_who_reads_a_few_lines_only_sees_no_error(module):
    """`python -m wsol_jax.main --help | head -3`, whose `head` ends first."""
    command = [sys.executable, '-u', '-m', *f'wsol_jax.{module}'.split()]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as run:
        run.stdout.close()
        assert (run.stderr.read(), run.wait(100)) == (b'', 0)
