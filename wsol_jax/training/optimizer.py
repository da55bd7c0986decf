"""The optimizer of the training stage."""

import jax
import optax

from wsol_jax.config import TrainConfig


def make_optimizer(setting: TrainConfig, steps: int) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, linear warm-up, cosine decay, and weight decay on kernels.

    Args:
        setting: rates and momentum.
        steps: of the whole training.
    """
    warmup = min(max(1, round(setting.warmup * steps)), steps - 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, setting.learning_rate, warmup, steps)
    return optax.chain(
        # Before momentum, as torch's SGD does; biases and batch norm have one axis.
        optax.add_decayed_weights(
            setting.weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
        ),
        optax.sgd(rate, momentum=setting.momentum, nesterov=True),
    )
