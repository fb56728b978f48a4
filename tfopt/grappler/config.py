"""GrapplerConfig: TensorFlow's RewriterConfig, with every name and value checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from tfopt.grappler import fields, registry
from tfopt.savedmodel import protos

# Of RewriterConfig.Toggle; "experimental_both" and newer ones are taken as well.
Toggle: TypeAlias = Literal[
    "default", "on", "off", "aggressive", "experimental_mlir", "experimental_both"
]
CpuLayout: TypeAlias = Literal["no_conversion_on_cpu", "nchw_to_nhwc", "nhwc_to_nchw"]
Iterations: TypeAlias = Literal["default_num_iters", "one", "two"]
Memory: TypeAlias = Literal[
    "default_mem_opt",
    "no_mem_opt",
    "manual",
    "swapping_heuristics",
    "recomputation_heuristics",
    "scheduling_heuristics",
    "heuristics",
]
Preset: TypeAlias = Literal["lossless", "default", "bfloat16"]

# Optimizers that remove and merge nodes but compute nothing in another way. Constant
# folding and arithmetic optimization reassociate: (x + a) + b becomes x + (a + b).
_STRUCTURAL = ["function", "pruning", "dependency", "common_subgraph_elimination"]
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "lossless": {"optimizers": _STRUCTURAL},
    "default": {},
    # Remapping would fuse into operations that only oneDNN has.
    "bfloat16": {"auto_mixed_precision_onednn_bfloat16": "on", "remapping": "off"},
}


class GrapplerConfig:
    """Options of TensorFlow's graph optimizer, by the names of RewriterConfig.

    One object serves three uses: `tfopt.optimize_graph` rewrites a model offline,
    `apply` optimizes the tf.functions of this process, and `to_session_config` the
    sessions of TF1. Names and values are checked against the schema of the installed
    TensorFlow (tensorflow/core/protobuf/rewriter_config.proto), which ignores unknown
    ones; what a newer one adds is accepted as a further keyword.

    Options that are not given, or `"default"`, are left to TensorFlow. Objects are
    equal if they mean the same, and don't change.

    Args:
        layout_optimizer: Converts between NHWC and NCHW, whichever is faster.
        cpu_layout_conversion: Which conversion the layout optimizer makes on a CPU.
        constant_folding: Computes what is constant.
        shape_optimization: Simplifies computations on shapes.
        remapping: Fuses nodes, and replaces batch normalization at inference.
        common_subgraph_elimination: Merges nodes that compute the same.
        arithmetic_optimization: Simplifies arithmetic.
        dependency_optimization: Removes needless nodes and control dependencies.
        loop_optimization: Moves what doesn't change out of loops; removes dead
            branches.
        function_optimization: Inlines and specializes functions.
        debug_stripper: Removes Assert, CheckNumerics and Print.
        disable_model_pruning: Whether to keep nodes that nothing needs.
        scoped_allocator_optimization: Lets collectives share memory.
        pin_to_host_optimization: Moves small integer computations to the CPU.
        implementation_selector: Chooses between implementations of a function by
            device, as of Keras recurrent layers.
        auto_mixed_precision: Computes in float16 on a GPU.
        auto_mixed_precision_mkl: Former name of the next one.
        auto_mixed_precision_onednn_bfloat16: Computes in bfloat16 on a CPU that can.
        auto_mixed_precision_cpu: Computes in float16 on a CPU, as if on a GPU.
        disable_meta_optimizer: Whether to switch everything off.
        disable_tfg_optimizer: Whether to switch off the passes based on MLIR.
        use_plugin_optimizers: Optimizers of pluggable devices.
        experimental_conditional_code_motion: Moves code out of branches.
        meta_optimizer_iterations: How often all optimizers run.
        min_graph_nodes: Smaller graphs are not optimized; -1 optimizes all, and 0
            leaves it to TensorFlow (4).
        experimental_disable_compressed_tensor_optimization: Whether to store folded
            constants in full.
        experimental_disable_folding_quantization_emulation: Whether to leave fake
            quantization of constants unfolded.
        memory_optimization: What to do about peak memory.
        memory_optimizer_target_node_name_scope: Scope of gradients, for recomputation.
        meta_optimizer_timeout_ms: After so many milliseconds TensorFlow stops silently;
            0 means 5 minutes, and less than 0 never.
        auto_parallel: `{"enable": True, "num_replicas": 2}`; also as JSON.
        fail_on_optimizer_errors: Whether an optimizer's failure is an error.
        scoped_allocator_opts: `{"enable_op": ["..."]}`; also as JSON.
        optimizers: Names of optimizers to run instead of all that the other options
            switch on, in this order, such as `["constfold", "pruning"]`.
        custom_optimizers: Registered custom optimizers to run moreover: names, or
            `{"name": "...", "parameter_map": {"key": value}}`, also as JSON.
        inter_optimizer_verifier_config: How TensorFlow checks the graph after each
            optimizer: `{"structure_verifier": "on"}`; also as JSON.
        post_optimization_verifier_config: The same after all of them.
        **newer: Options that the installed TensorFlow has beyond these.

    Raises:
        ValueError: An unknown option, value, or name of an optimizer.
        TfoptError: TensorFlow doesn't tell whether it knows an optimizer.

    Example:
        >>> config = GrapplerConfig(remapping="off", constant_folding="aggressive")
        >>> config
        GrapplerConfig(constant_folding='aggressive', remapping='off')
        >>> config == GrapplerConfig.from_config(config.get_config())
        True
        >>> config.get_config()["remapping"]
        'off'
    """

    def __init__(
        self,
        *,
        layout_optimizer: Toggle | None = None,
        cpu_layout_conversion: CpuLayout | None = None,
        constant_folding: Toggle | None = None,
        shape_optimization: Toggle | None = None,
        remapping: Toggle | None = None,
        common_subgraph_elimination: Toggle | None = None,
        arithmetic_optimization: Toggle | None = None,
        dependency_optimization: Toggle | None = None,
        loop_optimization: Toggle | None = None,
        function_optimization: Toggle | None = None,
        debug_stripper: Toggle | None = None,
        disable_model_pruning: bool | None = None,
        scoped_allocator_optimization: Toggle | None = None,
        pin_to_host_optimization: Toggle | None = None,
        implementation_selector: Toggle | None = None,
        auto_mixed_precision: Toggle | None = None,
        auto_mixed_precision_mkl: Toggle | None = None,
        auto_mixed_precision_onednn_bfloat16: Toggle | None = None,
        auto_mixed_precision_cpu: Toggle | None = None,
        disable_meta_optimizer: bool | None = None,
        disable_tfg_optimizer: bool | None = None,
        use_plugin_optimizers: Toggle | None = None,
        experimental_conditional_code_motion: Toggle | None = None,
        meta_optimizer_iterations: Iterations | None = None,
        min_graph_nodes: int | None = None,
        experimental_disable_compressed_tensor_optimization: bool | None = None,
        experimental_disable_folding_quantization_emulation: bool | None = None,
        memory_optimization: Memory | None = None,
        memory_optimizer_target_node_name_scope: str | None = None,
        meta_optimizer_timeout_ms: int | None = None,
        auto_parallel: str | Mapping[str, Any] | None = None,
        fail_on_optimizer_errors: bool | None = None,
        scoped_allocator_opts: str | Mapping[str, Any] | None = None,
        optimizers: Sequence[str] = (),
        custom_optimizers: Sequence[str | Mapping[str, Any]] = (),
        inter_optimizer_verifier_config: str | Mapping[str, Any] | None = None,
        post_optimization_verifier_config: str | Mapping[str, Any] | None = None,
        **newer: Any,
    ) -> None:
        given = {**locals(), **newer}
        proto = protos.message_class("RewriterConfig")()
        for name, value in given.items():
            if name not in ("self", "newer") and value is not None:
                fields.write(proto, name, value)
        registry.check_names(proto.optimizers, "optimizers")
        registry.check_names(
            [custom.name for custom in proto.custom_optimizers], "custom_optimizers"
        )
        self._serialized = proto.SerializeToString(deterministic=True)

    @classmethod
    def preset(cls, name: Preset) -> GrapplerConfig:
        """Returns a ready-made configuration.

        Args:
            name: `"lossless"`: only optimizers that change no bit of the results
                (`optimize_graph` makes sure of it); `"default"`: what TensorFlow does
                at run time, results within rounding; `"bfloat16"`: computes in
                bfloat16, with an error that is reported, and fuses nothing: apply it
                to the result of `"default"`.

        Raises:
            ValueError: There is no such preset.
        """
        if name not in _PRESETS:
            raise ValueError(
                f"Unknown preset. {fields.expected(str(name), _PRESETS)} "
                f"Received: name={name!r}"
            )
        return cls(**_PRESETS[name])

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GrapplerConfig:
        """Returns the object whose `get_config` this is."""
        return cls(**config)

    @classmethod
    def from_proto(cls, proto: Any) -> GrapplerConfig:
        """Returns the object for a RewriterConfig.

        Raises:
            ValueError: It names an optimizer that doesn't exist.
        """
        ours = protos.message_class("RewriterConfig")
        return cls(**fields.read(ours.FromString(proto.SerializeToString())))

    @classmethod
    def parse(cls, name: str, text: str) -> Any:
        """Returns the value that text means for an option.

        Args:
            name: The option.
            text: As on a command line: `on`, `true`, `7`, or JSON.

        Raises:
            ValueError: There is no such option, or the text means nothing for it.

        Example:
            >>> GrapplerConfig.parse("min_graph_nodes", "-1")
            -1
        """
        proto = protos.message_class("RewriterConfig")()
        fields.write(proto, name, fields.parse(proto, name, text))
        return fields.read(proto).get(name)

    def get_config(self) -> dict[str, Any]:
        """Returns the options that were given, as plain data for JSON."""
        return fields.read(self._message())

    def replace(self, **options: Any) -> GrapplerConfig:
        """Returns a copy with some options changed."""
        return type(self)(**{**self.get_config(), **options})

    def to_proto(self) -> Any:
        """Returns TensorFlow's RewriterConfig; loads TensorFlow."""
        from tensorflow.core.protobuf import rewriter_config_pb2

        return rewriter_config_pb2.RewriterConfig.FromString(self._serialized)

    def to_session_config(self) -> Any:
        """Returns a `tf.compat.v1.ConfigProto` for a session of TF1.

        Example:
            >>> config = GrapplerConfig(remapping="off").to_session_config()
            >>> config.graph_options.rewrite_options.remapping == 2
            True
        """
        import tensorflow as tf

        config = tf.compat.v1.ConfigProto()
        config.graph_options.rewrite_options.CopyFrom(self.to_proto())
        return config

    @contextlib.contextmanager
    def apply(self) -> Iterator[None]:
        """Makes TensorFlow optimize the tf.functions called in the block like this.

        Options that aren't given are TensorFlow's defaults in the block, whatever was
        set before. Afterwards the previous options are back. They are those of the
        process (`tf.config.optimizer.set_experimental_options`), which other threads
        adopt at their own time: don't rely on two threads applying different ones.

        Raises:
            ValueError: `tf.config` cannot express an option; nothing is changed then.

        Example:
            >>> with GrapplerConfig(remapping="off").apply():
            ...     _ = model(images[:1])
        """
        from tfopt.grappler import running

        with running.applied(self.get_config()):
            yield

    @property
    def serialized(self) -> bytes:
        """The RewriterConfig as bytes; needs no TensorFlow."""
        return self._serialized

    @property
    def reduces_precision(self) -> bool:
        """Whether it may compute in a lower precision than the model."""
        message = self._message()
        if message.optimizers:
            return bool(registry.REDUCED_PRECISION & set(message.optimizers))
        return any(
            getattr(message, registry.SWITCHES[name][0]) not in (0, message.OFF)
            for name in registry.REDUCED_PRECISION
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GrapplerConfig):
            return NotImplemented
        return self._serialized == other._serialized

    def __hash__(self) -> int:
        return hash(self._serialized)

    def __repr__(self) -> str:
        options = (f"{name}={value!r}" for name, value in self.get_config().items())
        return f"GrapplerConfig({', '.join(options)})"

    def _message(self) -> Any:
        return protos.message_class("RewriterConfig").FromString(self._serialized)
