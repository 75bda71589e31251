"""What runs a model on a CPU: PyTorch in three ways, and onnxruntime on the file that this package
writes.

The batch of `torch.compile` and of the ahead-of-time compiler is fixed, the file's is free: PyTorch
has the advantage. What a provider must compile or open, it does in its first call; the file is
exported and verified before that. onnxruntime's threads do not spin between calls, since they would
take the cores from whoever is timed next.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_loss.bench import needs
from fused_loss.bench.cases import MODEL_PHASES, Phase
from fused_loss.bench.models import MODELS, Batch, ModelCase, build
from fused_loss.bench.programs import Prepared, Provider, Step
from fused_loss.export import export_onnx

EXAMPLE_ROWS = 8
INPUT = "input"
ON, OFF = "ORT_ENABLE_ALL", "ORT_DISABLE_ALL"

Build = Callable[[ModelCase, int, Batch], Step]  # for a number of threads


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Holds what this process exports and compiles, and goes with it."""
    return tempfile.TemporaryDirectory(prefix="fused-loss-bench-")


@cache
def exported(model: str) -> Path:
    """The model's ONNX file, verified, written once a process."""
    example = torch.randn(EXAMPLE_ROWS, *MODELS[model][1], generator=torch.Generator())
    return export_onnx(build(model), example, Path(_folder().name) / f"{model}.onnx").path


def at_first_call(
    build_step: Build, before: Callable[[str], Any] = lambda model: None
) -> Callable[[ModelCase, torch.device], Prepared]:
    """How a provider is prepared whose step is built by its first call.

    Args:
        build_step: `(case, threads, batch) -> step`.
        before: Done earlier, for the model's name.
    """

    def prepare(case: ModelCase, device: torch.device) -> Prepared:
        before(case.model)

        def step_of(phase: Phase) -> Step:
            built: list[Step] = []

            def step(batch: Batch) -> tuple[Any, ...]:
                if not built:
                    built.append(build_step(case, phase.threads or 1, batch))
                return built[0](batch)

            return step

        return step_of

    return prepare


def eager(case: ModelCase, threads: int, batch: Batch) -> Step:
    """The module, called."""
    model = build(case.model)
    return lambda batch: model(batch.x)


def compiled(case: ModelCase, threads: int, batch: Batch) -> Step:
    """The module under `torch.compile`."""
    options: dict[str, Any] = {"cpp.threads": threads}
    model = torch.compile(build(case.model), fullgraph=True, dynamic=False, options=options)
    return lambda batch: model(batch.x)


def ahead_of_time(case: ModelCase, threads: int, batch: Batch) -> Step:
    """The module through `torch.export` into a shared library of its own, loaded again."""
    path = str(Path(_folder().name) / f"{case.name}-{threads}.pt2")
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # about the compiler's own insides
        program = torch.export.export(build(case.model), (batch.x.clone(),))
        options = {"cpp.threads": threads}
        torch._inductor.aoti_compile_and_package(
            program, package_path=path, inductor_configs=options
        )
    model = torch._inductor.aoti_load_package(path)
    return lambda batch: model(batch.x)


def session(path: Path, level: str, threads: int) -> Any:
    """An `InferenceSession` of onnxruntime whose threads sleep between calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx(level: str = ON, file_of: Callable[[str], Path] = exported) -> Build:
    """onnxruntime, arrays in and arrays out.

    Args:
        level: Of optimisation.
        file_of: The file of a model's name; one of another precision is another `file_of`.
    """

    def build_step(case: ModelCase, threads: int, batch: Batch) -> Step:
        run = session(file_of(case.model), level, threads).run
        return lambda batch: tuple(run(None, {INPUT: batch.array}))

    return build_step


def bound(level: str = ON, file_of: Callable[[str], Path] = exported) -> Build:
    """onnxruntime with IO binding: it reads the batch and writes the outputs where they lie."""

    def build_step(case: ModelCase, threads: int, batch: Batch) -> Step:
        opened = session(file_of(case.model), level, threads)
        bindings: dict[int, tuple[Any, tuple[Tensor, ...]]] = {}

        def step(batch: Batch) -> tuple[Tensor, ...]:
            key = batch.x.data_ptr()
            if key not in bindings:
                bindings[key] = _binding(opened, batch)
            binding, outputs = bindings[key]
            opened.run_with_iobinding(binding)
            return outputs

        return step

    return build_step


def _binding(opened: Any, batch: Batch) -> tuple[Any, tuple[Tensor, ...]]:
    """The batch and new outputs (N, width), bound to a session."""
    binding = opened.io_binding()
    place = {"device_type": "cpu", "device_id": 0, "element_type": batch.array.dtype}
    binding.bind_input(INPUT, shape=batch.array.shape, buffer_ptr=batch.x.data_ptr(), **place)
    outputs = tuple(torch.empty(len(batch.x), node.shape[1]) for node in opened.get_outputs())
    for node, output in zip(opened.get_outputs(), outputs, strict=True):
        binding.bind_output(
            node.name, shape=tuple(output.shape), buffer_ptr=output.data_ptr(), **place
        )
    return binding, outputs


def _torch(name: str, build_step: Build, available: Any = needs.nothing) -> Provider:
    return Provider(
        name,
        at_first_call(build_step),
        available,
        context=torch.inference_mode,
        phases=MODEL_PHASES,
    )


def _onnx(name: str, build_step: Build, before: Callable[[str], Path] = exported) -> Provider:
    return Provider(
        name, at_first_call(build_step, before), needs.export, phases=MODEL_PHASES, ours=True
    )


RUNTIMES: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        _torch("eager", eager),
        _torch("compile", compiled, needs.compiler),
        _torch("aot", ahead_of_time, needs.compiler),
        _onnx("onnx-unoptimised", onnx(OFF)),
        _onnx("onnx", onnx()),
        _onnx("onnx-bound", bound()),
    )
}
