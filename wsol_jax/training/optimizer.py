"""The optimizer of the training stage: schedules, rates by parameter, what is frozen."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import optax

from wsol_jax.config import ConfigError, TrainConfig


def make_optimizer(
    setting: TrainConfig, names: Iterable[str], steps: int, epoch_steps: int
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum or AdamW, with clipping, a schedule and rates by parameter.

    Weight decay is on kernels only: not on biases, what scales, tokens and position embeddings.

    Args:
        setting: of the training.
        names: of the parameters that are trained.
        steps: of the whole training.
        epoch_steps: of one epoch.
    """
    parts = [optax.clip_by_global_norm(setting.clip)] if setting.clip else []
    rate = make_schedule(setting, steps, epoch_steps)
    if setting.optimizer == 'adamw':
        parts.append(optax.adamw(rate, weight_decay=setting.weight_decay, mask=_kernels))
    else:
        # Before momentum, as torch's SGD does.
        parts.append(optax.add_decayed_weights(setting.weight_decay, mask=_kernels))
        parts.append(optax.sgd(rate, momentum=setting.momentum, nesterov=True))
    if setting.multipliers:
        parts.append(_scale_by_name(setting.multipliers, names))
    return optax.chain(*parts)


def make_schedule(setting: TrainConfig, steps: int, epoch_steps: int) -> optax.Schedule:
    """Step -> learning rate: a linear warm-up, then the schedule of the settings.

    Args:
        setting: of the training.
        steps: of the whole training.
        epoch_steps: of one epoch.
    """
    peak = setting.learning_rate
    warmup = min(round(setting.warmup * steps), steps - 1)
    rest = steps - warmup
    if setting.schedule == 'cosine':
        main = optax.cosine_decay_schedule(peak, rest)
    elif setting.schedule == 'poly':
        main = optax.polynomial_schedule(peak, 0.0, setting.power, rest)
    else:
        epochs = setting.step_epochs if setting.schedule == 'step' else ()
        drops = Counter(round(epoch * epoch_steps) - warmup for epoch in epochs)
        factors = {step: setting.step_factor**count for step, count in drops.items()}
        main = optax.piecewise_constant_schedule(peak, factors)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def parameter_name(path: Sequence[Any]) -> str:
    """'Mixed_6e.branch1x1.conv.kernel' for a path in a network's state."""
    keys = (k for k in path if not isinstance(k, jax.tree_util.GetAttrKey))  # the variable's value
    return '.'.join(str(getattr(k, 'key', k)) for k in keys)


def is_frozen(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name starts with one of these regexes."""
    return any(re.match(pattern, name) for pattern in patterns)


def check_patterns(setting: TrainConfig, names: Sequence[str]) -> None:
    """Checks that every regex of the settings means some parameter.

    Args:
        setting: of the training.
        names: of all parameters.

    Raises:
        ConfigError: a regex finds nothing, or everything is frozen.
    """
    for key, pattern, find in [
        *(('multipliers', pattern, re.search) for pattern, _ in setting.multipliers),
        *(('freeze', pattern, re.match) for pattern in setting.freeze),
    ]:
        if not any(find(pattern, name) for name in names):
            tops = ', '.join(dict.fromkeys(name.split('.')[0] for name in names))
            raise ConfigError(
                f'config.train.{key}: {pattern!r} finds no parameter; they start with {tops}'
            )
    if all(is_frozen(name, setting.freeze) for name in names):
        raise ConfigError('config.train.freeze leaves no parameter to train')


def _kernels(params: Any) -> Any:
    named = jax.tree_util.tree_map_with_path
    return named(lambda path, _: parameter_name(path).endswith('kernel'), params)


def _scale_by_name(
    multipliers: Sequence[tuple[str, float]], names: Iterable[str]
) -> optax.GradientTransformation:
    """Scales the update of every parameter by the product of the factors its name takes."""

    def factor(name: str) -> float:
        return math.prod(f for pattern, f in multipliers if re.search(pattern, name))

    def factors(params: Any) -> Any:
        named = jax.tree_util.tree_map_with_path
        return named(lambda path, _: factor(parameter_name(path)), params)

    return optax.multi_transform({f: optax.scale(f) for f in map(factor, names)}, factors)
