"""What makes a weight worth keeping: five scores, larger is better."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt._keras import activations, gradients, kernels, variables
from tfopt.types import TfoptError

Score = Literal["magnitude", "movement", "gradient", "activation", "random"]

SCORES: tuple[Score, ...] = (
    "magnitude",
    "movement",
    "gradient",
    "activation",
    "random",
)
# Those that can do with nothing but the weights.
_STATELESS = ("magnitude", "random")

Arrays = Mapping[str, np.ndarray]


def check(score: str, data: Any) -> None:
    """Raises unless a score exists and has the data it needs.

    Raises:
        ValueError: It does not; the message names the argument.
    """
    if score not in SCORES:
        raise ValueError(f"`score` must be one of {SCORES}. Received: score={score!r}")
    if score == "activation" and data is None:
        raise ValueError(
            '`data` must be given for the score "activation": batches whose passage '
            "through the model is measured. Received: data=None"
        )
    if data is not None and score not in ("activation", "gradient"):
        raise ValueError(
            f"`data` must not be given: the score {score!r} does not read any. "
            f"Received: data of type {type(data).__name__}"
        )
    if data is not None and iter(data) is data:
        raise ValueError(
            "`data` must be batches that can be read more than once, such as a list "
            "or a tf.data.Dataset; this is an iterator. "
            f"Received: data of type {type(data).__name__}"
        )


def is_observed(score: str, data: Any) -> bool:
    """Returns whether a score comes from the training steps."""
    return score not in _STATELESS and data is None


def of_data(
    score: str,
    model: Any,
    weights: Sequence[variables.Weight],
    values: Arrays,
    *,
    data: Iterable[Any] | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Returns scores that need no training, by weight name.

    - magnitude: `|w|`.
    - gradient: `|w * dL/dw|`, the first-order change of the loss L without the weight,
      averaged over the batches (Molchanov et al., https://arxiv.org/abs/1611.06440; at
      initialisation: SNIP, Lee et al., https://arxiv.org/abs/1810.02340).
    - activation: `|w|` times the root mean square of its input x (Wanda, Sun et al.,
      https://arxiv.org/abs/2306.11695, has the norm of x: the same order in a layer).
    - random: uniform noise that depends on `seed` and the weight's name alone.

    Args:
        score: One of SCORES, but not "movement".
        model: The model; compiled for "gradient".
        weights: The weights to score.
        values: Their values.
        data: Batches, for "gradient" and "activation".
        seed: For "random".

    Raises:
        TfoptError: The data does not fit, or a layer's inputs cannot be measured.
    """
    if score == "magnitude":
        return {name: np.abs(value) for name, value in values.items()}
    if score == "random":
        return {name: _noise(name, value.shape, seed) for name, value in values.items()}
    if score == "activation":
        norms = activations.input_norms(model, weights, data or ())
        result = {}
        for weight in weights:
            layout = kernels.layout(weight)
            matrices = layout.matrices(np.abs(values[weight.name]))
            product = matrices * np.broadcast_to(norms[weight.name], matrices.shape)
            result[weight.name] = layout.kernel(product).astype(np.float32)
        return result
    sums = {name: np.zeros_like(value) for name, value in values.items()}
    count = 0
    for found in gradients.of_batches(model, weights, data or ()):
        count += 1
        for weight, gradient in zip(weights, found, strict=True):
            product = values[weight.name] * gradient.numpy().astype(np.float32)
            sums[weight.name] += np.abs(product)
    if not count:
        raise TfoptError("`data` has no batches. Received: data of 0 batches")
    return {name: total / count for name, total in sums.items()}


class Scorer:
    """Scores for the masks of one `fit`.

    "gradient" without data and "movement" are observed where the optimizer gets the
    gradients, inside the compiled training step: one product and sum per weight.
    Movement is `-sum(w * dL/dw)` since `fit` began: weights that move away from zero
    win (Sanh et al., https://arxiv.org/abs/2005.07683; there a pruned weight goes on
    scoring, here it is zero and its score stands still).

    Args:
        score: One of SCORES.
        model: The compiled model.
        weights: The weights to score.
        data: As for `of_data`; None: what training sees.
        seed: As for `of_data`.
    """

    def __init__(
        self,
        score: str,
        model: Any,
        weights: Sequence[variables.Weight],
        *,
        data: Iterable[Any] | None,
        seed: int,
    ):
        self.score = score
        self._model = model
        self._weights = list(weights)
        self._data, self._seed = data, seed
        self._sums: dict[str, tf.Variable] = {}
        self._count: Any = None
        self._last: dict[str, np.ndarray] = {}
        self._active: tf.Variable | None = None
        self._undo: Callable[[], None] | None = None

    @property
    def is_observed(self) -> bool:
        """Whether the score comes from the training steps."""
        return is_observed(self.score, self._data)

    def install(self) -> None:
        """Starts observing; the train function must be traced anew."""
        if not self.is_observed:
            return
        make = functools.partial(
            tf.Variable,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
        with self._model.distribute_strategy.scope():
            for weight in self._weights:
                self._sums[weight.name] = make(
                    tf.zeros(weight.shape, tf.float32), name="score"
                )
            self._count = make(tf.zeros((), tf.float32), name="score_count")
            self._active = tf.Variable(True, trainable=False, name="score_active")
        self._undo = gradients.observe(self._model.optimizer, self._see)

    def stop(self) -> None:
        """Stops observing, within the train function as it is."""
        if self._active is not None:
            self._active.assign(False)

    def remove(self) -> None:
        """Leaves the optimizer as it was; the next train function is without it."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def compute(self, values: Arrays) -> dict[str, np.ndarray]:
        """Returns the scores by weight name, of the weights' shapes.

        Raises:
            TfoptError: No training step has been seen.
        """
        if not self.is_observed:
            return of_data(
                self.score,
                self._model,
                self._weights,
                values,
                data=self._data,
                seed=self._seed,
            )
        count = 0.0 if self._count is None else float(_read(self._count))
        if count:
            self._last = {
                name: _read(total) / np.float32(count)
                for name, total in self._sums.items()
            }
            if self.score == "gradient":  # the next average starts anew
                for total in (*self._sums.values(), self._count):
                    total.assign(tf.zeros_like(_read(total)))
        if not self._last:
            raise TfoptError(
                f"No gradient was seen before the score {self.score!r} was needed. "
                "Prune later than at the first step (`begin_step`, and with "
                "steps_per_execution after the first execution), let the model's own "
                'optimizer apply the gradients, or with the score "gradient" give '
                f"`data`. Received: score={self.score!r}"
            )
        return self._last

    def _see(self, pairs: gradients.Pairs) -> None:
        found = {id(variable): gradient for gradient, variable in pairs}
        for weight in self._weights:
            if found.get(id(weight.variable)) is None:
                raise gradients.no_gradient(weight.name)

        def add() -> tf.Tensor:
            for weight in self._weights:
                self._add(weight, found[id(weight.variable)])
            self._count.assign_add(1.0)
            return tf.constant(True)

        # Masks that are final need no more scores.
        tf.cond(tf.convert_to_tensor(self._active), add, lambda: tf.constant(False))

    def _add(self, weight: variables.Weight, gradient: Any) -> None:
        value = tf.cast(tf.convert_to_tensor(weight.variable), tf.float32)
        product = value * tf.cast(gradients.dense(gradient), tf.float32)
        seen = tf.abs(product) if self.score == "gradient" else -product
        self._sums[weight.name].assign_add(seen)


def _read(variable: Any) -> np.ndarray:
    return tf.convert_to_tensor(variable).numpy()


def _noise(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.random(shape, np.float32)
