"""The models of the quickstart: how each is trained, optimized and converted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import conversion, tfmot, training
from tfopt.data import Split
from tfopt.methods.prune import Prune
from tfopt.methods.quantize_aware import QuantizeAware

if TYPE_CHECKING:
    from tfopt.quickstart import Progress

# The published recipe: PolynomialDecay from half to four fifths of the weights.
_INITIAL_SPARSITY = 0.5
_FINAL_SPARSITY = 0.8
# The best recipe: more zeros, placed over all layers together, and a coarser grid.
_BEST_SPARSITY = 0.9
_BEST_WEIGHT_BITS = 4
_BATCH_SIZE = 128
# The network is so small that Python's share of each step would count.
_STEPS_PER_EXECUTION = 8
# Pruning ends after this part of a training, which then mends what it broke.
_PRUNING_PART = 0.6

_BEST_PASSES = 3
_VERIFIED_EXAMPLES = 256
# Trainings of the whole quickstart, in multiples of its epochs.
PASSES = 4 + _BEST_PASSES


@dataclasses.dataclass(frozen=True)
class Models:
    """What the quickstart compares.

    Attributes:
        keras: Trained Keras models by name.
        tflite: Contents of `.tflite` files by name.
    """

    keras: dict[str, Any]
    tflite: dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Digits:
    """The data.

    Attributes:
        images: float32 array [n, 28, 28], from 0 to 1.
        labels: int32 array [n].
        test_images: float32 array [m, 28, 28].
        test_labels: int32 array [m].
    """

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains models of one Keras version on the same data in the same way."""

    keras: Any
    digits: Digits
    epochs: int
    seed: int
    progress: Progress

    @property
    def steps(self) -> int:
        """Optimizer steps of one training of `epochs` epochs."""
        return self.epochs * -(-len(self.digits.labels) // _BATCH_SIZE)

    def build(self) -> Any:
        """Returns the untrained network of the published comparison."""
        layers = self.keras.layers

        def glorot(offset: int) -> Any:
            return self.keras.initializers.GlorotUniform(seed=self.seed + offset)

        return self.keras.Sequential(
            [
                layers.InputLayer((28, 28)),
                layers.Reshape((28, 28, 1)),
                layers.Conv2D(12, 3, activation="relu", kernel_initializer=glorot(0)),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(10, kernel_initializer=glorot(1)),
            ]
        )

    def fit(
        self,
        model: Any,
        what: str,
        *,
        callbacks: Sequence[Any] = (),
        passes: int = 1,
        decay: bool = False,
    ) -> Any:
        """Trains a model for `passes` times the epochs and returns it.

        Args:
            model: The model; it is compiled here.
            what: Shown as progress.
            callbacks: Keras callbacks.
            passes: Multiple of the epochs.
            decay: Whether the learning rate falls to zero along a cosine.
        """
        epochs = self.epochs * passes
        self.progress.stage(f"training {what}, {epochs} epochs")
        optimizers = self.keras.optimizers
        rate: Any = 1e-3
        if decay:
            rate = optimizers.schedules.CosineDecay(2e-3, self.steps * passes)
        loss = self.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            optimizer=optimizers.Adam(rate),
            loss=loss,
            steps_per_execution=_STEPS_PER_EXECUTION,
        )
        examples = Split((self.digits.images, self.digits.labels))
        batches = examples.dataset(batch_size=_BATCH_SIZE, shuffle=True, seed=self.seed)
        ticks = self.keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: self.progress.epoch()
        )
        model.fit(
            batches,
            epochs=epochs,
            shuffle=False,  # the dataset does it
            verbose=0,
            callbacks=[*callbacks, ticks],
        )
        # `predict` is measured as it is by default, one step per execution.
        model.compile(optimizer="adam", loss=loss)
        return model


def native(trainer: Trainer) -> Models:
    """Makes all models with tfopt's own methods.

    Args:
        trainer: Of Keras 3 or tf_keras.
    """
    base = trainer.fit(trainer.build(), "base")

    prune = [_published_pruning(trainer)]
    pruned = training.prepare(base, prune)
    trainer.fit(pruned, "pruned", callbacks=prune)
    pruned = training.finalize(pruned, prune)

    quantize = [QuantizeAware()]
    qat = training.prepare(base, quantize)
    trainer.fit(qat, "qat", callbacks=quantize)

    both = [QuantizeAware(), Prune(keep_existing_zeros=True)]
    pruned_qat = training.prepare(pruned, both)
    trainer.fit(pruned_qat, "pruned_qat", callbacks=both)

    return Models(
        keras={"base": base, "pruned": pruned, "qat": qat},
        tflite={
            "pruned_tflite": _convert(trainer, pruned, "pruned_tflite"),
            "qat_tflite": _convert(
                trainer, training.finalize(qat, quantize), "qat_tflite"
            ),
            "pruned_qat_tflite": _convert(
                trainer, training.finalize(pruned_qat, both), "pruned_qat_tflite"
            ),
            "best_tflite": best(trainer, base),
        },
    )


def original(trainer: Trainer) -> Models:
    """Makes the published models with TFMOT, and the best one with tfopt.

    Args:
        trainer: Of tf_keras; TFMOT knows no other.
    """
    base = trainer.fit(trainer.build(), "base")
    best_tflite = best(trainer, base)

    # TFMOT shares the variables with the model that it wraps.
    wrapped, callbacks = tfmot.prune_low_magnitude(
        training.prepare(base, []),
        initial_sparsity=_INITIAL_SPARSITY,
        final_sparsity=_FINAL_SPARSITY,
        begin_step=0,
        end_step=max(_pruning_steps(trainer) // 100 * 100, 100),
    )
    trainer.fit(wrapped, "pruned", callbacks=callbacks)
    pruned = tfmot.strip_pruning(wrapped)

    qat = trainer.fit(tfmot.quantize_model(base), "qat")
    pruned_qat = tfmot.quantize_model(pruned, preserve_sparsity=True)
    trainer.fit(pruned_qat, "pruned_qat")

    return Models(
        keras={"base": base, "pruned": pruned, "qat": qat},
        tflite={
            "pruned_tflite": _convert(trainer, pruned, "pruned_tflite"),
            "qat_tflite": _convert(trainer, qat, "qat_tflite"),
            "pruned_qat_tflite": _convert(trainer, pruned_qat, "pruned_qat_tflite"),
            "best_tflite": best_tflite,
        },
    )


def best(trainer: Trainer, base: Any) -> bytes:
    """Returns the smallest `.tflite` that tfopt makes of the trained base model."""
    methods = [
        QuantizeAware(weight_bits=_BEST_WEIGHT_BITS),
        Prune(
            initial_sparsity=_INITIAL_SPARSITY,
            final_sparsity=_BEST_SPARSITY,
            end_step=_pruning_steps(trainer, passes=_BEST_PASSES),
            scope="global",
        ),
    ]
    model = training.prepare(base, methods)
    trainer.fit(model, "best", callbacks=methods, passes=_BEST_PASSES, decay=True)
    return _convert(trainer, training.finalize(model, methods), "best_tflite")


def _published_pruning(trainer: Trainer) -> Prune:
    return Prune(
        initial_sparsity=_INITIAL_SPARSITY,
        final_sparsity=_FINAL_SPARSITY,
        end_step=_pruning_steps(trainer),
    )


def _pruning_steps(trainer: Trainer, *, passes: int = 1) -> int:
    """Returns the step at which pruning ends; few examples make few steps."""
    return max(int(passes * trainer.steps * _PRUNING_PART), 1)


def _convert(trainer: Trainer, model: Any, name: str) -> bytes:
    trainer.progress.stage(f"converting {name}")
    return conversion.convert(
        model,
        quantization="none" if name == "pruned_tflite" else "int8",
        # Already calibrated by training; real digits are what verification runs on.
        representative_dataset=trainer.digits.images[:_VERIFIED_EXAMPLES],
        strip_debug_info=True,
    )
