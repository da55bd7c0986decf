"""How well a network localizes after an epoch of its training: what tells its best epoch."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial, reduce
from itertools import chain, islice
from operator import add
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from wsol_jax.config import Config, ConfigError, LocalizeConfig
from wsol_jax.data import Batch, Labels, Record, Source, evaluation_batches, stored_size
from wsol_jax.data.records import BadImage
from wsol_jax.evaluation.curves import Curves
from wsol_jax.evaluation.processes import mapper
from wsol_jax.evaluation.scoring import rules_of, score_part
from wsol_jax.evaluation.split import ImageMaps
from wsol_jax.evaluation.table import joined
from wsol_jax.hosts import gathered, own_share
from wsol_jax.localization.method import HEAD
from wsol_jax.localization.plan import MapPlan
from wsol_jax.localization.stage import MapOutputs, facts_of, launcher, plan_of
from wsol_jax.maps import Key
from wsol_jax.models import Network
from wsol_jax.parallel import local_devices, one_ahead

NAME = 'MaxBoxAccV2'
_INSTEAD = (
    "train.keep='best_localization': %s at %s is not defined for this network; the best epoch is "
    'that of %s at %s'
)
_NO_BOXES = (
    "config.train.keep='best_localization' needs boxes of images in val, and there are none that "
    "can be read; keep 'best' or 'last'"
)


class _Result(NamedTuple):
    batch: Batch
    outputs: MapOutputs


class EpochScore:
    """Network -> {'MaxBoxAccV2': percent}, of one map for the label of each image that has boxes.

    The map is that of the network's heads, else CAM. Where no global average pooling and linear
    layer follow the last layer, CAM is not defined: then it is LayerCAM at the last layer that the
    class score depends on, and that is told once. Thresholds, canvas and closing are those of
    `config.evaluate`. Each call is a pass over the images, and cuts their maps at all thresholds.
    """

    def __init__(self, config: Config, network: Network, source: Source):
        """Reads all records, once.

        Args:
            config: the experiment.
            network: what will be trained; its weights do not count.
            source: of val.

        Raises:
            ConfigError: no image has a box.
            DataError: an image with boxes has no label, or several.
        """
        setting = LocalizeConfig(batch_size=config.localize.batch_size)
        self._config = replace(config, localize=setting)
        self._rules = replace(rules_of(config.evaluate), protocols=())
        self._source, self._records = source, _with_boxes(source)
        self._maps = _maps_of(network)

    def __call__(self, network: Network) -> dict[str, float]:
        """The score of a network by name.

        Args:
            network: of the same make as that of the beginning.
        """
        results = self._results(network)
        first = list(islice(results, 1))  # none where a process has no share
        while len(self._maps) > 1 and any(gathered(any(map(_is_blind, first)))):
            logging.warning(_INSTEAD, *self._maps.pop(0), *self._maps[0])
            results = self._results(network)
            first = list(islice(results, 1))
        key = self._maps[0]
        relu = self._plan(network).relu[key]
        parts = (self._part(network, relu, result) for result in chain(first, results))
        score = partial(score_part, rules=self._rules, kept={key: np.zeros(0)})
        with mapper(self._config.evaluate.processes) as over:
            own = [_plain(scores.curves) for scores in joined(over(score, parts)).values()]
        return {NAME: reduce(add, map(_curves, chain(*gathered(own)))).max_box_acc_v2}

    def _results(self, network: Network) -> Iterator[_Result]:
        """The maps of all images that have boxes, batch by batch."""
        config, plan = self._config, self._plan(network)
        devices = local_devices(config.parallel)
        size = config.network.input_size or network.input_size
        batch_size = devices.round_up(min(config.localize.batch_size, len(self._records)))
        launch = launcher(config, network, plan)
        images, labels = np.array(sorted(self._records)), Labels(required=True)
        images = images[own_share(np.arange(len(images)), 1)].tolist()
        batches = evaluation_batches(self._source, size, batch_size, images, targets=labels)
        for batch, outputs in one_ahead((batch, launch(batch)) for batch in batches):
            yield _Result(batch, devices.gather(outputs))

    def _plan(self, network: Network) -> MapPlan:
        method, layer = self._maps[0]
        layers = () if layer == HEAD else (layer,)
        asked = replace(self._config.localize, methods=(method,), layers=layers)
        return plan_of(asked, network)

    def _part(self, network: Network, relu: bool, result: _Result) -> ImageMaps:
        """What is scored of a batch."""
        batch, (logits, classes, maps, _) = result
        valid, facts = batch.valid, facts_of(network, logits, classes)
        records = [self._records[i] for i in batch.index[valid].tolist()]
        found = {key: (np.maximum(m, 0) if relu else m)[valid] for key, m in maps.items()}
        columns = facts['classes'][valid], facts['top'][valid]
        return ImageMaps(records, found, *columns, masked=False)


def _with_boxes(source: Source) -> dict[int, Record]:
    """What is known of the images to score, by position: their size for certain, no pixels."""
    label, found = Labels(required=True), {}
    for i in range(len(source)):
        record = source[i]
        if not record.boxes:
            continue
        label(record)
        with suppress(BadImage):  # then it does not decode either
            found[i] = replace(record, size=stored_size(record), image=b'', masks=())
    if not found:
        raise ConfigError(_NO_BOXES)
    return found


def _maps_of(network: Network) -> list[Key]:
    """The (method, layer) of the map that is scored; where it is not defined, the next one."""
    if network.own_map:
        return [(network.own_map.name, HEAD)]
    cam = ('cam', network.last_layer)
    others = [('layer_cam', layer) for layer in reversed(network.layers())]
    if network.last_layer not in network.unread:
        return [cam, *others]
    logging.warning(_INSTEAD, *cam, *others[0])
    return others


def _plain(curves: Curves) -> dict[str, Any]:
    """As lists and numbers."""
    return {name: np.asarray(value).tolist() for name, value in vars(curves).items()}


def _curves(plain: Mapping[str, Any]) -> Curves:
    arrays: dict[str, Any] = {
        n: np.array(v) if isinstance(v, list) else v for n, v in plain.items()
    }
    return Curves(**arrays)


def _is_blind(result: _Result) -> bool:
    """Whether the map is not defined, or its layer does not matter, for any image of a batch."""
    valid = result.batch.valid
    return bool(valid.any()) and any((f[valid] > 0).all() for f in result.outputs.faults.values())
