"""Names of networks -> how to build, feed and fill them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax import nnx

from wsol_jax.models import inception, mobilenet, resnet, squeezenet, vgg, vit
from wsol_jax.models.facts import IMAGENET_CLASSES, Facts, facts_of, imagenet_classes
from wsol_jax.models.layouts import Read, read_weights
from wsol_jax.models.network import Network, Probability, Size
from wsol_jax.models.preprocessing import (
    PREPROCESSINGS,
    Preprocessing,
    as_preprocessing,
    preprocessing_name,
)
from wsol_jax.models.published import local_weights
from wsol_jax.models.weights import (
    Table,
    WeightsError,
    assign,
    assign_named,
    module_name,
)
from wsol_jax.names import shown, unknown_name

_LARGEST = 1_000_000  # of classes and of widths
# Options of networks that are whole numbers.
_COUNTS_OF_VIT = ('width', 'heads', 'depth', 'patch', 'image_size')
_COUNTS = ('output_stride', *_COUNTS_OF_VIT)

SYMMETRIC, CAFFE, IMAGENET = (PREPROCESSINGS[n] for n in ('symmetric', 'caffe', 'imagenet'))

DEFAULT_CLASSES = 1000


@dataclass(frozen=True)
class Recipe:
    """What the zoo knows of one network.

    Attributes:
        constructor: `constructor(num_classes, rngs=..., **options)`.
        preprocessing: what its published weights expect, and random ones get.
        input_size: the side in pixels they were trained at.
        table: from the weights file's names to ours, see weights.py.
        head: regex of the names that may differ when the number of classes is chosen.
        class_key: the key in the file whose length is the number of classes.
        options: the names that `constructor` takes beyond these two.
        or_else: what other published weights expect, of the same names and shapes; None where all
            agree.
        stem: the key in the file of its first kernel, by which `wsol_jax.weights` knows it.
    """

    constructor: Callable[..., nnx.Module]
    preprocessing: Preprocessing
    input_size: int
    table: Table
    head: str
    class_key: str
    options: tuple[str, ...] = ()
    or_else: Preprocessing | None = None
    stem: str = ''


def _resnet(depth: int) -> Recipe:
    constructor = partial(resnet.ResNet, depth)
    return Recipe(
        constructor,
        IMAGENET,
        224,
        resnet.WEIGHT_NAMES,
        resnet.HEAD,
        'fc.bias',
        stem='conv1.weight',
        options=('width', 'output_stride', 'strides', 'dilated'),
    )


def _vit(
    width: int, heads: int, preprocessing: Preprocessing, or_else: Preprocessing | None = None
) -> Recipe:
    return Recipe(
        partial(vit.ViT, width=width, heads=heads),
        preprocessing,
        224,
        vit.WEIGHT_NAMES,
        vit.HEAD,
        'head.bias',
        stem='patch_embed.proj.weight',
        options=(*_COUNTS_OF_VIT, 'drop_path', 'spatial_token'),
        or_else=or_else,
    )


RECIPES: Mapping[str, Recipe] = {
    'inception_v3': Recipe(
        inception.InceptionV3,
        SYMMETRIC,
        224,
        inception.WEIGHT_NAMES,
        inception.HEAD,
        'fc.bias',
        stem='Conv2d_1a_3x3.conv.weight',
        options=('padding', 'added'),
    ),
    **{f'resnet{depth}': _resnet(depth) for depth in resnet.STAGES},
    'vgg16': Recipe(
        vgg.VGG16,
        IMAGENET,
        224,
        vgg.WEIGHT_NAMES,
        vgg.HEAD,
        'fc.bias',
        stem='features.0.weight',
        or_else=CAFFE,
    ),
    'mobilenet_v1': Recipe(
        mobilenet.MobileNetV1,
        SYMMETRIC,
        224,
        mobilenet.WEIGHT_NAMES,
        mobilenet.HEAD,
        'classifier.bias',
        stem='conv_0.weight',
        options=('output_stride', 'padding'),
    ),
    'squeezenet1_1': Recipe(
        squeezenet.SqueezeNet,
        CAFFE,
        224,
        squeezenet.WEIGHT_NAMES,
        squeezenet.HEAD,
        'classifier.1.bias',
        stem='features.0.weight',
        or_else=IMAGENET,
    ),
    'deit_tiny': _vit(192, 3, IMAGENET),
    'deit_small': _vit(384, 6, IMAGENET),
    # AugReg's weights, timm's own, want SYMMETRIC; DINO's, of which there is no tiny one, IMAGENET.
    'vit_tiny': _vit(192, 3, SYMMETRIC, or_else=IMAGENET),
    'vit_small': _vit(384, 6, IMAGENET, or_else=SYMMETRIC),
    'vit_base': _vit(768, 12, IMAGENET, or_else=SYMMETRIC),
}
NETWORKS = tuple(RECIPES)


def build(name: str, num_classes: int, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """A network with random weights, in training mode, as a Flax NNX module.

    Args:
        name: one of NETWORKS.
        num_classes: length of the logits.
        rngs: for the initial weights and for dropout.
        **options: `padding` ('same' or 'torchvision') of inception_v3 and mobilenet_v1; `added`
            ('glorot' or 'identity') of inception_v3; `width`, `output_stride` (32, 16 or 8),
            `strides` and `dilated` of the resnets; `output_stride` (32 or 16) of mobilenet_v1;
            those of `vit.ViT` of the vision transformers.

    Raises:
        ValueError: an unknown name or option, naming the nearest right one, or a number out of
            range.
    """
    recipe = _recipe(name)
    for option in options:
        if option not in recipe.options:
            raise ValueError(unknown_name(f'option of {name}', option, recipe.options))
    counts = {'num_classes': num_classes} | {k: options[k] for k in _COUNTS if k in options}
    for what, number in counts.items():
        _check_count(name, what, number)
    return recipe.constructor(num_classes, rngs=rngs, **options)


def _check_count(name: str, what: str, value: Any) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= _LARGEST:
        raise ValueError(
            f'{what} of {name} must be a whole number from 1 to {_LARGEST:,}, got {shown(value)}'
        )


def load_network(
    name: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    *,
    preprocessing: str | Mapping[str, Any] | Preprocessing | None = None,
    probability: Probability | None = None,
    seed: int = 0,
    **options: Any,
) -> Network:
    """A network in inference mode, random or with the weights of a file.

    Args:
        name: one of NETWORKS.
        weights: .safetensors, .pth or .pt file under torchvision's names, of vision transformers
            timm's; or the name of public ones, such as 'timm/resnet50.a1_in1k', that are fetched
            once, see `local_weights`; None keeps the random weights of `seed`.
        num_classes: None reads it from the file, which must then fit entirely (1000
            without a file). A number lets the file's head differ: what does not fit there
            keeps its initial value and is logged.
        preprocessing: what the weights expect: 'imagenet' (torchvision), 'caffe', 'symmetric'
            (TensorFlow), 'unit' (RGB in [0, 1]), {'mean': .., 'std': .., 'bgr': ..} on the 0..255
            scale, or a `Preprocessing`. None: what the file says of itself (the metadata
            'preprocessing' of a .safetensors file, in the same form) or what is published with it
            (see `facts_of`, which tells the input size and the names of the classes, too), else
            that of the weights known by this name, with a warning where there are others.
        probability: what the logits stand for: 'softmax', 'sigmoid' or a function; None: 'sigmoid'
            for one class, else 'softmax'. See `Network`.
        seed: for the initial weights.
        **options: see `build`; those that are not given are as names and shapes in the file tell.

    Raises:
        ValueError: an unknown name or option, or a wrong preprocessing or probability.
        WeightsError: the file is missing, unreadable or does not fit, or cannot be fetched.
    """
    weights = local_weights(weights) if weights else None
    module = load_module(name, weights, num_classes, seed=seed, **options)
    found = find_preprocessing(name, weights, preprocessing)
    facts = facts_of(weights) if weights else Facts()
    network = as_network(name, module, found, probability, _input_size(module, facts))
    names = class_names_of(facts, network.num_classes) if weights and not num_classes else None
    return replace(network, class_names=names)


def _input_size(module: nnx.Module, facts: Facts) -> Size | None:
    """Of the images that weights were published for; position embeddings have their own."""
    if hasattr(module, 'image_size') or facts.input_size is None:
        return None
    height, width = facts.input_size
    return height if height == width else facts.input_size


def class_names_of(facts: Facts, count: int) -> tuple[str, ...] | None:
    """What the weights' source calls their classes.

    Args:
        facts: of the weights.
        count: of the classes of their head. Where nothing tells the names, 1000 are taken for those
            of ImageNet-1k, which public classifiers with as many classes know.

    Returns:
        As many names; None where they are not known.
    """
    assumed = imagenet_classes() if count == IMAGENET_CLASSES else None
    names = facts.class_names or assumed
    return names if names and len(names) == count else None


def load_module(
    name: str,
    weights: str | Path | Read | None = None,
    num_classes: int | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> nnx.Module:
    """The module behind `load_network`, in training mode; same arguments and errors.

    Its preprocessing is found by `find_preprocessing`. Options that are not given are as the file
    tells them. What was read already is taken as it is.
    """
    recipe = _recipe(name)
    if weights:
        read = weights if isinstance(weights, Read) else read_weights(weights)
        options = {k: v for k, v in read.options.items() if k in recipe.options} | options

    def random_module(classes: int) -> nnx.Module:
        return build(name, classes, nnx.Rngs(seed), **options)

    if not weights:
        return random_module(num_classes or DEFAULT_CLASSES)
    if num_classes is not None:
        module = random_module(num_classes)
        assign(module, read.tensors, read.path, recipe.table, recipe.head, strict=False)
    else:
        classes = _classes_in(read.tensors, recipe.class_key, read.path)
        # Shapes alone: the file holds every value, so no random weight is drawn.
        module = nnx.eval_shape(partial(random_module, classes))
        assign(module, read.tensors, read.path, recipe.table, recipe.head)
    return module


def classes_of(name: str, values: Mapping[str, np.ndarray], path: str | Path) -> int:
    """The number of classes of weights under a network's own dotted names.

    Args:
        name: one of NETWORKS.
        values: as those of `fill_module`.
        path: where they come from, for messages.

    Raises:
        WeightsError: they do not tell.
    """
    recipe = _recipe(name)
    key = module_name(recipe.class_key, recipe.table, values) or recipe.class_key
    return _classes_in(values, key, path)


def fill_module(
    name: str,
    module: nnx.Module,
    values: Mapping[str, np.ndarray],
    path: str | Path,
    strict: bool = True,
) -> None:
    """Fills a module of `build`, in place, with values under its own dotted names.

    Args:
        name: one of NETWORKS.
        module: the network.
        values: weights and batch statistics.
        path: where they come from, for messages.
        strict: everything must fit; else what does not fit the head, and heads that a training
            method attached, keeps its initial value and is logged.

    Raises:
        WeightsError: they do not fit.
    """
    if not (strict or hasattr(module, 'heads')):  # those of another training
        values = {key: value for key, value in values.items() if not key.startswith('heads.')}
    assign_named(module, values, path, rf'{_recipe(name).head}|^heads\.', strict)


def find_preprocessing(
    name: str,
    weights: str | Path | None = None,
    given: str | Mapping[str, Any] | Preprocessing | None = None,
) -> Preprocessing:
    """What is done to images in front of a network; see `load_network`.

    Args:
        name: one of NETWORKS.
        weights: the file that it is filled from; or None.
        given: what the user says; None or '' for nothing.

    Raises:
        ValueError: an unknown name, or a wrong preprocessing.
        WeightsError: the same in the file, or the file cannot be read.
    """
    recipe = _recipe(name)
    if given:
        return _of_colours(as_preprocessing(given))
    if not weights:
        return recipe.preprocessing
    weights = local_weights(weights)
    facts = facts_of(weights)
    if facts.preprocessing:
        try:
            return _of_colours(facts.preprocessing)
        except ValueError as error:
            raise WeightsError(f'{facts.told_by}: {error}') from None
    if recipe.or_else:
        assumed, other = map(preprocessing_name, (recipe.preprocessing, recipe.or_else))
        logging.warning(
            '%s: does not say its preprocessing: %s is assumed, as of the %s weights known here; '
            'others need %s: say preprocessing=',
            weights,
            assumed,
            name,
            other,
        )
    return recipe.preprocessing


def _of_colours(preprocessing: Preprocessing) -> Preprocessing:
    if preprocessing.channels != 3:
        raise ValueError(
            f'preprocessing has {preprocessing.channels} channels, these networks take RGB: 3'
        )
    return preprocessing


def as_network(
    name: str,
    module: nnx.Module,
    preprocessing: Preprocessing | None = None,
    probability: Probability | None = None,
    input_size: Size | None = None,
) -> Network:
    """The network of a module from `build` or `load_module`, in inference mode.

    Args:
        name: one of NETWORKS.
        module: of that network.
        preprocessing: None for that of its random weights.
        probability: see `load_network`.
        input_size: of its images; None for that of its published weights, or of its
            `image_size`.
    """
    recipe = _recipe(name)
    own_size = getattr(module, 'image_size', recipe.input_size)
    return Network.from_module(
        module,
        name=name,
        preprocessing=preprocessing or recipe.preprocessing,
        input_size=input_size or own_size,
        probability=probability,
    )


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(unknown_name('network', name, NETWORKS))
    return RECIPES[name]


def _classes_in(tensors: Mapping[str, np.ndarray], key: str, path: str | Path) -> int:
    if key not in tensors:
        raise WeightsError(
            f'{path}: no {key!r}, so the file does not tell the number of classes; '
            'give num_classes to start from a new head'
        )
    if tensors[key].ndim != 1 or not len(tensors[key]):
        raise WeightsError(f'{path}: {key} must have one value a class, is {tensors[key].shape}')
    return len(tensors[key])
