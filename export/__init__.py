"""Write a two-headed model to ONNX, prove that onnxruntime agrees with PyTorch, run the file."""

from fused_loss.export.errors import (
    MissingDependencyError,
    OnnxExportError,
    OnnxLoadError,
    OnnxVerificationError,
)
from fused_loss.export.inspection import Inspection, inspect_onnx
from fused_loss.export.report import Comparison, VerificationReport
from fused_loss.export.runtime import OnnxDualHead, Predictions
from fused_loss.export.to_onnx import ExportResult, export_onnx
from fused_loss.export.verify import verify_onnx

__all__ = [
    "Comparison",
    "ExportResult",
    "Inspection",
    "MissingDependencyError",
    "OnnxDualHead",
    "OnnxExportError",
    "OnnxLoadError",
    "OnnxVerificationError",
    "Predictions",
    "VerificationReport",
    "export_onnx",
    "inspect_onnx",
    "verify_onnx",
]
