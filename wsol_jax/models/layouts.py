"""Weights under the names of other libraries -> those of torchvision and timm, which ours follow.

Torchvision's own names, and timm's of ResNets, InceptionV3, VGG16 and vision transformers, are
known to the networks themselves; here are the others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from wsol_jax.models.published import local_weights
from wsol_jax.models.weights import Table, read_tensors

Tensors = dict[str, np.ndarray]

_PREFIX = re.compile(r'(?:module|model)\.')  # of wrappers, such as DataParallel
_NORM = ('weight', 'bias', 'running_mean', 'running_var')


@dataclass(frozen=True)
class Layout:
    """How another library names the weights of one of our networks.

    Attributes:
        name: for people.
        sign: regex of the start of a name that tells the layout from others.
        table: (regex, replacement) pairs, applied one after the other to a name; what becomes ''
            is left out.
        epsilon: of the batch normalisation that is folded into its convolution; None: none is.
        options: of the network where it computes otherwise than by default.
    """

    name: str
    sign: str
    table: Table
    epsilon: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


_TRANSFORMERS_VIT = Layout(
    'vision transformer of transformers',
    r'((vit|deit)\.)?embeddings\.cls_token',
    (
        (r'^(vit|deit)\.', ''),
        (r'^pooler\..*', ''),
        (r'^embeddings\.cls_token', 'cls_token'),
        (r'^embeddings\.position_embeddings', 'pos_embed'),
        (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
        (r'^encoder\.layer\.(\d+)\.', r'blocks.\1.'),
        (r'\.attention\.attention\.(q)uery\.', r'.attn.\1.'),
        (r'\.attention\.attention\.(k)ey\.', r'.attn.\1.'),
        (r'\.attention\.attention\.(v)alue\.', r'.attn.\1.'),
        (r'\.attention\.output\.dense\.', '.attn.proj.'),
        (r'\.intermediate\.dense\.', '.mlp.fc1.'),
        (r'\.output\.dense\.', '.mlp.fc2.'),
        (r'\.layernorm_before\.', '.norm1.'),
        (r'\.layernorm_after\.', '.norm2.'),
        (r'^layernorm\.', 'norm.'),
        (r'^classifier\.', 'head.'),
    ),
)
_TRANSFORMERS_RESNET = Layout(
    'ResNet of transformers',
    r'(resnet\.)?embedder\.embedder\.',
    (
        (r'^resnet\.', ''),
        (r'^embedder\.embedder\.convolution\.', 'conv1.'),
        (r'^embedder\.embedder\.normalization\.', 'bn1.'),
        *((rf'^encoder\.stages\.{i}\.layers\.', f'layer{i + 1}.') for i in range(4)),
        (r'\.shortcut\.convolution\.', '.downsample.0.'),
        (r'\.shortcut\.normalization\.', '.downsample.1.'),
        *((rf'\.layer\.{i}\.convolution\.', f'.conv{i + 1}.') for i in range(3)),
        *((rf'\.layer\.{i}\.normalization\.', f'.bn{i + 1}.') for i in range(3)),
        (r'^classifier\.1\.', 'fc.'),
    ),
)
_TRANSFORMERS_MOBILENET = Layout(
    'MobileNetV1 of transformers',
    r'mobilenet_v1\.',
    (
        (r'^mobilenet_v1\.', ''),
        (r'^conv_stem\.', 'conv_0.'),
        *((rf'^layer\.{2 * i}\.', f'dw_{i + 1}.') for i in range(13)),
        *((rf'^layer\.{2 * i + 1}\.', f'pw_{i + 1}.') for i in range(13)),
        (r'\.convolution\.', '.'),
        (r'\.normalization\.', '.bn.'),
    ),
    epsilon=1e-3,
)
# Blocks by (stage, place in it).
_PLACES = [(stage, i) for stage, count in enumerate((1, 2, 2, 6, 2)) for i in range(count)]
_TIMM_MOBILENET = Layout(
    'MobileNetV1 of timm',
    r'blocks\.0\.0\.conv_dw\.',
    (
        (r'^conv_stem\.', 'conv_0.'),
        (r'^bn1\.', 'conv_0.bn.'),
        *((rf'^blocks\.{s}\.{i}\.conv_dw\.', f'dw_{n}.') for n, (s, i) in enumerate(_PLACES, 1)),
        *((rf'^blocks\.{s}\.{i}\.bn1\.', f'dw_{n}.bn.') for n, (s, i) in enumerate(_PLACES, 1)),
        *((rf'^blocks\.{s}\.{i}\.conv_pw\.', f'pw_{n}.') for n, (s, i) in enumerate(_PLACES, 1)),
        *((rf'^blocks\.{s}\.{i}\.bn2\.', f'pw_{n}.bn.') for n, (s, i) in enumerate(_PLACES, 1)),
    ),
    epsilon=1e-5,
    options={'padding': 'torchvision'},
)
LAYOUTS = (_TRANSFORMERS_VIT, _TRANSFORMERS_RESNET, _TRANSFORMERS_MOBILENET, _TIMM_MOBILENET)


class Read(NamedTuple):
    """A weights file that was read.

    Attributes:
        path: of it.
        tensors: under the names that the networks know.
        options: that they want of a network, see `known_names`.
    """

    path: Path
    tensors: Tensors
    options: dict[str, Any]


def read_weights(weights: str | Path) -> Read:
    """Reads a weights file, or public weights by name, which are fetched once.

    Raises:
        WeightsError: they cannot be read, or fetched.
    """
    path = local_weights(weights)
    return Read(path, *known_names(read_tensors(path), path))


def known_names(
    tensors: Mapping[str, np.ndarray], path: str | Path
) -> tuple[Tensors, dict[str, Any]]:
    """Tensors under the names that the networks know, and the options that they want of them.

    Args:
        tensors: by the names of a file.
        path: of it, for messages.

    Returns:
        The tensors, and options such as {'padding': 'torchvision'}: what their names and shapes
        tell of the network that they were published for.
    """
    found = _without_prefix(tensors, path)
    signs = (a for a in LAYOUTS if any(re.match(a.sign, key) for key in found))
    layout = next(signs, None)
    if layout is None:
        return found, _grid(found)
    named = {_renamed(key, layout.table): tensor for key, tensor in found.items()}
    named.pop('', None)
    named = _joined(named if layout.epsilon is None else _folded(named, layout.epsilon))
    return named, {**layout.options, **_grid(named)}


def _without_prefix(tensors: Mapping[str, np.ndarray], path: str | Path) -> Tensors:
    """Without what wrappers put in front of every name, which is logged."""
    found, left_out = dict(tensors), ''
    while found and (prefix := _PREFIX.match(next(iter(found)))):
        if not all(key.startswith(prefix[0]) for key in found):
            break
        left_out += prefix[0]
        found = {key.removeprefix(prefix[0]): tensor for key, tensor in found.items()}
    if left_out:
        logging.warning('%s: %r in front of every name is left out', path, left_out)
    return found


def _grid(tensors: Tensors) -> dict[str, Any]:
    """Sides of patches and of images in pixels, of a vision transformer."""
    kernel, positions = tensors.get('patch_embed.proj.weight'), tensors.get('pos_embed')
    if kernel is None or positions is None or kernel.ndim != 4 or positions.ndim != 3:
        return {}
    side = kernel.shape[-1]
    return {'patch': side, 'image_size': side * isqrt(max(positions.shape[1] - 1, 0))}


def _renamed(key: str, table: Table) -> str:
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def _joined(tensors: Tensors) -> Tensors:
    """Queries, keys and values as one layer, in this order, as timm has them."""
    found = dict(tensors)
    for key in tensors:
        if '.attn.q.' in key:
            parts = [key.replace('.attn.q.', f'.attn.{part}.') for part in 'qkv']
            if all(part in found for part in parts):
                whole = np.concatenate([found.pop(part) for part in parts])
                found[key.replace('.attn.q.', '.attn.qkv.')] = whole
    return found


def _folded(tensors: Tensors, epsilon: float) -> Tensors:
    """Convolutions [O,I,h,w] with the batch normalisation behind them in kernel and bias.

    y = scale (w x - mean) + bias, scale = weight / sqrt(variance + epsilon).
    """
    found = dict(tensors)
    for name in [key.removesuffix('.bn.weight') for key in tensors if key.endswith('.bn.weight')]:
        norm = [f'{name}.bn.{leaf}' for leaf in _NORM]
        if f'{name}.weight' not in found or not all(key in found for key in norm):
            continue
        weight, bias, mean, variance = (found.pop(key).astype(np.float64) for key in norm)
        found.pop(f'{name}.bn.num_batches_tracked', None)
        scale = weight / np.sqrt(variance + epsilon)
        kernel = found[f'{name}.weight'] * scale[:, None, None, None]
        found[f'{name}.weight'] = kernel.astype(np.float32)
        found[f'{name}.bias'] = (bias - mean * scale).astype(np.float32)
    return found
