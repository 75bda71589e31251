"""Run an exported model with onnxruntime; nothing of PyTorch is needed but for tensors given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fused_loss.export.admission import admitted
from fused_loss.export.binding import BoundHeads
from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.feeds import port, unknown_index
from fused_loss.export.files import as_path
from fused_loss.export.meaning import read_meaning
from fused_loss.export.session import EmptyBatchError, Provider, started


class Predictions(NamedTuple):
    """Of one batch."""

    regression: np.ndarray  # (N, *)
    classification: np.ndarray  # (N, C, *), logits or probabilities
    label: np.ndarray  # (N, *), an index; -1 where a value of the classes is NaN


class OnnxDualHead:
    """An exported two-headed model, called on NumPy arrays or on tensors in the CPU's memory.

    Threads of Python may share one: nothing of it changes after it is made. A copy, or what another
    process gets, opens the same file again; it is an error if that has changed since.

    Args:
        path: The `.onnx` file.
        threads: Threads within an operator.
        providers: Of onnxruntime, in order of preference; the CPU by default. What one of them does
            not take goes to the next; the CPU is a fallback only where it is named.
        spinning: Whether idle threads wait busily for the next operator: sooner there, and slower
            for whatever else runs. Without effect at one thread.
        sha256: Of the file that is wanted; any other is refused.

    Attributes:
        input_names, output_names: In the order of call and return.
        input_shapes, output_shapes: One tuple a name; a symbolic axis stands by its name.
        input_dtypes: One NumPy dtype an input.
        inputs, outputs: The same, one `Port` each.
        class_names: One a class; empty where the file does not say.
        units: Of the regression values: one for all of them, one each, or none.
        providers: Those in use, in order.
        sha256: Of the file.

    Raises:
        FileNotFoundError: No file at `path`.
        OnnxLoadError: onnxruntime cannot load it, it has changed since it was exported or is not
            the one that is wanted, it does not have two heads, or an input is of a type that NumPy
            lacks.
        MissingDependencyError: onnxruntime is not installed.
        TypeError: `path` is no path.
        ValueError: A number of threads below 1, or a provider that onnxruntime does not have.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int = 1,
        providers: Sequence[Provider] | None = None,
        *,
        spinning: bool = True,
        sha256: str | None = None,
    ) -> None:
        self.path = as_path(path)
        file = admitted(self.path, sha256)
        self.sha256 = file.sha256
        chosen = None if providers is None else tuple(providers)
        self._again = (file.path, threads, chosen, spinning)
        self._session = started(
            file, self.path.name, threads=threads, providers=chosen, spinning=spinning
        )
        nodes = {node.name: node for node in self._session.get_outputs()}
        metadata = self._session.get_modelmeta().custom_metadata_map
        meaning = read_meaning(metadata, tuple(nodes), self.path.name)
        self.inputs = tuple(port(node) for node in self._session.get_inputs())
        used = [*meaning.heads, *filter(None, [meaning.label])]
        self._ports = {name: port(nodes[name]) for name in used}
        self.outputs = tuple(self._ports[name] for name in meaning.heads)
        self._heads = list(meaning.heads)
        self._label = meaning.label
        self.input_names = tuple(found.name for found in self.inputs)
        self.input_shapes = tuple(found.shape for found in self.inputs)
        self.input_dtypes = tuple(found.dtype for found in self.inputs)
        self.output_names = meaning.heads
        self.output_shapes = tuple(found.shape for found in self.outputs)
        self.class_names, self.units = meaning.class_names, meaning.units
        self.providers = tuple(self._session.get_providers())
        self._check_class_names()
        self._only = _single(self.input_shapes)

    def __call__(self, *inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """(N, *) an input -> (regression (N, *), classification (N, C, *)).

        Raises:
            TypeError: Not an array or a tensor, another dtype, or another byte order.
            ValueError: The wrong number of inputs, shapes that the model does not take, or an index
                that is out of its range.
        """
        regression, classification = self._run(self._heads, self._feeds(inputs))
        return regression, classification

    def predict(self, *inputs: Any) -> Predictions:
        """Both heads and the index of the class: the file's own where it has one.

        Raises:
            TypeError, ValueError: As a call.
        """
        names = [*self._heads, self._label] if self._label else self._heads
        regression, classification, *own = self._run(names, self._feeds(inputs))
        label = own[0] if own else classification.argmax(1)
        unknown = np.isnan(classification).any(1)
        return Predictions(regression, classification, np.where(unknown, -1, label))

    def bind(self, rows: int) -> BoundHeads:
        """Arrays for that many rows, read and written in place: the fastest way to call.

        Raises:
            ValueError: No row, or an axis beside the first is symbolic.
        """
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        return BoundHeads(self._session, self.inputs, self.outputs, rows)

    def warm_up(self, *sizes: int) -> None:
        """Run on zeros at each batch size (1 by default): it is a first call that allocates.

        Raises:
            ValueError: An axis beside the first is symbolic.
        """
        for rows in sizes or (1,):
            self(*(np.zeros(found.sized(rows), found.dtype) for found in self.inputs))

    def __reduce__(self) -> Any:
        """A copy, in this process or in another, opens the same file again and no other."""
        path, threads, providers, spinning = self._again
        again = partial(type(self), spinning=spinning, sha256=self.sha256)
        return again, (path, threads, providers)

    def __repr__(self) -> str:
        """The file, its inputs and its outputs, and what it runs on."""
        inputs = ", ".join(
            f"{name} {dtype}{list(shape)}"
            for name, dtype, shape in zip(
                self.input_names, self.input_dtypes, self.input_shapes, strict=True
            )
        )
        return (
            f"OnnxDualHead({str(self.path)!r}: {inputs} -> {', '.join(self.output_names)}, "
            f"on {', '.join(self.providers)})"
        )

    def _run(self, names: list[str], feeds: dict[str, np.ndarray]) -> Any:
        try:
            return self._session.run(names, feeds)
        except EmptyBatchError:  # of nothing there is nothing
            return [np.zeros(self._ports[name].sized(0), self._ports[name].dtype) for name in names]
        except Exception as error:
            if said := unknown_index(error, feeds):
                raise ValueError(said) from error
            raise

    def _feeds(self, inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
        if self._only is not None and len(inputs) == 1:
            # The usual array, found right with five comparisons.
            value = inputs[0]
            if (
                type(value) is np.ndarray
                and value.dtype == self.input_dtypes[0]
                and value.shape[1:] == self._only
                and value.flags.carray
            ):
                return {self.input_names[0]: value}
        if len(inputs) != len(self.inputs):
            raise ValueError(
                f"the model takes {len(self.inputs)} inputs {self.input_names}, got {len(inputs)}"
            )
        feeds = {
            found.name: found.checked(value)
            for found, value in zip(self.inputs, inputs, strict=True)
        }
        rows = {name: array.shape[0] for name, array in feeds.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"the inputs must have the same number of rows, got {rows}")
        return feeds

    def _check_class_names(self) -> None:
        classes = self.output_shapes[1][1] if len(self.output_shapes[1]) > 1 else None
        if self.class_names and isinstance(classes, int) and classes != len(self.class_names):
            raise OnnxLoadError(
                f"{self.path.name} names {len(self.class_names)} classes and has {classes}"
            )


def _single(shapes: Sequence[tuple[int | str | None, ...]]) -> tuple[int, ...] | None:
    """The shape of a sample, of a model with one input of known shape and a free batch axis."""
    if len(shapes) != 1 or len(shapes[0]) < 2 or isinstance(shapes[0][0], int):
        return None
    tail = tuple(size for size in shapes[0][1:] if isinstance(size, int))
    return tail if len(tail) == len(shapes[0]) - 1 else None
