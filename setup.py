"""Package definition; `pip install -e .` is all that a checkout needs."""

import pathlib

from setuptools import setup

ROOT = pathlib.Path(__file__).parent
TOOLS = sorted(
    path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__"
)
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "tfopt").rglob("__init__.py")
)

setup(
    name="tfopt",
    version="0.1.0",
    description="Model optimization for TensorFlow: small, fast, verified.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # `tools/` at the top level is the importable package tfopt.tools.
    packages=[*PACKAGES, "tfopt.tools"],
    package_dir={"tfopt.tools": "tools"},
    package_data={"tfopt": ["py.typed"]},
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "tf-keras>=2.21,<2.22",
        "tensorflow-model-optimization>=0.8.1,<0.9",
        "ai-edge-litert>=2.3,<2.4",
        "numpy>=1.26",
        "absl-py>=1.4",
        "google-crc32c>=1.5",
        "rich>=13",
        # TFMOT imports distutils, which Python 3.12 has only through setuptools.
        "setuptools<81",
    ],
    extras_require={
        "plot": ["matplotlib>=3.8"],
        "zstd": ["zstandard>=0.22"],
        "benchmark": ["onnxruntime>=1.31", "openvino>=2026.4", "tf2onnx>=1.17"],
        "litert-quantizer": ["litert-quantizer>=0.11,<0.12"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "matplotlib>=3.8",
            "zstandard>=0.22",
            "litert-quantizer>=0.11,<0.12",
        ],
    },
    entry_points={
        "console_scripts": [
            f"tfopt-{name.replace('_', '-')}=tfopt.tools.{name}:run" for name in TOOLS
        ]
    },
)
