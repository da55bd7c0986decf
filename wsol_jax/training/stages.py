"""Methods of several stages, each a training that starts from the one before."""

from collections.abc import Sequence
from typing import Any

from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.training.method import Start
from wsol_jax.training.optimizer import parameter_name


def check_start(
    name: str, method: Any, same: Sequence[str], module: nnx.Module, start: Start | None
) -> None:
    """Refuses another start than a plain training for stage 1, and stage n - 1 for stage n.

    Args:
        name: of the method in `train.method`.
        method: with its `stage`.
        same: options that stages must have in common.
        module: the network with its heads.
        start: the training that it starts from, if any.

    Raises:
        ConfigError: the start is another one, of other options or of other classes.
    """
    first = method.stage == 1
    before = 'a plain training' if first else f'a training of stage {method.stage - 1}'
    needs = (
        f'stage {method.stage} of {name} starts from {before} of this network on the same classes: '
        'give its workdir'
    )
    if start is None:
        raise ConfigError(f'config.train.init_from: no training to start from; {needs}')
    where, found = f'config.train.init_from: {start.workdir}', start.config.get('train.method', '')
    if found != ('' if first else name):
        raise ConfigError(f'{where} holds {_training(found)}; {needs}')
    if not first:
        _check_stage(method, start.method, same, where, needs)
    _check_classes(module, start, where, needs)


def _training(name: str) -> str:
    return f'a training of {name!r}' if name else 'a plain training'


def _check_stage(method: Any, other: Any, same: Sequence[str], where: str, needs: str) -> None:
    if other.stage != method.stage - 1:
        raise ConfigError(f'{where} holds a training of stage {other.stage}; {needs}')
    for option in same:
        found, asked = getattr(other, option), getattr(method, option)
        if found != asked:
            raise ConfigError(
                f'{where} was trained with {option}={found!r}; config.train.options.{option} must '
                f'be the same, got {asked!r}'
            )


def _check_classes(module: nnx.Module, start: Start, where: str, needs: str) -> None:
    found = start.start()
    for path, weight in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name = parameter_name(path)
        if name in found and found[name].shape != weight.shape:
            raise ConfigError(
                f'{where} was trained on other classes: {name} is {found[name].shape}, here '
                f'{weight.shape}; {needs}'
            )
