"""Packaging: four top-level folders install as the one package ``fused_loss``."""

from pathlib import Path

from setuptools import setup

EXTRAS = {
    "triton": ["triton>=3.6; platform_system == 'Linux'"],
    "export": [
        "onnx>=1.17",
        "onnxruntime>=1.20",
        "onnxscript>=0.5",
        "numpy",
        "rich",
        "safetensors",
    ],
    "parquet": ["pyarrow>=14"],
    "bench": ["pytest>=8", "pytest-benchmark>=5", "rich", "matplotlib>=3.8"],
    "demo": ["palmerpenguins>=0.1.4", "matplotlib>=3.8", "rich"],
    "examples": ["plotnine>=0.15", "open-spiel>=1.6.11", "scikit-learn>=1.3"],
    "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "torchjd>=0.10"],
    "dev": ["ruff", "mypy", "pandas-stubs", "pre-commit"],
}
EXTRAS["demo"] += EXTRAS["export"]
EXTRAS["examples"] += EXTRAS["demo"]
EXTRAS["test"] += EXTRAS["triton"] + EXTRAS["bench"] + EXTRAS["examples"] + EXTRAS["parquet"]
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="fused-loss",
    version="0.1.0",
    description="alpha * MSE + (1 - alpha) * cross-entropy in one pass, and a verified ONNX export",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # A package named `kernels` exists on PyPI, so ours lives under `fused_loss`.
    # A new sub-folder must be added here: tests/test_packaging.py compares wheel and tree.
    packages=["fused_loss", "fused_loss.kernels", "fused_loss.export", "fused_loss.bench"],
    package_dir={
        "fused_loss": "fused_loss",
        "fused_loss.kernels": "kernels",
        "fused_loss.export": "export",
        "fused_loss.bench": "bench",
    },
    package_data={"fused_loss": ["py.typed"]},
    install_requires=["torch>=2.11", "numpy>=1.26"],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fused-loss = fused_loss.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
