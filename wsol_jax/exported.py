"""The maps of a network as one file that runs without its code, on CPU, GPU and TPU.

The file is a zip archive without pickles:
    export.json          what the programs take and give, see `Header`
    predicted.jax        jax.export: (weights, images [B,H,W,3] uint8) -> results
    given.jax            the same for given classes: (weights, images, classes [B,K] int32)
    weights.safetensors  {name: array}
with results = (logits [B,C], classes [B,K], maps, faults): the maps [B,K,h,w] are a list in the
order of the header's keys, `faults` is {layer: [B]}, not 0 where the gradient is of no use.
B and K are free. JAX and safetensors suffice to run it, without wsol_jax.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import Exported, deserialize, symbolic_shape
from jax.export import export as export_program
from safetensors.numpy import load, save

from wsol_jax.data.images import batches, listed
from wsol_jax.localization.localize import (
    check_gradients,
    class_indices,
    compute_maps,
    emptied,
    filled_up,
    given_classes,
    is_single,
    top_count,
)
from wsol_jax.localization.method import Method
from wsol_jax.localization.plan import MapPlan, backward_rules_told, check_options, make_plan
from wsol_jax.maps import Key, Maps
from wsol_jax.maps.result import Localization
from wsol_jax.names import shortened, shown
from wsol_jax.parallel import BATCH, in_batches
from wsol_jax.workdir import check_writable, written_whole

if TYPE_CHECKING:  # an exported file is loaded without the networks
    from wsol_jax.models import Network

PLATFORMS = ('cpu', 'cuda', 'tpu')
FORMAT = 1
_JAX = '.'.join(map(str, jax.__version_info__))  # without a suffix such as dev
_HEADER, _WEIGHTS = 'export.json', 'weights.safetensors'
_PREDICTED, _GIVEN = 'predicted.jax', 'given.jax'
_PARTS = (_HEADER, _PREDICTED, _GIVEN, _WEIGHTS)
# logits [B,C], classes [B,K], maps [B,K,h,w] in the order of the header's keys, faults
Results = tuple[jax.Array, jax.Array, list[jax.Array], dict[str, jax.Array]]


class ExportError(ValueError):
    """A file of exported maps that cannot be read."""


@dataclass(frozen=True)
class Header:
    """What is known of exported maps.

    Attributes:
        format: version of the file's layout.
        jax: version of JAX that wrote it.
        platforms: where it runs.
        network: name of the network.
        input_size: side of the images in pixels, or (height, width).
        num_classes: length of the logits.
        predicted: 'top1' or 'top5', the classes that are explained where none are given.
        keys: (method, layer) of every map.
        channels: of the images.
        relu: whether scoring each of them starts with a ReLU.
        class_names: of the logits; () where they are not known.
    """

    format: int
    jax: str
    platforms: tuple[str, ...]
    network: str
    input_size: int | tuple[int, int]
    num_classes: int
    predicted: str
    keys: tuple[Key, ...]
    channels: int = 3
    relu: tuple[bool, ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the images."""
        size = self.input_size
        return *((size, size) if isinstance(size, int) else size), self.channels


@dataclass(frozen=True, eq=False, repr=False)
class ExportedMaps:
    """Maps from a file of `export`.

    Attributes:
        path: the file.
        header: what is known of it.
    """

    path: Path
    header: Header
    _weights: dict[str, jax.Array]
    _predicted: Callable[..., tuple]
    _given: Callable[..., tuple]

    def __repr__(self) -> str:
        header = self.header
        size = ' x '.join(map(str, header.input_shape))
        maps = f'{len(header.keys)} maps, the first {" at ".join(header.keys[0])}'
        return (
            f'ExportedMaps {str(self.path)!r}: {header.network}, input {size}, '
            f'{header.num_classes} classes, {maps}'
        )

    def __call__(
        self,
        images: Any,
        classes: int | Sequence[Any] | np.ndarray | jax.Array | None = None,
        *,
        batch_size: int = BATCH,
    ) -> Localization:
        """Does what `localize` does with the network, the methods and the options of the export.

        Args:
            images: images of any sizes, as for `localize`; arrays are uint8. An array [B,H,W,C] of
                the size of the export runs in one piece, and every new B compiles.
            classes: to explain, one for all images, [B], [B,K] or a list for each image, as for
                `localize`; None: the predicted ones.
            batch_size: images of another form that run at once.

        Raises:
            ValueError: images or classes are of another kind, or no class score depends on a
                layer.
        """
        height, width, channels = self.header.input_shape
        given, indices = listed(images, channels), None
        classes = given_classes(classes)
        if classes is not None:
            indices = class_indices(classes, len(given), self.header.num_classes)
        each = batches(given, (height, width), batch_size, channels)
        asked = None if indices is None else filled_up(indices)
        (logits, chosen, maps, faults), sizes = in_batches(self._program, each, asked)
        check_gradients(faults)
        chosen, maps = emptied(indices, chosen, maps)
        if is_single(self.header.predicted if classes is None else classes):
            chosen, maps = chosen[:, 0], [m[:, 0] for m in maps]
        found = Maps(zip(self.header.keys, maps, strict=True))
        relu = dict(zip(self.header.keys, self.header.relu, strict=False))
        return Localization(found, logits, chosen, relu, sizes, self.header.class_names)

    def _program(self, images: Any, indices: np.ndarray | None) -> tuple:
        if images.dtype != np.uint8:
            raise ValueError(f'{self.path}: images must be uint8, got {images.dtype}')
        if indices is None:
            return self._predicted(self._weights, images)
        return self._given(self._weights, images, indices)


def export(
    network: 'Network',
    methods: Sequence[str | Method],
    layers: Sequence[str] | None,
    path: str | Path,
    *,
    classes: str = 'top1',
    input_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> None:
    """Writes maps of a network, weights included, as one file for `load_exported`.

    Args:
        network: the classifier; its code must read the batch size from `x.shape[0]`, for `len(x)`
            fails where it is left open.
        methods: see `make_plan`.
        layers: see `make_plan`; None: all main layers.
        path: the file to write, whole or not at all.
        classes: 'top1' or 'top5', which predicted classes are explained. Given ones can be
            explained from every file.
        input_size: side of the images in pixels, or (height, width); None: the network's.
        **options: score, alpha, scales, flip, ...: see `wsol_jax.localization.plan.Options`.

    Raises:
        ValueError: as `make_plan`, or `classes` are others.
        OSError: the file cannot be written, or a link, a folder or a device is there.
    """
    check_writable(Path(path))
    check_options(export, options)
    if not isinstance(classes, str):
        raise ValueError(
            f"classes must be 'top1' or 'top5', got {classes!r}; indices go to the exported maps"
        )
    top = min(top_count(classes), network.num_classes)
    plan = make_plan(network, methods, layers, **options)
    size = input_size or network.input_size
    facts = (network.name, size, network.num_classes, classes, tuple(plan.keys))
    channels, relu = network.input_shape[2], tuple(plan.relu.values())
    header = Header(FORMAT, _JAX, PLATFORMS, *facts, channels, relu, network.class_names or ())
    weights, results = _as_function(network, plan, top)
    batch, count = symbolic_shape('b, k')
    images = jax.ShapeDtypeStruct((batch, *header.input_shape), np.uint8)
    given = jax.ShapeDtypeStruct((batch, count), np.int32)
    program = export_program(jax.jit(results), platforms=PLATFORMS)
    with backward_rules_told(plan):
        programs = program(weights, images), program(weights, images, given)
    parts: dict[str, bytes | bytearray] = {
        _HEADER: json.dumps(asdict(header), indent=2).encode(),
        _PREDICTED: programs[0].serialize(),
        _GIVEN: programs[1].serialize(),
        _WEIGHTS: save(weights),
    }
    _write(Path(path), parts)


def _as_function(
    network: 'Network', plan: MapPlan, top: int
) -> tuple[dict[str, np.ndarray], Callable[..., Results]]:
    """The weights by name, and the function of them that is exported."""
    named, tree = jax.tree.flatten_with_path(network.state)
    leaves = {jax.tree_util.keystr(path): jnp.asarray(leaf) for path, leaf in named}

    def results(
        weights: dict[str, jax.Array], images: jax.Array, given: jax.Array | None = None
    ) -> Results:
        state = jax.tree.unflatten(tree, [weights[n].astype(x.dtype) for n, x in leaves.items()])
        logits, chosen, maps, faults = compute_maps(
            network.apply,
            network.preprocessing,
            plan,
            state,
            images,
            top if given is None else 0,
            given,
        )
        return logits, chosen, [maps[key] for key in plan.keys], faults

    return {name: _storable(leaf) for name, leaf in leaves.items()}, results


def _storable(leaf: jax.Array) -> np.ndarray:
    """safetensors reads no bfloat16 into NumPy; float32 holds it, and the program casts back."""
    array = np.asarray(leaf, order='C')
    return array if array.dtype.kind in 'biuf' else array.astype(np.float32)


def _write(path: Path, parts: dict[str, bytes | bytearray]) -> None:
    with written_whole(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def load_exported(path: str | Path) -> ExportedMaps:
    """Reads a file of `export`; the network's code is not needed.

    Damage is found here. The programs of the file are run as they are: open files of people whom
    you trust.

    Raises:
        ExportError: the file is missing, none of `export`, damaged or too new.
    """
    path = Path(path)
    if not path.exists():
        raise ExportError(f'{path}: no such file; wsol_jax.export writes one')
    if not path.is_file():
        raise ExportError(f'{path}: not a regular file')
    parts = _read(path)
    header = _header(path, parts[_HEADER])
    try:
        weights = load(parts[_WEIGHTS])
        programs = [deserialize(bytearray(parts[name])) for name in (_PREDICTED, _GIVEN)]
        fits = all(_fits(program, header, weights) for program in programs)
    except Exception as error:  # what reads the parts raises nearly anything on wrong bytes
        raise _broken(path, error) from None
    if not fits:
        raise ExportError(
            f'{path}: its programs, weights and {_HEADER} belong to different exports'
        )
    calls = (jax.jit(program.call) for program in programs)
    return ExportedMaps(path, header, jax.device_put(weights), *calls)


def _read(path: Path) -> dict[str, bytes]:
    """The parts of the archive, whose checksums zipfile compares."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _part(archive, name) for name in _PARTS}
    except Exception as error:  # nearly anything on damaged archives
        raise _broken(path, error) from None


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    """Of a small archive, compressed bytes could fill the memory: `export` compresses nothing."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f'{name} is compressed')
    return archive.read(info)


def _broken(path: Path, error: Exception) -> ExportError:
    text = shortened(' '.join(str(error).split())) or type(error).__name__
    return ExportError(f'{path}: not a whole file of wsol_jax.export ({text})')


def _header(path: Path, text: bytes) -> Header:
    found = _facts(path, text, ('format', 'jax'))
    if found['format'] > FORMAT:
        raise ExportError(
            f'{path}: written in format {found["format"]}, this wsol_jax reads up to {FORMAT}; '
            'update wsol_jax or export again'
        )
    # JAX reads its older programs, and takes newer ones for something else without an error.
    if tuple(map(int, found['jax'].split('.'))) > jax.__version_info__:
        raise ExportError(
            f'{path}: exported by jax {found["jax"]}, this is jax {_JAX}; '
            f'update jax or export again with {_JAX}'
        )
    found = _facts(path, text, _FACTS)
    size, keys = found['input_size'], tuple((method, layer) for method, layer in found['keys'])
    found |= {'input_size': size if isinstance(size, int) else tuple(size), 'keys': keys}
    lists = ('platforms', 'relu', 'class_names')
    return Header(**found | {name: tuple(found[name]) for name in lists})


def _facts(path: Path, text: bytes, names: Iterable[str]) -> dict[str, Any]:
    """What the header says under these names, each of the right type."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError('no JSON object')
        # Older files say less.
        found = {'channels': Header.channels, 'relu': [], 'class_names': []} | found
        for name in names:
            if name not in found:
                raise ValueError(f'nothing said of {name}')
            if not _FACTS[name](found[name]):
                raise ValueError(f'{name} cannot be {shown(found[name])}')
    except (ValueError, RecursionError) as error:
        raise ExportError(f'{path}: {_HEADER} is damaged: {error}; export again') from None
    return {name: found[name] for name in names}


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_size(value: Any) -> bool:
    return _is_count(value) or (
        isinstance(value, list) and list(map(_is_count, value)) == [True] * 2
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_FACTS: dict[str, Callable[[Any], bool]] = {
    'format': _is_count,
    'jax': lambda v: isinstance(v, str) and bool(re.fullmatch(r'[0-9]{1,6}(\.[0-9]{1,6})*', v)),
    'platforms': _are_texts,
    'network': lambda v: isinstance(v, str),
    'input_size': _is_size,
    'num_classes': _is_count,
    'predicted': lambda v: v in ('top1', 'top5'),
    'keys': lambda v: isinstance(v, list) and all(_are_texts(key) and len(key) == 2 for key in v),
    'channels': _is_count,
    'relu': lambda v: isinstance(v, list) and all(isinstance(relu, bool) for relu in v),
    'class_names': _are_texts,
}


def _fits(program: Exported, header: Header, weights: dict[str, np.ndarray]) -> bool:
    """Whether a program takes these weights and images, and gives what the header says."""
    (taken, images, *_), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    logits, _, maps, _ = jax.tree.unflatten(program.out_tree, program.out_avals)
    of_program, of_file = (
        {name: (array.shape, array.dtype) for name, array in arrays.items()}
        for arrays in (taken, weights)
    )
    facts = images.shape[1:], images.dtype, logits.shape[1], len(maps)
    said = header.input_shape, np.uint8, header.num_classes, len(header.keys)
    return of_program == of_file and facts == said
