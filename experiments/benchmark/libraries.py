"""The same maps made the way libraries of PyTorch make them, and the forward pass against torch.

pytorch-grad-cam makes a map at each layer by a call for each: several layers in one call give their
mean alone. Its network is torchvision's, ours has its weights; both get the same images, and both
hand out maps of the images' size in [0, 1]. Maps that differ are an error.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from experiments.benchmark.maps import deepest, forward, maps, random_images
from experiments.benchmark.turns import Clock, Row, rows, take_turns, timed
from wsol_jax.config import ConfigError
from wsol_jax.models import Network, load_network

NETWORK = 'resnet50'  # by its name in torchvision, too
BATCHES = (1, 8)
COUNT = 10  # of the last blocks
TOLERANCE = 1e-2  # of a map's maximum
_SCRIPT = Path(__file__).with_name('torch_side.py')
_NEEDS = 'torch, torchvision, grad-cam and safetensors'


class Peer:
    """The process of torch: takes a line of JSON, answers with one.

    Attributes:
        versions: torch and the library, as 'torch 2.14.1'.
    """

    def __init__(self, process: subprocess.Popen, said: IO[str]):
        self._process = process
        self._said = said
        self.versions = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            ConfigError: the process ended; says what it said last.
        """
        self._process.stdin.write(json.dumps(request) + '\n')
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._said.seek(0)
        said = self._said.read().strip().splitlines() or ['it ended']
        raise ConfigError(f'--torch, an environment with {_NEEDS}: {said[-1]}')


def python_of(venv: str) -> str:
    """The Python of a virtual environment.

    Raises:
        ConfigError: there is none.
    """
    python = Path(venv) / 'bin/python'
    if not python.exists():
        raise ConfigError(f'--torch: {python}: no such file; make an environment with {_NEEDS}')
    return str(python)


@contextmanager
def started(venv: str, script: Path, *arguments: str) -> Iterator[Peer]:
    """A script that answers requests, in a virtual environment of its own.

    Raises:
        ConfigError: there is no Python, or it lacks a library.
    """
    command = [python_of(venv), str(script), *arguments]
    pipes: dict[str, Any] = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with (
        tempfile.TemporaryFile('w+', encoding='utf-8') as said,
        subprocess.Popen(command, text=True, stderr=said, **pipes) as process,
    ):
        yield Peer(process, said)


def section(repeats: int, venv: str, batches: Sequence[int] = BATCHES) -> Iterator[Row]:
    """Rows of every batch; the ratios are how many times as fast ours is."""
    with tempfile.TemporaryDirectory() as name:
        weights, inputs = Path(name) / 'weights.safetensors', Path(name) / 'inputs.npy'
        with started(venv, _SCRIPT, NETWORK, str(weights)) as peer:
            network = load_network(NETWORK, weights)
            for batch in batches:
                images = random_images(network, batch)
                np.save(inputs, np.asarray(network.preprocessing(images)))
                yield from against(peer, network, images, str(inputs), repeats)


def against(
    peer: Peer, network: Network, images: jax.Array, inputs: str, repeats: int
) -> Iterator[Row]:
    """Rows of one batch.

    Args:
        peer: torch's process.
        network: ours, with its weights.
        images: [B,H,W,3].
        inputs: a file of them as the networks take them, float32 [B,H,W,3].
        repeats: turns.
    """
    count = len(images)
    where = f'{network.name}, batch {count}: '
    torch, library = peer.versions

    def theirs(what: str, layers: Sequence[str] = ()) -> Clock:
        # Without what is sent to and fro.
        return lambda: peer.ask(what=what, inputs=inputs, layers=layers)['seconds'] / count

    cases = {torch: theirs('forward'), 'forward': timed(forward(network, images), count)}
    yield from rows(take_turns(cases, repeats), torch, of='speed', where=where)
    for layers in (network.layers(), deepest(network, COUNT)):
        names = [torch_name(layer) for layer in layers]
        run = maps(network, images, ('layer_cam',), layers, **as_theirs(network))
        found = jax.device_get(run()[2])
        answer = peer.ask(what='each', inputs=inputs, layers=names, save=True)
        check_same({n: found['layer_cam', n][:, 0] for n in layers}, np.load(answer['file']))
        cases = {
            f'{library}, a call each': theirs('each', names),
            f'{library}, one call, the mean alone': theirs('mean', names),
            'layer_cam': timed(partial(_on_host, run), count),
        }
        places = f'{where}{len(layers)} endpoints, '
        yield from rows(take_turns(cases, repeats), next(iter(cases)), of='speed', where=places)


def _on_host(run: Callable[[], Any]) -> Any:
    return jax.device_get(run()[2])


def torch_name(layer: str) -> str:
    """torchvision's name of an endpoint of a residual network."""
    stage, _, block = layer.removeprefix('stage').partition('/block')
    return f'layer{stage}.{int(block) - 1}' if block else f'layer{stage}'


def as_theirs(network: Network) -> dict[str, Any]:
    """Maps of the images' size in [0, 1]."""
    return {'rectify': True, 'size': network.input_shape[:2], 'normalize': True}


def check_same(ours: Mapping[str, np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    """Refuses to compare the time of maps that are not the same.

    Args:
        ours: {layer: [B,H,W]}.
        theirs: [B,H,W] of each of these layers.

    Raises:
        ValueError: they differ.
    """
    for (layer, values), wanted in zip(ours.items(), theirs, strict=True):
        difference = np.abs(values - wanted).max()
        if not difference <= TOLERANCE:
            raise ValueError(f'{layer}: maps differ by {difference:.2g} from pytorch-grad-cam')
