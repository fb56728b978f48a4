"""One training step of clustered weights, as a function of tensors.

A codebook has `num_clusters` centroids for a whole weight tensor or for each of its
channels, and a member index for each weight. What the optimizer does to the shared
values goes to latent weights, one per weight; they decide which cluster a weight is in
(the nearest), and each centroid is the mean of its members' latent weights. So a
centroid moves by the mean of the updates of its members.

With channel scales, the centroids of a tensor are multiples of 1/127 from -1 to 1, the
int8 grid, and each channel has a factor, fitted by least squares, and a weight that is
1 or -1 times the factor. Rounding to int8 with a scale per channel then yields the
centroids again, the same ones in all channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfopt import affine
from tfopt._keras import kernels, variables
from tfopt.methods import _centroids

# Steps of alternating fits of centroids and channel factors that a codebook begins
# with; more change the third digit of the error at most.
_FITS = 20


class State(NamedTuple):
    """What a codebook keeps between steps.

    Attributes:
        centroids: float32 [groups, num_clusters].
        members: int32 [groups, values in a group], indices of centroids.
        latent: float32, one per value, as `members`.
        factors: float32 [1, channels]; [[1.0]] without channel scales.
    """

    centroids: tf.Tensor
    members: tf.Tensor
    latent: tf.Tensor
    factors: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Codebook:
    """How the values of one weight tensor are shared.

    Attributes:
        shape: Shape of the weight.
        num_clusters: Number of centroids per group, zero included.
        per_channel: Whether each channel is a group of its own.
        channel_scales: Whether channels have a factor.
        zero_cluster: Whether one centroid is zero from the beginning.
        layout: Where the channels are; None: there are none.
    """

    shape: tuple[int, ...]
    num_clusters: int
    per_channel: bool
    channel_scales: bool
    zero_cluster: bool
    layout: kernels.Layout | None

    @classmethod
    def of(
        cls,
        weight: variables.Weight,
        num_clusters: int,
        *,
        per_channel: bool,
        channel_scales: bool,
        zero_cluster: bool,
    ) -> Codebook:
        """Makes a codebook for a weight of a model."""
        has_channels = weight.is_kernel and not weight.last_name.endswith("embeddings")
        return cls(
            weight.shape,
            num_clusters,
            per_channel and has_channels,
            channel_scales and has_channels,
            zero_cluster,
            kernels.layout(weight) if has_channels else None,
        )

    @property
    def num_channels(self) -> int:
        """The number of channels; 1 if they are not told apart."""
        if self.layout is None or not (self.per_channel or self.channel_scales):
            return 1
        return self.layout.split[2]

    @property
    def group_size(self) -> int:
        """The number of values that share one set of centroids."""
        size = int(np.prod(self.shape, dtype=np.int64))
        return size // self.num_channels if self.per_channel else size

    def count_distinct(self, values: np.ndarray) -> int:
        """Returns how many different values the group with most of them has.

        With channel scales, these are int8 codes in the scales of the channels.

        Args:
            values: Float array of the weight's shape.
        """
        if self.per_channel:
            return max(len(np.unique(channel)) for channel in self._channels(values))
        if self.channel_scales:
            codes, _ = affine.quantize_weights(
                self._channels(values), channel_axes=(0,)
            )
            return len(np.unique(codes))
        return len(np.unique(values))

    def begin(
        self,
        values: np.ndarray,
        initialization: _centroids.Initialization,
        seed: int,
    ) -> State:
        """Returns the state to start from, fitted to the weights.

        Args:
            values: float32 array of the weight's shape, finite.
            initialization: As in `_centroids.find`.
            seed: As there.
        """
        grouped = self._grouped(values)
        factors = np.ones((1, 1), np.float32)
        pinned: tuple[float, ...] = (0.0,) if self.zero_cluster else ()
        if self.channel_scales:
            peaks = np.abs(self._channels(values)).max(axis=1)[None]
            factors = np.where(peaks > 0, peaks, 1).astype(np.float32)
            pinned = (-1.0, 1.0, *pinned)
        by_channel = grouped.reshape(-1, factors.size)
        relative = (by_channel / factors).reshape(grouped.shape)
        centroids = [
            _centroids.find(
                # Zeros have their cluster already.
                row[row != 0] if self.zero_cluster and row.any() else row,
                self.num_clusters,
                initialization=initialization,
                pinned=pinned,
                seed=seed,
            )
            for row in relative
        ]
        state = State(
            tf.constant(np.array(centroids, np.float32)),
            tf.zeros(grouped.shape, tf.int32),
            tf.constant(grouped),
            tf.constant(factors),
        )
        zeros = self.group(tf.constant(values == 0) & self.zero_cluster)
        # The factors began with the largest weights; without them, this changes nothing
        # but the last digit.
        for _ in range(_FITS if self.channel_scales else 1):
            state = self.fit(self.assign(state, zeros), zeros)
        return state

    def assign(self, state: State, zeros: tf.Tensor) -> State:
        """Puts every weight into the cluster of the nearest centroid.

        Args:
            state: Of before.
            zeros: bool [groups, values]: the weights that are zero for good.
        """
        centroids = tf.sort(state.centroids)
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        members = tf.searchsorted(middles, self._times(state.latent, 1 / state.factors))
        return self._with_zeros(
            state._replace(centroids=centroids, members=members), zeros
        )

    def fit(self, state: State, zeros: tf.Tensor) -> State:
        """Moves the centroids to the means of their members.

        Args:
            state: Of before; weights stay in their clusters, unless they are zero now.
                With channel scales, the largest weight of a channel may have to join
                the first or the last cluster.
            zeros: As in `assign`.
        """
        state = self._with_zeros(state, zeros)
        if self.channel_scales:
            state = self._fit_factors(state)
        groups = self._num_groups
        indices = state.members + self.num_clusters * tf.range(groups)[:, None]

        def total(values: tf.Tensor) -> tf.Tensor:
            sums = tf.math.unsorted_segment_sum(
                tf.reshape(values, [-1]),
                tf.reshape(indices, [-1]),
                groups * self.num_clusters,
            )
            return tf.reshape(sums, [groups, self.num_clusters])

        # The mean, or with factors f the c that minimizes the sum of (latent - f c)².
        ones = tf.ones_like(state.latent)
        sizes = total(self._times(ones, state.factors**2))
        means = tf.math.divide_no_nan(
            total(self._times(state.latent, state.factors)), sizes
        )
        # A cluster without members waits where it is.
        centroids = tf.where(sizes > 0, means, state.centroids)
        return self._with_zeros(state._replace(centroids=centroids), zeros)

    def value(self, state: State) -> tf.Tensor:
        """Returns the shared values in the shape of the weight, float32."""
        return self._ungroup(self.shared(state))

    def shared(self, state: State) -> tf.Tensor:
        """Returns the shared values as [groups, values], float32."""
        centroids = state.centroids
        if self.channel_scales:
            centroids = tf.round(centroids * affine.INT8_MAX) / affine.INT8_MAX
        shared = tf.gather(centroids, state.members, batch_dims=1)
        return self._times(shared, state.factors)

    def group(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns a tensor of the weight's shape as [groups, values].

        Within the only group, the channels are the fastest axis: mostly as they are.
        """
        if self.layout is not None and self.num_channels > 1:
            tensor = _transposed(tensor, self.layout.order)
            if self.per_channel:
                tensor = tf.transpose(tf.reshape(tensor, [-1, self.num_channels]))
        return tf.reshape(tensor, [self._num_groups, self.group_size])

    @property
    def _num_groups(self) -> int:
        return self.num_channels if self.per_channel else 1

    def _times(self, grouped: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        """Multiplies [groups, values] by the factors of the channels."""
        if not self.channel_scales:
            return grouped
        by_channel = tf.reshape(grouped, [-1, self.num_channels]) * factors
        return tf.reshape(by_channel, tf.shape(grouped))

    def _ungroup(self, grouped: tf.Tensor) -> tf.Tensor:
        if self.layout is None or self.num_channels == 1:
            return tf.reshape(grouped, self.shape)
        order = self.layout.order
        tensor = tf.transpose(grouped) if self.per_channel else grouped
        tensor = tf.reshape(tensor, [self.shape[axis] for axis in order])
        return _transposed(tensor, np.argsort(order).tolist())

    def _channels(self, values: np.ndarray) -> np.ndarray:
        """Returns the values as [channels, values of a channel]."""
        if self.layout is None or self.num_channels == 1:
            return values.reshape(1, -1)
        ordered = values.transpose(self.layout.order)
        return ordered.reshape(-1, self.num_channels).T

    def _grouped(self, values: np.ndarray) -> np.ndarray:
        channels = self._channels(values.astype(np.float32))
        ordered = channels if self.per_channel else channels.T
        return ordered.reshape(self._num_groups, self.group_size)

    def _with_zeros(self, state: State, zeros: tf.Tensor) -> State:
        """Puts zeros into a cluster whose centroid is zero.

        That is the one nearest to zero; it is moved there when the first zeros appear.
        With channel scales, the first and last centroid are put in their places too.
        """
        centroids = state.centroids
        if self.channel_scales:
            ends = tf.ones_like(centroids[:, :1])
            inside = tf.clip_by_value(centroids[:, 1:-1], -1.0, 1.0)
            centroids = tf.concat([-ends, inside, ends], axis=1)
        nearest = tf.argmin(tf.abs(centroids), axis=1, output_type=tf.int32)[:, None]
        at_zero = tf.range(self.num_clusters)[None] == nearest
        if not self.zero_cluster:
            at_zero &= tf.reduce_any(zeros, axis=1, keepdims=True)
        return state._replace(
            centroids=tf.where(at_zero, 0.0, centroids),
            members=tf.where(zeros, nearest, state.members),
            latent=tf.where(zeros, 0.0, state.latent),
        )

    def _fit_factors(self, state: State) -> State:
        """Fits the factors of the channels to the weights, by least squares."""
        by_channel = [-1, self.num_channels]
        latent = tf.reshape(state.latent, by_channel)
        members = tf.reshape(state.members, by_channel)
        shared = tf.gather(state.centroids[0], members)
        peaks = tf.reduce_max(tf.abs(latent), axis=0, keepdims=True)
        fitted = tf.math.divide_no_nan(
            tf.reduce_sum(latent * shared, axis=0, keepdims=True),
            tf.reduce_sum(shared**2, axis=0, keepdims=True),
        )
        factors = tf.where(fitted > 0, fitted, state.factors)
        # Without a weight at an end, the channel's int8 scale would be another one.
        ends = (members == 0) | (members == self.num_clusters - 1)
        has_end = tf.reduce_any(ends & (latent != 0), axis=0, keepdims=True)
        joins = (tf.abs(latent) == peaks) & (peaks > 0) & ~has_end
        end = tf.where(latent > 0, self.num_clusters - 1, 0)
        members = tf.where(joins, end, members)
        members = tf.reshape(members, tf.shape(state.members))
        return state._replace(members=members, factors=factors)


def _transposed(tensor: tf.Tensor, order: Sequence[int]) -> tf.Tensor:
    if list(order) == sorted(order):
        return tensor
    return tf.transpose(tensor, order)
