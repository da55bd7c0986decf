"""The training methods by name; one file each."""

from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from wsol_jax.config import ConfigError, TrainConfig
from wsol_jax.fields import converted, value_fault
from wsol_jax.models import as_network, load_module
from wsol_jax.models.fits import unusual_options
from wsol_jax.models.layouts import Read, read_weights
from wsol_jax.models.preprocessing import Preprocessing
from wsol_jax.models.zoo import RECIPES
from wsol_jax.names import unknown_name
from wsol_jax.training.method import TrainedMethod
from wsol_jax.training.methods.acol import ACoL
from wsol_jax.training.methods.adl import ADL
from wsol_jax.training.methods.bas import BAS
from wsol_jax.training.methods.bas_wsss import BASWSSS
from wsol_jax.training.methods.center_point import CenterPoint3D
from wsol_jax.training.methods.cutmix import CutMix
from wsol_jax.training.methods.dtmr import DTMR
from wsol_jax.training.methods.esol import ESOL
from wsol_jax.training.methods.has import HaS
from wsol_jax.training.methods.irn import IRN
from wsol_jax.training.methods.mars import MARS
from wsol_jax.training.methods.ornet import ORNet
from wsol_jax.training.methods.point_detr3d import PointDETR3D
from wsol_jax.training.methods.sat import SAT
from wsol_jax.training.methods.segmenter import Segmenter
from wsol_jax.training.methods.spg import SPG
from wsol_jax.training.methods.ts_cam import TSCAM

# '' is the plain classifier. Cards in the documentation are made of the first line of each file,
# the docstring of its class, with when it fails from 'Weak' on, and its options.
METHODS: Mapping[str, type[TrainedMethod]] = {
    '': TrainedMethod,
    'has': HaS,
    'cutmix': CutMix,
    'adl': ADL,
    'acol': ACoL,
    'spg': SPG,
    'bas': BAS,
    'bas_wsss': BASWSSS,
    'ornet': ORNet,
    'ts_cam': TSCAM,
    'sat': SAT,
    'esol': ESOL,
    'irn': IRN,
    'segmenter': Segmenter,
    'mars': MARS,
    'point_detr3d': PointDETR3D,
    'center_point': CenterPoint3D,
    'dtmr': DTMR,
}
_HEADS = 0x4EAD  # sets the weights that heads start from apart from those of the network


def make_method(setting: TrainConfig) -> TrainedMethod:
    """The method that the settings of a training name, with its options.

    Raises:
        ConfigError: an unknown name or option, or a value of another type or out of range.
    """
    name, where = setting.method, 'config.train.options'
    if name not in METHODS:
        names = filter(None, METHODS)
        raise ConfigError(unknown_name('method in config.train.method', name, names))
    known = {f.name: f for f in fields(METHODS[name]) if 'setting' in f.metadata}
    for option in setting.options:
        if option not in known:
            what = f'option of {name or "the plain classifier"} in {where}'
            raise ConfigError(unknown_name(what, option, known))
    options = {k: _checked(known[k], v, f'{where}.{k}') for k, v in setting.options.items()}
    shared: dict[str, Any] = {
        'label_smoothing': setting.label_smoothing,
        'class_weights': setting.class_weights,
        'sigmoid': setting.loss == 'sigmoid',
    }
    return METHODS[name](**shared, **options)


def _checked(field: Field[Any], value: Any, where: str) -> Any:
    """An option's value as its field has it."""
    value = converted(field.default, field.type, value, where)
    if fault := value_fault(field.metadata['setting'], where, value):
        raise ConfigError(fault)
    return value


def make_module(
    name: str,
    weights: Path | None,
    num_classes: int,
    method: TrainedMethod,
    seed: int,
    options: Mapping[str, Any],
    preprocessing: Preprocessing | None = None,
) -> nnx.Module:
    """A network's module as a method trains it, with its heads; in training mode.

    Args:
        name: of the network.
        weights: a file, whose head may differ; None for random weights.
        num_classes: the length of the logits.
        method: of training.
        seed: of the experiment.
        options: of the network; those of the method come first.
        preprocessing: of its images; None for that of its random weights.

    Raises:
        ConfigError: the network has no option that the method needs.
        ValueError: see `models.load_module`.
    """
    needed = method.network_options
    known = RECIPES[name].options if name in RECIPES else needed  # an unknown one is told below
    if missing := [o for o in needed if o not in known]:
        fit = ', '.join(n for n, recipe in RECIPES.items() if set(needed) <= set(recipe.options))
        raise ConfigError(
            f'config.network.name={name!r} has no {missing[0]}, which this training needs; '
            f'it fits {fit}'
        )
    options = {**options, **needed}
    read = read_weights(weights) if weights and name in RECIPES else None
    if read:
        _check_said(name, read, options)
    module = load_module(name, read, num_classes, seed=seed, **options)
    add_heads(name, module, method, seed, preprocessing)
    return module


def _check_said(name: str, read: Read, options: Mapping[str, Any]) -> None:
    """Wants what a file tells of its network among the settings: checkpoints do not tell it."""
    said = unusual_options(name, read.options)
    if missing := {key: value for key, value in said.items() if key not in options}:
        raise ConfigError(f'{read.path} needs config.network.options to hold {missing}')


def add_heads(
    name: str,
    module: nnx.Module,
    method: TrainedMethod,
    seed: int,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Attaches the heads of a method to a network's module, if it has any, with random weights.

    Args:
        name: of the network.
        module: of `build` or `load_module`.
        method: of training.
        seed: of the experiment.
        preprocessing: see `make_module`.
    """
    if type(method).heads is TrainedMethod.heads:
        return  # to look at the network takes a moment
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(seed), _HEADS))
    if (heads := method.heads(as_network(name, module, preprocessing), rngs)) is not None:
        module.heads = heads  # type: ignore[attr-defined]
