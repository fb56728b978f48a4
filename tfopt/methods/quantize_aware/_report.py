"""What quantization-aware training did with each layer, in words."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What happened to one layer.

    Attributes:
        name: Name in the prepared model.
        path: Names from the outermost model inwards.
        kind: Class name of the layer.
        treatment: `"int8"`, `"fused"` into the layer before it, `"same_scale"` (it
            moves quantized values), `"identity"` (gone in inference), `"constant"`
            (a variable that operations take), or `"float"`.
        reason: Why a layer stays float, else `""`.
        is_left_over: Whether it stays float without having been excluded.
    """

    name: str
    path: str
    kind: str
    treatment: str
    reason: str = ""
    is_left_over: bool = False

    def as_dict(self, scheme: str = "int8") -> dict[str, str]:
        """Returns what users see, where layers compute in the integers of a scheme."""
        shown = dataclasses.asdict(self)
        if self.treatment == "int8":
            shown["treatment"] = scheme
        del shown["is_left_over"]
        return shown

    def __str__(self) -> str:
        suffix = f" ({self.reason})" if self.reason else ""
        return f"{self.path} [{self.kind}]: {self.treatment}{suffix}"
