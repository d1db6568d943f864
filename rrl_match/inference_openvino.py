"""Inference in OpenVINO on a CPU: the modules of :mod:`rrl_match.inference` as graphs for fixed batch sizes.

It saves the overhead of some 300 calls of PyTorch, which weighs most in small batches.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rrl_match.inference import Encode, FusedEncoder, FusedRelation, InferenceRRLNet, Relate
from rrl_match.modeling import Band, RRLNet

# Other numbers of rows are split into these: a graph for any batch size takes a fifth longer.
_BATCH_SIZES = 8, 1


class OpenVINORRLNet(InferenceRRLNet):
    """An :class:`InferenceRRLNet` that OpenVINO computes, except for descriptors and the dense layers of the score.

    A graph is compiled when it is first needed, for as many threads as PyTorch had when this was made.
    """

    def _compile(self, folded: RRLNet) -> tuple[dict[Band, Encode], Relate]:
        graphs = _Graphs(self.dtype)
        size = self.config.map_size
        shapes = [(c, size >> k, size >> k) for k, c in enumerate(self.config.encoder_channels)]
        deepest = self.config.metric_channels[len(shapes) - 1], *shapes[-1][1:]
        relation = FusedRelation(folded, packed=False)

        def encoder(alfe: Any) -> Encode:
            fused = FusedEncoder(alfe, size, packed=False)
            patches = self.config.unshuffle**2, size, size
            compiled = _Compiled(graphs, lambda inputs: graphs.encode(fused, *inputs), [patches], shapes)
            return lambda x: compiled(len(x), lambda rows: [x[rows]])

        compiled = _Compiled(graphs, lambda inputs: [graphs.relate(relation, inputs)], [*shapes, *shapes], [deepest])

        def relate(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], all_pairs: bool = False) -> Tensor:
            n, m = len(maps_a[0]), len(maps_b[0])
            if not all_pairs:
                return compiled(n, lambda rows: [x[rows] for x in (*maps_a, *maps_b)])[0]
            every = torch.arange(n * m, device="cpu")

            def pairs(rows: slice) -> list[Tensor]:
                rows_a, rows_b = every[rows] // m, every[rows] % m
                return [*(x[rows_a] for x in maps_a), *(x[rows_b] for x in maps_b)]

            return compiled(n * m, pairs)[0]

        return {"a": encoder(folded.encoder_a), "b": encoder(folded.encoder_b)}, relate


def load_openvino() -> Any:
    """The package, without the report to its makers that it would send on import.

    Raises:
        ImportError: the extra ``openvino`` is not installed.
    """
    name = "openvino_telemetry"  # OpenVINO goes without if this cannot be imported
    block = "openvino" not in sys.modules and name not in sys.modules
    if block:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import_module("openvino.opset13")
        return import_module("openvino")
    except ImportError as error:
        raise ImportError("runtime='openvino' needs openvino: pip install 'rrl-match[openvino]'") from error
    finally:
        if block:
            del sys.modules[name]


class _Graphs:
    """OpenVINO and the graphs of the modules of :mod:`rrl_match.inference`, on maps (N, C, H, W)."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.openvino = load_openvino()
        self.type = self.openvino.Type.bf16 if dtype == torch.bfloat16 else self.openvino.Type.f32
        self._ops = self.openvino.opset13
        self._core = self.openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.type,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # all processes would compute on the same cores
        }

    def compile(self, build: Callable[[list[Any]], list[Any]], shapes: Sequence[tuple[int, ...]], batch: int) -> Any:
        """A graph for one batch size, with channels-last inputs of these shapes."""
        ops = self._ops
        inputs = [ops.parameter((batch, h, w, c), self.type) for c, h, w in shapes]
        maps = [ops.transpose(ops.convert(x, "f32"), [0, 3, 1, 2]) for x in inputs]
        outputs = [ops.convert(ops.transpose(y, [0, 2, 3, 1]), self.type) for y in build(maps)]
        return self._core.compile_model(self.openvino.Model(outputs, inputs), "CPU", self._options)

    def wrap(self, x: Tensor) -> Any:
        """The memory of a channels-last tensor as a tensor of OpenVINO."""
        x = x.permute(0, 2, 3, 1)
        values = x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
        return self.openvino.Tensor(values, list(x.shape), self.type)

    def encode(self, encoder: FusedEncoder, x: Any) -> list[Any]:
        maps: list[Any] = []
        for conv, attention in zip(encoder.convs, encoder.attentions, strict=True):
            x = self._convolve(conv, x)
            x = self._attend(attention, self._pool(x) if maps else x)
            maps.append(x)
        return maps

    def relate(self, relation: Any, maps: Sequence[Any]) -> Any:
        half = len(maps) // 2
        x = None
        for fil, stage, a, b in zip(relation.interactions, relation.stages, maps[:half], maps[half:], strict=True):
            private = [
                self._ops.multiply(self._convolve(fil.magnitude_a, a), self._convolve(fil.complement_b, b)),
                self._ops.multiply(self._convolve(fil.magnitude_b, b), self._convolve(fil.complement_a, a)),
            ]
            x = self._ops.concat(private if x is None else [self._pool(x), *private], 1)
            for conv in stage:
                x = self._convolve(conv, x)
        return x

    def _convolve(self, conv: Any, x: Any) -> Any:
        ops, pad = self._ops, [conv.padding] * 2
        y = ops.convolution(x, self._constant(conv.weight), [1, 1], pad, pad, [1, 1])
        y = ops.add(y, self._constant(conv.bias[:, None, None]))
        return (
            ops.sigmoid(y) if conv.slope is None else ops.prelu(y, ops.constant([conv.slope], self.openvino.Type.f32))
        )

    def _pool(self, x: Any) -> Any:
        return self._ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)

    def _attend(self, attention: Any, x: Any) -> Any:
        ops = self._ops
        n, *lengths = x.shape
        contexts, gate_shapes = [], []
        for axis, length in enumerate(lengths, start=1):
            mean = ops.reduce_mean(x, [axis], keep_dims=True)
            weights = ops.reshape(ops.softmax(ops.reshape(mean, [n, -1], False), 1), mean.shape, False)
            contexts.append(ops.reduce_sum(ops.multiply(x, weights), [k for k in (1, 2, 3) if k != axis]))
            gate_shapes.append([n, *(length if k == axis else 1 for k in (1, 2, 3))])
        gates = ops.matmul(ops.concat(contexts, 1), self._constant(attention.bands), False, True)
        gates = ops.sigmoid(ops.add(gates, self._constant(attention.bias)))
        parts = ops.variadic_split(gates, 1, lengths).outputs()
        channels, rows, columns = (ops.reshape(part, to, False) for part, to in zip(parts, gate_shapes, strict=True))
        return ops.multiply(x, ops.multiply(channels, ops.multiply(rows, columns)))

    def _constant(self, value: Tensor) -> Any:
        return self._ops.constant(value.numpy())


@dataclass(frozen=True)
class _Request:
    """An inference request with the tensors that it reads and writes, which are its own."""

    infer: Callable[[], object]
    inputs: list[Tensor]
    outputs: list[Tensor]


class _Compiled:
    """A graph on any number of rows; each thread has its own requests.

    Args:
        graphs: to build it with.
        build: from inputs to outputs.
        inputs, outputs: shapes (C, H, W).
    """

    def __init__(
        self,
        graphs: _Graphs,
        build: Callable[[list[Any]], list[Any]],
        inputs: Sequence[tuple[int, ...]],
        outputs: Sequence[tuple[int, ...]],
    ) -> None:
        self._graphs, self._build, self._inputs, self._outputs = graphs, build, inputs, outputs
        self._models: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def __call__(self, count: int, select: Callable[[slice], Sequence[Tensor]]) -> list[Tensor]:
        """Outputs (count, C, H, W), channels-last, of the rows that `select` returns for each input."""
        start = 0
        results = [self._empty(count, shape) for shape in self._outputs]
        while start < count:
            batch = next(size for size in _BATCH_SIZES if size <= count - start)
            rows = slice(start, start + batch)
            request = self._request(batch)
            for own, x in zip(request.inputs, select(rows), strict=True):
                own.copy_(x)
            request.infer()
            for result, own in zip(results, request.outputs, strict=True):
                result[rows] = own
            start += batch
        return results

    def _request(self, batch: int) -> _Request:
        requests: dict[int, _Request] = self._local.__dict__.setdefault("requests", {})
        if batch not in requests:
            with self._lock:
                if batch not in self._models:
                    self._models[batch] = self._graphs.compile(self._build, self._inputs, batch)
            request = self._models[batch].create_infer_request()
            inputs = [self._empty(batch, shape) for shape in self._inputs]
            outputs = [self._empty(batch, shape) for shape in self._outputs]
            for k, tensor in enumerate(inputs):
                request.set_input_tensor(k, self._graphs.wrap(tensor))
            for k, tensor in enumerate(outputs):
                request.set_output_tensor(k, self._graphs.wrap(tensor))
            requests[batch] = _Request(request.infer, inputs, outputs)
        return requests[batch]

    def _empty(self, count: int, shape: Sequence[int]) -> Tensor:
        dtype = self._graphs.dtype
        return torch.empty((count, *shape), dtype=dtype, device="cpu", memory_format=torch.channels_last)
