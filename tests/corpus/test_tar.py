from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from outlierscope.corpus.image_classes import PatchGrid
from outlierscope.corpus.images import ImageCorpus, first_pixels
from outlierscope.corpus.pictures import IMAGE_SUFFIXES
from outlierscope.corpus.tar import TarMembers
from outlierscope.errors import UserError

NAMES = ["b.png", "a.cls", "a.png", "../../outside.png", "bad.jpg", ".hidden.png", "c/d.PNG", "z.png"]


@pytest.fixture(params=["x.tar", "x.tar.gz"])
def archive(tmp_path, request):
    """Members in no order, one that names a place outside, one that is broken, and a link."""
    path = tmp_path / request.param
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for seed, name in enumerate(NAMES):
            content = io.BytesIO()
            values = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(values).save(content, "PNG")
            data = b"broken" if name == "bad.jpg" else content.getvalue()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return path


def make(path):
    from transformers import ViTImageProcessorPil

    return ImageCorpus(
        TarMembers(path, IMAGE_SUFFIXES, "images"),
        ViTImageProcessorPil(size={"height": 32, "width": 32}),
        stack="vision",
        grid=PatchGrid(1, 2, 2, 16, 16),
        batch_size=2,
    )


def test_members_in_stored_order_and_nothing_extracted(archive):
    before = sorted(archive.parent.rglob("*"))
    corpus = make(archive)
    names = [name for batch in corpus.batches() for name in batch.documents]
    assert names == ["b.png", "a.png", "../../outside.png", "c/d.PNG", "z.png"]
    described = corpus.describe()
    assert described["skipped"] == [{"picture": "bad.jpg", "reason": "not a picture, or of an unknown kind"}]
    assert (described["pictures"], described["pictures_decoded"]) == (None, 5)
    assert sorted(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_cursor_goes_on_at_the_same_member(archive, start):
    whole = list(make(archive).batches())
    cursor = json.loads(json.dumps(whole[start - 1].cursor))
    for one, other in zip(make(archive).batches(start, cursor), whole[start:], strict=True):
        assert (one.number, one.documents, one.cursor) == (other.number, other.documents, other.cursor)
        assert torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])


def test_what_is_damaged(archive, tmp_path):
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2 - 300])
    with pytest.raises(UserError, match=rf"^{archive}: damaged after \d files, or no .tar \("):
        list(make(archive).batches())
    archive.write_bytes(b"nothing like it")
    with pytest.raises(UserError, match=rf"^{archive}: damaged after 0 files, or no .tar \("):
        list(make(archive).batches())


def test_an_archive_of_other_things(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(UserError) as caught:
        first_pixels(TarMembers(path, IMAGE_SUFFIXES, "images"), None)
    assert str(caught.value) == f"{path}: no pictures were found in it; give others"


def test_fingerprint_follows_content(archive):
    first = make(archive).fingerprint()
    assert make(archive).fingerprint() == first
    archive.write_bytes(archive.read_bytes()[:-1] + b"\x01")
    assert make(archive).fingerprint() != first


@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_a_compressed_archive_with_damaged_bytes_is_one_error(tmp_path, compression):
    path = tmp_path / "x.tgz"
    with tarfile.open(path, f"w:{compression}") as file:
        for name in ("a.png", "b.png", "c.png"):
            member = tarfile.TarInfo(name)
            member.size = 200_000
            file.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(member.size // 2).hex().encode()))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = b"\xff" * 4000
    if compression == "gz":  # a second member whose first block is of no known type
        content = gzip.decompress(path.read_bytes())
        data = bytearray(gzip.compress(content[:300_000]) + gzip.compress(b"")[:10] + b"\xff" * 4000)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.tgz: damaged after \d files, or no \.tar"):
        list(TarMembers(path, IMAGE_SUFFIXES, "images").items())
