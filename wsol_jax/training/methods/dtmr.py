"""Discriminative triad matching and reconstruction (DTMR; Sun et al. 2021, arXiv 2106.04053)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.data.records import Listed, Source, Targets
from wsol_jax.fields import Range, documented, setting
from wsol_jax.grounding.sentences import Sentences, sentences_of
from wsol_jax.grounding.words import (
    SIZE,
    WordVectors,
    glove_size,
    random_vectors,
    read_glove,
    words_of,
)
from wsol_jax.models import Network
from wsol_jax.models.grounding import ATTENTIONS, CLASS, FACTORS, OBJECT, RELATION, GroundingHeads
from wsol_jax.models.heads import Heads, Outputs
from wsol_jax.training.method import (
    ALL_BUT_HEADS,
    Shard,
    TrainedMethod,
    Update,
    known_endpoint,
)

_FACTOR = Range(0, 1000)
_TOLD = {'subject': CLASS, 'object': OBJECT, 'relation': RELATION}  # what must be told again


@documented
@dataclass(frozen=True, kw_only=True)
class DTMR(TrainedMethod):
    """Finds which proposal a sentence means, from images and sentences alone.

    A sentence is a triad of subject, relation and object. Every pair of proposals is scored for it;
    from what the scores attend to, small networks must tell the three words again, and nothing else
    is learnt from. The pair with the highest 2 a_sub + a_obj + a_pair is chosen.

    The network is frozen, as the published one is. Words are vectors that are never trained: a
    learnt vector is its own target, and the loss is least where all of them are alike. Val's
    'grounded' is the percentage of sentences whose proposal has an IoU of .5 with the true box; the
    best epoch is that of the least loss, which reads no true box.

    Weak where a relation tells two boxes of one class apart: nothing says which box of a pair is
    the subject, so that its opposite may be found; and raw scores may have the other sign.
    """

    best: ClassVar[tuple[str, Literal['max', 'min']]] = ('loss', 'min')
    layer: str = setting(
        '', "endpoint whose features the proposals have; '' for the last", 'checkpoints'
    )
    vectors: str = setting(
        '',
        "text file of word vectors in GloVe's form; '' for a fixed random vector of each word",
        'checkpoints',
    )
    width: int = setting(
        512,
        'of the hidden layers; the first of the reconstructions is twice as wide',
        'checkpoints',
        Range(1, 65_536),
    )
    attention: str = setting(
        'raw',
        "what features are summed up by: the scores themselves ('raw', as published) or their "
        "'softmax'",
        'checkpoints',
        choices=ATTENTIONS,
    )
    class_embedding: bool = setting(
        True,
        'a subject is looked for, and told, by the class whose name is nearest to it; else by its '
        'own words',
        'checkpoints',
    )
    place: bool = setting(True, 'pairs know where their proposals lie', 'checkpoints')
    subject: float = setting(1.0, 'factor on the error of the subject', 'checkpoints', _FACTOR)
    object: float = setting(1.0, 'factor on the error of the object', 'checkpoints', _FACTOR)
    relation: float = setting(
        1.0,
        'factor on the error of the relation; at 0 pairs have no score of their own',
        'checkpoints',
        _FACTOR,
    )
    frozen: bool = setting(True, 'the network keeps its weights', 'checkpoints')

    @property
    def several(self) -> bool:
        """No label is looked at."""
        return False

    @property
    def freeze(self) -> tuple[str, ...]:
        """All but the heads."""
        return (ALL_BUT_HEADS,) if self.frozen else ()

    def num_logits(self, train: Source) -> int:
        """Nobody reads them: one a class, or one."""
        return max(1, train.num_classes)

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """See `GroundingHeads`.

        Raises:
            ConfigError: the network has no such layer.
            DataError: the vectors cannot be read.
        """
        layer = known_endpoint(network, 'layer', self.layer or network.last_layer)
        factors = FACTORS if self.relation else (*FACTORS[:2], 0.0)
        size = glove_size(self.vectors) if self.vectors else SIZE
        return GroundingHeads(
            network, layer, size, self.width, self.place, self.attention, factors, rngs
        )

    def targets(self, source: Source, required: bool) -> Targets:
        """See `Sentences`; val alone, not what is trained on, tells which proposals are right.

        Raises:
            DataError: an image has no sentences or boxes, or the vectors cannot be read.
        """
        return self.sentences(source, scored=not required)

    def sentences(self, source: Source, scored: bool = False) -> Sentences:
        """The targets of a source.

        Args:
            source: of images with expressions.
            scored: whether they tell which proposals are right.

        Raises:
            DataError: an image has no sentences or boxes, or the vectors cannot be read.
        """
        listed = Listed(source)
        words = words_of(listed)
        vectors = read_glove(self.vectors, words) if self.vectors else random_vectors(words)
        return sentences_of(listed, WordVectors(vectors), self.class_embedding, scored)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The errors of the words told, added up; logged beside it: each, and on val 'grounded'.

        See `TrainedMethod.loss`.
        """
        del update
        errors = word_errors(outputs.extras, batch.targets)
        factors = {'subject': self.subject, 'object': self.object, 'relation': self.relation}
        loss = sum((factors[name] * error for name, error in errors.items()), jnp.float32(0))
        values = {f'{name}_error': error for name, error in errors.items()}
        if 'right' in batch.targets:
            values['grounded'] = grounded(outputs.extras['scores'], batch.targets)
        return loss, values


def word_errors(
    told: Mapping[str, jax.Array], targets: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """How far the words that are told lie from what they should be.

    Args:
        told: 'subject', 'object' and 'relation' [B,S,D].
        targets: 'phrases' [B,S,4,D] and 'sentences' [B,S], see `Sentences`.

    Returns:
        For each of the three [B], the mean square over the components and the sentences of an
        image; 0 where it has none.
    """
    there = targets['sentences']

    def error(name: str, place: int) -> jax.Array:
        wanted = targets['phrases'][:, :, place]
        return sentence_mean(jnp.mean((told[name] - wanted) ** 2, axis=-1), there)

    return {name: error(name, place) for name, place in _TOLD.items()}


def grounded(scores: jax.Array, targets: Mapping[str, jax.Array]) -> jax.Array:
    """The percentage of sentences whose proposal is right: [B]; 0 where an image has none.

    Args:
        scores: [B,S,N,N] of pairs, -inf where there is none.
        targets: 'right' [B,S,N] and 'sentences' [B,S], see `Sentences`.
    """
    chosen = jnp.argmax(jnp.max(scores, axis=-1), axis=-1)
    right = jnp.take_along_axis(targets['right'], chosen[..., None], axis=-1)[..., 0]
    return 100 * sentence_mean(right.astype(jnp.float32), targets['sentences'])


def sentence_mean(values: jax.Array, there: jax.Array) -> jax.Array:
    """The mean over the sentences of each image: [B,S], bool [B,S] -> [B]."""
    total = jnp.sum(jnp.where(there, values, 0), axis=1)
    return total / jnp.maximum(jnp.sum(there, axis=1), 1)
