"""Public weights: `python -m wsol_jax.weights list`, `... fetch NAME`, `... check FILE_OR_NAME`."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wsol_jax.data.files import printable
from wsol_jax.interrupts import exit_code, readers_may_leave, stop_like_ctrl_c
from wsol_jax.models import cached_weights, local_weights
from wsol_jax.models.facts import Facts, facts_of
from wsol_jax.models.fits import Fit, fit_of, unusual_options
from wsol_jax.models.layouts import Tensors, read_weights
from wsol_jax.models.preprocessing import preprocessing_name
from wsol_jax.models.weights import WeightsError
from wsol_jax.models.zoo import (
    NETWORKS,
    RECIPES,
    class_names_of,
)

# Whose names and shapes are known to fit; an 'hf-hub:' one of transformers, the others as named.
KNOWN: Mapping[str, tuple[str, ...]] = {
    'resnet18': ('timm/resnet18.a1_in1k', 'torchvision/resnet18', 'hf-hub:microsoft/resnet-18'),
    'resnet34': ('timm/resnet34.a1_in1k', 'torchvision/resnet34', 'hf-hub:microsoft/resnet-34'),
    'resnet50': (
        'timm/resnet50.a1_in1k',
        'torchvision/resnet50',
        'torchvision/resnet50.IMAGENET1K_V1',
        'hf-hub:microsoft/resnet-50',
    ),
    'resnet101': (
        'timm/resnet101.a1h_in1k',
        'torchvision/resnet101',
        'torchvision/resnet101.IMAGENET1K_V1',
        'hf-hub:microsoft/resnet-101',
    ),
    'vgg16': ('timm/vgg16.tv_in1k', 'torchvision/vgg16'),
    'inception_v3': ('timm/inception_v3.tf_in1k', 'torchvision/inception_v3'),
    'mobilenet_v1': (
        'timm/mobilenetv1_100.ra4_e3600_r224_in1k',
        'hf-hub:google/mobilenet_v1_1.0_224',
    ),
    'squeezenet1_1': ('torchvision/squeezenet1_1',),
    'deit_tiny': ('timm/deit_tiny_patch16_224.fb_in1k', 'hf-hub:facebook/deit-tiny-patch16-224'),
    'deit_small': ('timm/deit_small_patch16_224.fb_in1k', 'hf-hub:facebook/deit-small-patch16-224'),
    'vit_tiny': ('timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k',),
    'vit_small': (
        'timm/vit_small_patch16_224.augreg_in21k_ft_in1k',
        'timm/vit_small_patch16_384.augreg_in21k_ft_in1k',
        'timm/vit_small_patch16_224.dino',
        'hf-hub:facebook/dino-vits16',
    ),
    'vit_base': (
        'timm/vit_base_patch16_224.augreg_in21k_ft_in1k',
        'timm/deit_base_patch16_224.fb_in1k',
        'timm/vit_base_patch16_224.dino',
        'hf-hub:google/vit-base-patch16-224',
    ),
}
# Networks of which real weights of this form are read when the package is tested.
REAL = {
    'inception_v3': "the trunk of TensorFlow's model of 2015",
    'mobilenet_v1': "TensorFlow's MobileNetV1, batch normalisation folded",
    'squeezenet1_1': 'the Caffe model',
    'deit_tiny': 'DeiT-Tiny under the names of timm',
}
_HEADLESS = ('vgg16', 'inception_v3')  # published with another head
_BEGINNING = """The weights below are known to fit by their published names and shapes. Where real
weights of a network were read and run, too, that is said. fetched: they are in the cache."""


def listing() -> Iterator[str]:
    """The lines of `list`."""
    yield _BEGINNING
    for network, names in KNOWN.items():
        fits = 'trunk alone, its head is new here' if network in _HEADLESS else 'whole'
        real = f'; real weights read: {REAL[network]}' if network in REAL else ''
        yield f'\n{network}: {fits}{real}'
        for name in names:
            headless = '  (no head)' if 'dino' in name else ''
            fetched = '  fetched' if cached_weights(name) else ''
            yield f'  {name}{headless}{fetched}'


def check(weights: str) -> tuple[list[str], bool]:
    """What there is to know of weights.

    Args:
        weights: a file, or a name as `local_weights` takes it.

    Returns:
        Lines to print, and whether they fit a network.

    Raises:
        WeightsError: they cannot be read or fetched.
    """
    path, tensors, options = read_weights(weights)
    numbers = sum(tensor.size for tensor in tensors.values())
    lines = [f'{path}: {len(tensors)} tensors, {numbers:,} numbers']
    fits = {n: fit_of(n, tensors, options) for n in NETWORKS if RECIPES[n].stem in tensors}
    right = {name: fit for name, fit in fits.items() if not fit.problems}
    if not right:
        return [*lines, _misfit(fits, tensors)], False
    facts, name = facts_of(path), next(iter(right))
    said = unusual_options(name, options)
    lines.append(_fitting(right) + (f', with {said}' if said else ''))
    lines += [_classes(right[name], facts), *_images(facts, name)]
    new = '' if right[name].classes else ', num_classes=...'
    return [*lines, f'load_network({name!r}, {weights!r}{new})'], True


def _fitting(fits: Mapping[str, Fit]) -> str:
    part = 'the whole' if all(fit.classes for fit in fits.values()) else 'the trunk'
    return f'fits {part} of {" or ".join(fits)}'


def _misfit(fits: Mapping[str, Fit], tensors: Tensors) -> str:
    if not fits:
        return f'fits no network here; its first names are {", ".join(list(tensors)[:3])}'
    nearest = min(fits, key=lambda name: len(fits[name].problems.lines()))
    return f'fits no network here; of the nearest, {nearest}: {fits[nearest].problems.summary()}'


def _classes(fit: Fit, facts: Facts) -> str:
    if not fit.classes:
        return 'classes: none, the head is another one or missing; a new one must be trained'
    names = class_names_of(facts, fit.classes)
    shown = f'{names[0]} ... {names[-1]}' if names else 'without names'
    return f'classes: {fit.classes}, {shown}' + ('' if facts.class_names else ' (not told)')


def _images(facts: Facts, network: str) -> Iterator[str]:
    if facts.preprocessing is None:
        usual = preprocessing_name(RECIPES[network].preprocessing)
        yield f'preprocessing: {usual} is assumed (not told)'
    else:
        yield f'preprocessing: {preprocessing_name(facts.preprocessing)} ({facts.told_by})'
    if facts.input_size:
        yield f'input: {facts.input_size[0]} x {facts.input_size[1]}'
    if facts.resized:
        yield f'their accuracy is that of {facts.resized}; here the whole image is resized'


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the commands.

    Returns:
        0 if all is well, 1 if weights fit no network; what is wrong otherwise exits with code 2.
    """
    parser = argparse.ArgumentParser(prog='python -m wsol_jax.weights')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    commands.add_parser('list', help='the public weights that are known to fit')
    command = commands.add_parser('fetch', help='fetch weights into the cache, print their path')
    command.add_argument('weights', metavar='NAME', help='timm/..., torchvision/..., https://...')
    command = commands.add_parser('check', help='say which network weights fit')
    command.add_argument('weights', metavar='FILE_OR_NAME', help='a file, or as of fetch')
    chosen = parser.parse_args(arguments)
    stop_like_ctrl_c()
    try:
        return _run(chosen)
    except KeyboardInterrupt as stop:
        parser.exit(exit_code(stop), f'{parser.prog}: interrupted; the same goes on from here\n')
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: {printable(str(error).splitlines()[0])}\n')


def _run(chosen: argparse.Namespace) -> int:
    lines, fits = list(listing()) if chosen.command == 'list' else [], True
    if chosen.command == 'check':
        lines, fits = check(chosen.weights)
    if chosen.command == 'fetch':
        path = local_weights(chosen.weights)
        if not path.is_file() or path == Path(chosen.weights):
            raise WeightsError(f'{chosen.weights}: no name of public weights; see list')
        lines = [str(path)]
    with readers_may_leave():
        print('\n'.join(lines))
    return 0 if fits else 1


if __name__ == '__main__':
    raise SystemExit(main())
