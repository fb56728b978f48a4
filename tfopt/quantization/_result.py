"""What quantization costs layer by layer, and which layers to leave in float."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
from collections.abc import Mapping
from typing import Any, Literal

from tfopt import _json_files, artifacts
from tfopt.quantization import _plot
from tfopt.report import Column, Report, Reported, Table

_FORMAT = "tfopt.quantization_sensitivity"
# Stands for outputs that are no numbers, or none: worse than any that are.
BROKEN_DB = -100.0
Cost = Literal["macs", "bytes"]


@dataclasses.dataclass(frozen=True)
class Score:
    """How a quantized model compares with the float one.

    Attributes:
        sqnr_db: Signal-to-quantization-noise ratio `10 log10(mean(y^2) /
            mean((y - q)^2))` of the worst output; `None` where nothing differs, -100
            where outputs are not finite, or LiteRT cannot run the model so.
        metric: The task metric; `None` if there was none to measure, or there are no
            such outputs.
    """

    sqnr_db: float | None
    metric: float | None = None

    @property
    def noise(self) -> float:
        """Noise power relative to the signal, `10^(-sqnr_db / 10)`."""
        return 0.0 if self.sqnr_db is None else 10 ** (-self.sqnr_db / 10)


@dataclasses.dataclass(frozen=True)
class Range:
    """The values of a tensor that one scale of int8 has to serve.

    Attributes:
        lowest: The lowest value, or 0 if that is lower: the scale includes it.
        highest: The highest value, or 0 likewise.
        lost: The share, among the values that aren't 0, of those smaller than half a
            step of int8, which become 0 (where 0 has a code of its own).
    """

    lowest: float
    highest: float
    lost: float

    @property
    def step(self) -> float:
        """The distance of neighbouring int8 values, `(highest - lowest) / 255`."""
        return (self.highest - self.lowest) / 255

    def __str__(self) -> str:
        return (
            f"values from {self.lowest:.3g} to {self.highest:.3g} in steps of "
            f"{self.step:.2g}, where {self.lost:.0%} of those that aren't 0 become 0"
        )


@dataclasses.dataclass(frozen=True)
class Constant:
    """A float constant of a layer.

    Attributes:
        bytes: In float32.
        smallest: Least absolute value that isn't 0; 0 if all are.
        largest: Largest absolute value.
        lost_in_float16: How many values that aren't 0 become 0, or infinite, there.
    """

    bytes: int
    smallest: float
    largest: float
    lost_in_float16: int


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a layer takes in float.

    Attributes:
        operators: Kinds of TFLite operators that it became.
        macs: Multiply-accumulates for one example; `None` if sizes are free.
        constant_bytes: Bytes of its float constants.
        constants: The same one by one, by digest: equal ones are stored once in a
            file, whichever layers have them.
        outputs: The values of that output of its operators of which int8 would lose
            most, on a few examples; `None` if unknown.
    """

    operators: tuple[str, ...]
    macs: int | None
    constant_bytes: int
    constants: Mapping[str, Constant] = dataclasses.field(default_factory=dict)
    outputs: Range | None = None


@dataclasses.dataclass(frozen=True)
class QuantizationSensitivity(Reported):
    """How a model's outputs suffer when layers are quantized.

    Attributes:
        metric: Name of the task metric, `None` if only noise was measured.
        higher_is_better: Whether a higher metric is better.
        baseline: The metric of the float model.
        layers: Layers (or graph nodes) by the names that `keep_float` takes.
        whole: Method -> score with all layers quantized.
        alone: Method -> layer -> score with only this layer quantized.
        restored: Method -> layer -> score with all but this layer quantized.

    Example:
        >>> found = QuantizationSensitivity(
        ...     metric=None, higher_is_better=True, baseline=None,
        ...     layers={"a": Layer(("CONV_2D",), 900, 400),
        ...             "b": Layer(("FULLY_CONNECTED",), 100, 400)},
        ...     whole={"int8": Score(19.6)},
        ...     alone={"int8": {"a": Score(30.0), "b": Score(20.0)}}, restored={})
        >>> found.keep_float(min_sqnr=25.0)
        ['b']
    """

    metric: str | None
    higher_is_better: bool
    baseline: float | None
    layers: Mapping[str, Layer]
    whole: Mapping[str, Score]
    alone: Mapping[str, Mapping[str, Score]]
    restored: Mapping[str, Mapping[str, Score]]

    def keep_float(
        self,
        *,
        max_drop: float | None = None,
        min_sqnr: float | None = None,
        method: str | None = None,
        per: Cost = "macs",
    ) -> list[str]:
        """Picks the layers whose return to float buys most for what it costs.

        Noise powers of layers are taken to add up, and the loss of the metric to be
        divided among layers as their noise is. Layers are picked by noise per cost
        until the rest meets the limit; those that turn out not to be needed are
        dropped again. It is a model: `tfopt.convert(keep_float=...)` measures.

        Args:
            max_drop: By how much the metric may be worse than the float model's.
            min_sqnr: Or: the signal-to-noise ratio to be reached, in dB.
            method: Which method, if several were measured.
            per: What float layers cost: `"macs"` or `"bytes"`.

        Returns:
            Patterns for `keep_float`, in the order of the model; empty if the model
            with all layers quantized meets the limit.

        Raises:
            ValueError: Not exactly one limit is given, the metric was not measured,
                or there is no such method or cost.
        """
        method = self._method(method)
        scores = self.alone[method] or self.restored[method]
        noises = self._noises(method)
        total = sum(noises.values())
        allowed = self._allowed_noise(method, total, max_drop, min_sqnr)
        if per not in ("macs", "bytes"):
            raise ValueError(f'Expected "macs" or "bytes". Received: per={per!r}')
        kept: list[str] = []
        left = total
        rising = sorted(
            scores, key=lambda name: noises[name] / self._cost(name, per), reverse=True
        )
        for name in rising:
            if left <= allowed:
                break
            kept.append(name)
            left -= noises[name]
        for name in sorted(kept, key=lambda name: noises[name]):
            if left + noises[name] <= allowed:
                kept.remove(name)
                left += noises[name]
        return [glob.escape(name) for name in scores if name in kept]

    def report(self) -> Report:
        """Returns tables, one per method: layers from the most to the least noise."""
        tables = [self._table(method) for method in self.whole]
        notes = ["Signal-to-noise ratios are those of the model's outputs, in dB."]
        return Report(
            title="Sensitivity to quantization",
            tables=tables,
            notes=notes,
            data={"sensitivity": self._data()},
        )

    def plot(self, path: str | os.PathLike[str], *, method: str | None = None) -> None:
        """Writes a PNG: a bar of the SQNR for each layer; short ones are noisy.

        Raises:
            ValueError: No such method, or no layer makes noise.
            TfoptError: matplotlib is not installed, or the file cannot be written.
        """
        method = self._method(method)
        scores = self.alone[method] or self.restored[method]
        _plot.write_bars(
            path,
            {name: score.sqnr_db for name, score in scores.items()},
            title=f"{method}: {'only' if self.alone[method] else 'all but'} this layer",
            label="signal-to-noise ratio of the outputs [dB]",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON; `load` reads it."""
        artifacts.write_json(path, {"format": _FORMAT, "version": 1, **self._data()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QuantizationSensitivity:
        """Reads what `save` wrote.

        Raises:
            ValueError: The file is of another kind, or damaged.
        """
        try:
            found: QuantizationSensitivity = _json_files.load(cls, path, kind=_FORMAT)
        except (_json_files.Damaged, FileNotFoundError) as error:
            raise ValueError(
                "Not a file of QuantizationSensitivity.save. "
                f"Received: path={os.fspath(path)!r} ({error})"
            ) from error
        return found

    def _data(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _method(self, method: str | None) -> str:
        if method is None and len(self.whole) == 1:
            return next(iter(self.whole))
        if method not in self.whole:
            raise ValueError(
                f"Expected one of the methods measured, {list(self.whole)}. "
                f"Received: method={method!r}"
            )
        return str(method)

    def _noises(self, method: str) -> dict[str, float]:
        """Noise of each layer, such that the sum is that of the whole model."""
        whole = self.whole[method].noise
        if self.alone[method]:
            noises = {name: x.noise for name, x in self.alone[method].items()}
        else:
            noises = {
                name: max(whole - x.noise, 0.0)
                for name, x in self.restored[method].items()
            }
        total = sum(noises.values())
        factor = whole / total if total else 1.0
        return {name: noise * factor for name, noise in noises.items()}

    def _allowed_noise(
        self, method: str, total: float, max_drop: float | None, min_sqnr: float | None
    ) -> float:
        if (max_drop is None) == (min_sqnr is None):
            raise ValueError(
                "Expected exactly one limit. "
                f"Received: max_drop={max_drop}, min_sqnr={min_sqnr}"
            )
        if min_sqnr is not None:
            return 10 ** (-min_sqnr / 10) * (1 + 1e-9)
        metric = self.whole[method].metric
        if metric is None or self.baseline is None or max_drop is None or max_drop < 0:
            raise ValueError(
                "`max_drop` needs a metric and a number that isn't negative. Measure "
                f"with labels. Received: max_drop={max_drop}, metric={self.metric}"
            )
        drop = (self.baseline - metric) * (1 if self.higher_is_better else -1)
        return total if drop <= max_drop else total * max_drop / drop

    def _cost(self, name: str, per: Cost) -> float:
        layer = self.layers[name]
        # What multiplies nothing is not free either.
        return max((layer.macs if per == "macs" else layer.constant_bytes) or 0, 1)

    def _table(self, method: str) -> Table:
        noises = self._noises(method)
        total = sum(noises.values()) or 1.0
        rows: dict[str, dict[str, Any]] = {
            "(all)": self._cells(None, self.whole[method], self.whole[method], 1.0)
        }
        for name in sorted(noises, key=lambda name: noises[name], reverse=True):
            alone, restored = (
                scores[method].get(name) for scores in (self.alone, self.restored)
            )
            rows[name] = self._cells(name, alone, restored, noises[name] / total)
        wanted = [("alone", self.alone[method]), ("restored", self.restored[method])]
        columns = [Column(key="operators"), Column(key="macs", title="MACs")]
        columns.append(Column(key="bytes", title="float bytes"))
        for mode, measured in wanted:
            if measured:
                columns.append(Column(key=f"{mode}_sqnr", title=f"{mode} SQNR [dB]"))
                if self.metric:
                    title = f"{mode} {self.metric}"
                    columns.append(Column(key=f"{mode}_metric", title=title))
        columns.append(Column(key="share", title="share of the noise", format=".1%"))
        known = f", {self.metric} {self.baseline:.4g} in float" if self.metric else ""
        return Table(
            title=f"{method}{known}", columns=columns, rows=rows, corner="layer"
        )

    def _cells(
        self,
        name: str | None,
        alone: Score | None,
        restored: Score | None,
        share: float,
    ) -> dict[str, Any]:
        layers = list(self.layers.values()) if name is None else [self.layers[name]]
        macs = [layer.macs for layer in layers]
        cells: dict[str, Any] = {
            "operators": "" if name is None else " ".join(layers[0].operators).lower(),
            "macs": None if None in macs else sum(x or 0 for x in macs),
            "bytes": sum(layer.constant_bytes for layer in layers),
            "share": share,
        }
        for mode, score in (("alone", alone), ("restored", restored)):
            sqnr = None if score is None or score.sqnr_db is None else score.sqnr_db
            cells[f"{mode}_sqnr"] = None if sqnr is None else round(sqnr, 1)
            cells[f"{mode}_metric"] = None if score is None else score.metric
        return cells


def finite(value: float) -> float | None:
    """Returns a ratio in dB, `None` where it is infinite: nothing differs.

    Raises:
        ValueError: It is NaN.
    """
    if math.isnan(value):
        raise ValueError("Expected outputs without NaN. Received: NaN")
    return value if math.isfinite(value) else None
