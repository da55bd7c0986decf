"""The training methods by name; one file each."""

from wsol_jax.config import TrainConfig
from wsol_jax.training.method import TrainedMethod


def make_method(setting: TrainConfig) -> TrainedMethod:
    """The method that the settings of a training name."""
    return TrainedMethod(label_smoothing=setting.label_smoothing)
