"""The networks that trainings leave in their workdirs, and what is noted of them there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsol_jax.config import Config, TrainConfig, flatten
from wsol_jax.models import zoo
from wsol_jax.models.network import Network, Probability
from wsol_jax.models.preprocessing import Preprocessing, as_preprocessing
from wsol_jax.models.weights import WeightsError
from wsol_jax.progress import read_progress
from wsol_jax.workdir import read_class_names, read_json, write_class_names, write_text

# Where they are used: orbax and optax are slow to import, and files of weights need neither.
if TYPE_CHECKING:
    from wsol_jax.training.method import TrainedMethod

_PREPROCESSING = 'checkpoints/preprocessing.json'
_STEPS = 'checkpoints/steps.json'
_CLASSES = 'checkpoints/class_names.json'
# Beside the checkpoints what they were made from; the other is of the whole workdir.
_CONFIGS = ('checkpoints/made_from.json', 'config.json')


@dataclass(frozen=True)
class Training:
    """A training in a workdir.

    Attributes:
        workdir: of it.
        config: its settings by name, such as 'network.name'; {} where nobody recorded them.
    """

    workdir: Path
    config: Mapping[str, Any]

    @property
    def method(self) -> 'TrainedMethod':
        """The method that it trains by."""
        from wsol_jax.training.methods import make_method

        name = self.config.get('train.method', '')
        return make_method(TrainConfig(method=name, options=self.options('train')))

    def options(self, group: str) -> dict[str, Any]:
        """Those of 'network' or of 'train'."""
        start = f'{group}.options.'
        return {k.removeprefix(start): v for k, v in self.config.items() if k.startswith(start)}

    def steps(self) -> tuple[int, int]:
        """Of the last checkpoint, and of the whole training: 0 where nothing tells.

        Raises:
            WeightsError: what is noted of the training is damaged.
        """
        from wsol_jax.training.checkpoints import Checkpoints

        with Checkpoints(self.workdir, read_only=True) as checkpoints:
            done = checkpoints.step()
        if (note := self.workdir / _STEPS).exists():
            total = read_json(note).get('steps')
            if type(total) is not int:
                raise WeightsError(f'{note}: tells no number of steps; delete it and run again')
            return done, total
        rows = read_progress(self.workdir)  # older versions noted none
        ends = [int(r['step']) for r in rows if (r['stage'], r['split']) == ('train', 'val')]
        return done, self.config.get('train.epochs', 0) * min(ends, default=0)

    def weights(self, *kinds: str) -> dict[str, np.ndarray]:
        """What is evaluated of the first of these kinds of checkpoints that is there, by name.

        Raises:
            WeightsError: none is there.
        """
        from wsol_jax.training.checkpoints import BEST_LOCALIZATION, NOT_KEPT, Checkpoints

        with Checkpoints(self.workdir, read_only=True) as checkpoints:
            kind = next(filter(checkpoints.step, kinds), None)
            if kind is None:
                folder = self.workdir / 'checkpoints'
                if checkpoints.step() and BEST_LOCALIZATION in kinds:
                    raise WeightsError(f'{folder}: {NOT_KEPT}')
                raise WeightsError(f'{folder}: holds no finished checkpoint')
            return checkpoints.weights(kind)

    def start(self) -> dict[str, np.ndarray]:
        """The weights that another training starts from: what it keeps, else the best or last.

        Raises:
            WeightsError: there are none.
        """
        return self.weights(self.config.get('train.keep', 'best'), 'best', 'last')

    def network(
        self,
        name: str,
        num_classes: int | None = None,
        *,
        preprocessing: str | Mapping[str, Any] | Preprocessing | None = None,
        probability: Probability | None = None,
        seed: int = 0,
        method: 'TrainedMethod | None' = None,
        **options: Any,
    ) -> Network:
        """Its best or last network, as it was set; see `load_network`.

        `method` is what it was trained by, where no setting tells.
        """
        from wsol_jax.training.methods import make_module

        done, total = self.steps()
        if 0 < done < total:
            raise WeightsError(
                f'{self.workdir / "checkpoints"}: holds step {done} of {total}; finish the '
                "training first, with 'train' in config.stages"
            )
        values = self.weights(self.config.get('train.keep', 'best'))
        classes = num_classes or zoo.classes_of(name, values, self.workdir)
        options = self.options('network') | options
        noted = recorded_preprocessing(self.workdir)
        found = zoo.find_preprocessing(name, None, preprocessing) if preprocessing else noted
        module = make_module(name, None, classes, method or self.method, seed, options, found)
        zoo.fill_module(name, module, values, self.workdir, strict=num_classes is None)
        probability = probability or probability_of(self.config)
        size = self.config.get('network.input_size') or None
        network = zoo.as_network(name, module, found, probability, size)
        names = _recorded_names(self.workdir)
        return replace(network, class_names=names if len(names) == network.num_classes else None)


def open_training(workdir: Path, name: str) -> Training:
    """The training of a network in a workdir.

    Args:
        workdir: of the training.
        name: of the network.

    Raises:
        WeightsError: the folder is no such workdir, or its network is another one.
    """
    if not (workdir / 'checkpoints').is_dir():
        raise WeightsError(
            f'{workdir}: holds no checkpoints; give the workdir of a training, or a weights file'
        )
    records = [read_json(workdir / file) for file in _CONFIGS if (workdir / file).exists()]
    config = records[0].get('config') if records else {}
    if not isinstance(config, Mapping):
        raise WeightsError(f'{workdir}: what it records of its config is damaged')
    trained = config.get('network.name', name)
    if trained != name:
        raise WeightsError(f'{workdir}: holds a training of {trained!r}, not of {name!r}')
    return Training(workdir, config)


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
    """A network in inference mode: random, with the weights of a file, or of a training.

    Args:
        name: one of NETWORKS.
        weights: .safetensors, .pth or .pt file under torchvision's names; 'timm/NAME',
            'hf-hub:OWNER/NAME', 'torchvision/NAME' or an address, which are fetched once; or the
            workdir of a training, whose best (or last, as it was set) checkpoint is opened at the
            input size, with the options and with the heads it was trained with; None keeps the
            random weights of `seed`.
        num_classes: see `models.load_network`; of a training likewise.
        preprocessing: see `models.load_network`; of a training None is what it was trained with.
        probability: see `models.load_network`.
        seed: for the initial weights.
        **options: see `models.build`.

    Raises:
        ValueError: an unknown name or option, or a wrong preprocessing or probability.
        WeightsError: the file is missing, unreadable or does not fit; or the workdir holds no
            finished training of this network.
    """
    facts = {'preprocessing': preprocessing, 'probability': probability, 'seed': seed, **options}
    if weights and Path(weights).is_dir():
        return open_training(Path(weights), name).network(name, num_classes, **facts)
    return zoo.load_network(name, weights, num_classes, **facts)


def trained_network(
    config: Config, workdir: Path, method: 'TrainedMethod | None' = None
) -> Network | None:
    """The network that the training of an experiment left; None if nothing was trained.

    Args:
        config: the experiment.
        workdir: of the training.
        method: that it was trained by; None for the one that the config names.

    Raises:
        WeightsError: training there is not finished.
    """
    if not (workdir / 'checkpoints').exists():
        return None
    training = Training(workdir, flatten(config))
    if not training.steps()[0]:
        return None
    return training.network(config.network.name, seed=config.seed, method=method)


def probability_of(config: Mapping[str, Any]) -> str | None:
    """What the logits stand for after a training with these settings; None for the usual."""
    of_loss = 'sigmoid' if config.get('train.loss') == 'sigmoid' else None
    return config.get('network.probability') or of_loss


def record_training(
    workdir: Path,
    steps: int,
    preprocessing: Preprocessing | None,
    class_names: Sequence[str] = (),
) -> None:
    """Notes beside the checkpoints of a training what those who open its network need to know.

    Args:
        workdir: of the training.
        steps: of the whole training: with fewer it is not finished.
        preprocessing: where the checkpoints expect other than the usual of their network.
        class_names: of the data set; () where it has none.
    """
    write_text(workdir / _STEPS, json.dumps({'steps': steps}) + '\n')
    if preprocessing:
        write_text(workdir / _PREPROCESSING, json.dumps(asdict(preprocessing)) + '\n')
    if class_names:
        write_class_names(workdir / _CLASSES, class_names)


def _recorded_names(workdir: Path) -> tuple[str, ...]:
    names = read_class_names(workdir / _CLASSES)
    if names is None:
        raise WeightsError(f'{workdir / _CLASSES}: holds no list of names; delete it')
    return names


def recorded_preprocessing(workdir: Path) -> Preprocessing | None:
    """What `record_training` noted; None where nothing is.

    Raises:
        ValueError: the note is damaged.
    """
    note = workdir / _PREPROCESSING
    if not note.exists():
        return None
    try:
        return as_preprocessing(read_json(note))
    except ValueError as error:
        raise ValueError(f'{note}: {error}') from None
