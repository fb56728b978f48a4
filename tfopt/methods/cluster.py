"""Weight clustering as one Keras callback, without wrappers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfopt import _keras
from tfopt._keras import fake_quantize, variables
from tfopt.methods import _centroids, _cluster_arguments
from tfopt.methods._cluster_run import Plan, Run
from tfopt.methods._clustering import Clusters
from tfopt.methods._codebook import Codebook
from tfopt.methods._guarding import GuardingMethod, warn
from tfopt.types import TfoptError, VerificationError

_log = logging.getLogger(__name__)


class Cluster(GuardingMethod[Run]):
    """Lets the weights of a tensor share a few values while the model trains.

    Each tensor gets `num_clusters` centroids, and each of its weights the value of the
    nearest one. The optimizer's updates go to the centroids (each moves by the mean of
    its members' updates) and to latent weights that decide which cluster a weight is
    in. All of this happens inside every optimizer step. So no tensor has more than
    `num_clusters` different values after any batch, for any callback and in any
    checkpoint, and the model needs no stripping: it stays the model it was. Works in
    place on any built Keras 3 or tf_keras model, also on one that `QuantizeAware` has
    prepared.

    Files with few different values compress well (gzip, or an application package).
    Raw size and speed stay as they are.

    Combined with `Prune` in one `fit`, in either order, zeros stay zeros, and zero is
    one of the clusters. As pruning ranks weights by size, and clusters make many of
    them equal, let clustering begin when pruning ends: `begin_step=prune.end_step`.

    Args:
        num_clusters: Number of different values per tensor, zero included; from 2 (3
            with channel scales) to 65536. TFMOT's `number_of_clusters`.
        initialization: How the k-means begins that finds the first centroids:
            `"kmeans++"`, `"linear"` (evenly spaced values), `"density"` (evenly spaced
            quantiles) or `"random"`. TFMOT's `cluster_centroids_init`. A tensor that
            has no more than `num_clusters` values starts with those.
        per_channel: Whether each output channel has centroids of its own.
        channel_scales: Whether the centroids of a tensor are relative to a factor that
            each output channel has. int8 files have such scales; there, a tensor then
            has at most `num_clusters` different int8 codes, while its float values
            differ by channel. `None`: where the layer rounds that way in training, as
            with `QuantizeAware()`. Pass True for models that `tfopt.convert` will
            quantize without it. Embedding tables never have channels.
        include: Globs for names such as `"block/dense/kernel"` or for leading parts of
            them such as `"block"`; only what matches is clustered. `None`: everything.
        exclude: Globs of what not to cluster.
        preserve_zeros: Whether weights that are zero when clustering begins stay zero.
            True: one cluster is zero, also if there are no zeros yet. `"auto"`: as
            soon as there are some. False: those may change that no pruning holds.
        begin_step: Optimizer step from which on weights are clustered. 0: before the
            first training step.
        end_step: Step from which on weights stay in their clusters, and only centroids
            move: a weight that changes clusters late does harm that no training mends.
            `None`: half-way from where clustering begins to the end of what `fit`
            plans.
        frequency: Weights go to the nearest cluster every `frequency` steps. `None`:
            they stay in their first cluster.
        seed: For the initializations that draw.
        strict: Whether a kernel that is not trainable is an error, unless `include`
            and `exclude` leave it out. Otherwise it stays as it is.

    Attributes:
        report: After `fit` has started: one dictionary per weight of the model with
            `name`, `shape`, `size`, `clustered`, `reason` (why not, else `""`),
            `clusters` (at most so many values, else None) and `distinct` (so many it
            has, when training last ended; else None). With `per_channel`, of the
            channel with the most; with channel scales, of the int8 codes.

    Raises:
        ValueError: An argument is wrong; patterns match nothing; or, from `fit`,
            clustering begins after the training that `fit` plans.
        TfoptError: From `fit`: weights are not finite; or, with `strict`, a kernel is
            not trainable.

    Warns:
        UserWarning: Something wrote weights past the optimizer, or training ended
            before clustering began.

    Reference:
        Han et al., Deep Compression, https://arxiv.org/abs/1510.00149, section 3; the
        latent weights are those of BinaryConnect, https://arxiv.org/abs/1511.00363.

    Example:
        >>> cluster = Cluster(num_clusters=16)
        >>> history = model.fit(images, labels, 8, callbacks=[cluster], verbose=0)
        >>> model = cluster.finalize(model)  # counts the values
        >>> cluster.report[0]["name"], cluster.report[0]["distinct"]
        ('logits/kernel', 16)
    """

    def __init__(
        self,
        *,
        num_clusters: int = 16,
        initialization: _centroids.Initialization = "kmeans++",
        per_channel: bool = False,
        channel_scales: bool | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        preserve_zeros: bool | Literal["auto"] = "auto",
        begin_step: int = 0,
        end_step: int | None = None,
        frequency: int | None = 1,
        seed: int = 0,
        strict: bool = False,
    ):
        super().__init__()
        self.num_clusters = num_clusters
        self.initialization = initialization
        self.per_channel = per_channel
        self.channel_scales = channel_scales
        self.include = include
        self.exclude = exclude
        self.preserve_zeros = preserve_zeros
        self.begin_step = begin_step
        self.end_step = end_step
        self.frequency = frequency
        self.seed = seed
        self.strict = strict
        # What the last training promised, by weight name: `finalize` may be given a
        # model in which other methods have replaced the layers.
        self._promised: dict[str, Codebook] = {}
        _cluster_arguments.check(self)

    def finalize(self, model: Any) -> Any:
        """Returns the model, after counting the different values of its weights.

        Raises:
            VerificationError: Some tensor has more than promised.
        """
        self._end_run()  # of an aborted fit
        _keras.check_model(model)
        plan = self._plan(model)
        found = {}
        for name, weight in plan.weights.items():
            codebook = self._promised.get(name, plan.codebooks[name])
            distinct = codebook.count_distinct(variables.to_numpy(weight.variable))
            if distinct > self.num_clusters:
                found[name] = distinct
        if found:
            raise VerificationError(
                f"Weights have more than {self.num_clusters} different values: {found}."
                " Train with Cluster in every fit, past `begin_step`, and let no later "
                "callback bring back earlier weights (restore_best_weights). "
                f"Received: num_clusters={self.num_clusters!r}, "
                f"begin_step={self.begin_step!r}"
            )
        return model

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Begins, or fixes who is in which cluster, if due in the coming execution."""
        del logs
        run = self._current_run(batch)
        due = self.begin_step if run.guard is None else run.end
        if due is None:
            return
        # An upper bound, so that the true count is read only when it matters: reading
        # it waits for the device.
        steps = variables.steps_per_execution(self.model)
        run.reach += steps
        if run.reach >= due:
            run.reach = variables.iterations(self.model, ahead=steps)
        if run.reach < due:
            return
        if run.guard is None:
            run.guard = self._begin(run.plan)
        else:
            run.guard.fix()
            run.end = None

    def _start(self, epoch: int) -> Run:
        plan = self._plan(self.model)
        self.report = plan.report()
        run = Run(plan=plan, end=self._end_of_changes(epoch))
        # Biases and the like are only in the report: every model has many.
        _log.info("Clustering %s; skipping %s", list(plan.weights), plan.skipped)
        return run

    def _begin(self, plan: Plan) -> Clusters:
        clusters = plan.start(self.model, self)
        clusters.install()
        self._promised = plan.codebooks
        return clusters

    def _finish(self, run: Run) -> None:
        if run.guard is None:
            warn(
                "Training ended before clustering began. Train longer or choose an "
                f"earlier step. Received: begin_step={self.begin_step}; training ended "
                f"at step {variables.iterations(self.model)}"
            )
        elif getattr(self.model.optimizer, "use_ema", False):
            # The moving averages that Keras has put in place of the weights.
            run.guard.enforce(run.guard.escaped())
        else:
            run.enforce("at the end of training")

    def _end(self, run: Run) -> None:
        if run.guard is None:
            return
        run.guard.remove()
        for row in self.report:
            if row["clustered"]:
                codebook = run.plan.codebooks[row["name"]]
                row["distinct"] = codebook.count_distinct(run.guard.value(row["name"]))

    def _plan(self, model: Any) -> Plan:
        candidates = variables.weights(model)
        chosen, reasons = variables.select(
            candidates, include=self.include, exclude=self.exclude
        )
        codebooks = {}
        for weight in chosen:
            codebook = self._codebook(weight)
            if codebook.group_size <= self.num_clusters:
                reasons[weight.name] = f"only {codebook.group_size} values"
                continue
            if codebook.channel_scales and self.num_clusters < 3:
                raise ValueError(
                    "`num_clusters` must be at least 3 with channel scales, for the "
                    "two ends of the range and zero; or pass channel_scales=False. "
                    f"Received: num_clusters={self.num_clusters}, "
                    f"weight={weight.name!r}"
                )
            codebooks[weight.name] = codebook
        if self.strict:
            self._check_skipped(candidates, reasons)
        return Plan(candidates, codebooks, reasons)

    def _check_skipped(
        self, candidates: Sequence[variables.Weight], reasons: Mapping[str, str]
    ) -> None:
        if_trainable = [dataclasses.replace(w, trainable=True) for w in candidates]
        asked, _ = variables.select(
            if_trainable, include=self.include, exclude=self.exclude
        )
        frozen = [w.name for w in asked if reasons.get(w.name) == "not trainable"]
        if frozen:
            raise TfoptError(
                "Kernels that are not trainable cannot be clustered, and `strict` "
                "forbids to leave them as they are. Exclude them, make them trainable, "
                f"or set strict=False. Received: weights={frozen}"
            )

    def _codebook(self, weight: variables.Weight) -> Codebook:
        scales = self.channel_scales
        if scales is None:
            scales = not self.per_channel and fake_quantize.has_channel_scales(
                weight.layer
            )
        return Codebook.of(
            weight,
            self.num_clusters,
            per_channel=self.per_channel,
            channel_scales=scales,
            zero_cluster=self.preserve_zeros is True,
        )

    def _end_of_changes(self, epoch: int) -> int | None:
        """Returns the step from which on weights stay in their clusters."""
        batches, epochs = self.params.get("steps"), self.params["epochs"] - epoch
        if batches is None:
            return self.end_step
        last = variables.iterations(self.model, ahead=batches * epochs)
        if self.begin_step > last:
            raise ValueError(
                "Clustering begins after the training. Train longer, choose an earlier "
                "step, or pass Cluster only to the fit that reaches it. Received: "
                f"begin_step={self.begin_step}; training ends at step {last}"
            )
        if self.end_step is not None:
            return self.end_step
        # The epochs that a restored backup leaves out belong to the training.
        first = max(0, variables.iterations(self.model, ahead=-batches * epoch))
        return (max(first, self.begin_step) + last) // 2


def cluster_once(model: Any, num_clusters: int = 16, **options: Any) -> Any:
    """Returns a copy of a model with clustered weights, without training.

    Args:
        model: Built model of Keras 3 or tf_keras. It is not changed.
        num_clusters: Number of different values per tensor.
        **options: Further arguments of `Cluster`: `initialization`, `per_channel`,
            `channel_scales`, `include`, `exclude`, `preserve_zeros`, `seed`, `strict`.

    Returns:
        Uncompiled model of the same Keras, with its own variables.

    Raises:
        ValueError: An argument is wrong.
        TfoptError: The model cannot be copied, or its weights are not finite.

    Example:
        >>> small = cluster_once(model, 16)
        >>> len(np.unique(small.get_layer("logits").get_weights()[0]))
        16
    """
    for name in ("begin_step", "end_step", "frequency"):
        if name in options:
            raise ValueError(
                "There is no training, so there are no steps. Expected no such "
                f"argument. Received: {name}={options[name]!r}"
            )
    method = Cluster(num_clusters=num_clusters, **options)
    copy = _keras.clone(model)
    plan = method._plan(copy)
    plan.start(copy, method).assign()
    method._promised = plan.codebooks
    return method.finalize(copy)
