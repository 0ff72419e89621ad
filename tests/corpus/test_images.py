from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from outlierscope.corpus.batching import Sampling
from outlierscope.corpus.image_classes import PatchGrid
from outlierscope.corpus.images import ImageCorpus, first_pixels
from outlierscope.corpus.media import MediaError, folder_files
from outlierscope.corpus.pictures import IMAGE_SUFFIXES, given_pictures, upright_rgb
from outlierscope.errors import UserError

GRID = PatchGrid(1, 2, 2, 16, 16)


@pytest.fixture(scope="module")
def processor():
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 32, "width": 32})


def picture(seed=0, size=(40, 30), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Nine good pictures of many kinds, two bad ones among them, and files that are none."""
    (tmp_path / "sub").mkdir()
    picture(1).save(tmp_path / "a.jpg")
    picture(2).save(tmp_path / "b.PNG", format="PNG")
    (tmp_path / "c.jpg").write_bytes(b"no picture at all")
    picture(3).save(tmp_path / "d.webp")
    picture(4, mode="CMYK").save(tmp_path / "e.jpg")
    picture(5, mode="L").save(tmp_path / "f.png")
    picture(6, mode="P").save(tmp_path / "g.gif")
    picture(7, mode="RGBA").save(tmp_path / "h.png")
    picture(8, mode="1").save(tmp_path / "i.bmp")
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 54).save(tmp_path / "j.png")
    cut = tmp_path / "sub" / "k.jpg"
    picture(9).save(cut)
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "notes.txt").write_text("no picture")
    picture(10).save(tmp_path / ".hidden.png")
    return tmp_path


def folder_pictures(folder):
    return folder_files(folder, IMAGE_SUFFIXES, "pictures", "images")


def make(folder, processor, **choices):
    choices = {"stack": "vision", "grid": GRID, "batch_size": 2} | choices
    return ImageCorpus(folder_pictures(folder), processor, **choices)


def test_a_folder_is_read_in_order_without_what_is_broken(folder, processor):
    corpus = make(folder, processor)
    batches = list(corpus.batches())
    names = [name for batch in batches for name in batch.documents]
    good = ["a.jpg", "b.PNG", "d.webp", "e.jpg", "f.png", "g.gif", "h.png", "i.bmp", "j.png"]
    assert names == good
    assert [batch.number for batch in batches] == list(range(5))
    assert torch.cat([batch.sequence_ids for batch in batches]).tolist() == list(range(9))
    for batch in batches:
        count = len(batch.documents)
        assert batch.inputs["pixel_values"].shape == (count, 3, 32, 32)
        assert batch.inputs["pixel_values"].dtype == torch.float32
        assert torch.equal(batch.token_ids, torch.full((count, 5), -1))
        assert batch.real.all()
        assert torch.equal(batch.classes, GRID.classes(batch.inputs["pixel_values"]))
        assert (batch.classes[:, 0] == 0).all()
    described = corpus.describe()
    assert described["pictures"] == 11
    assert described["pictures_decoded"] == 9
    assert described["pictures_skipped"] == 2
    assert [entry["picture"] for entry in described["skipped"]] == ["c.jpg", "sub/k.jpg"]
    assert described["skipped"][0]["reason"] == "not a picture, or of an unknown kind"
    assert "truncated" in described["skipped"][1]["reason"].lower()
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize("start", range(7))
def test_a_restart_changes_nothing(folder, processor, start):
    corpus = make(folder, processor, sampling=Sampling(2, 3))
    whole = list(corpus.batches())
    described = corpus.describe()
    rest = list(corpus.batches(start))
    assert len(rest) == max(0, 5 - start)
    for one, other in zip(rest, whole[start:], strict=True):
        assert (one.number, one.documents, one.dear) == (other.number, other.documents, other.dear)
        assert torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
        assert torch.equal(one.sequence_ids, other.sequence_ids)
    assert corpus.describe() == described
    if 0 < start <= len(whole):
        # Saved as JSON, and read by a corpus that has read nothing yet.
        cursor = json.loads(json.dumps(whole[start - 1].cursor))
        resumed = make(folder, processor, sampling=Sampling(2, 3))
        for one, other in zip(resumed.batches(start, cursor), whole[start:], strict=True):
            assert (one.number, one.documents, one.dear, one.cursor) == (
                other.number,
                other.documents,
                other.dear,
                other.cursor,
            )
            assert torch.equal(one.sequence_ids, other.sequence_ids)
            assert torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
        assert resumed.describe() == described
    fresh = make(folder, processor)
    assert sum(len(batch.documents) for batch in fresh.batches(start)) == max(0, 9 - 2 * start)
    assert fresh.describe()["skipped"] == described["skipped"]


@pytest.mark.parametrize(("tokens", "pictures"), [(1, 1), (5, 1), (6, 2), (25, 5), (1000, 9), (None, 9)])
def test_the_budget_counts_positions(folder, processor, tokens, pictures):
    corpus = make(folder, processor, tokens=tokens)
    assert sum(len(batch.documents) for batch in corpus.batches()) == pictures
    assert corpus.estimated_tokens >= 5 * pictures


def test_the_batch_size_follows_from_the_positions(processor):
    corpus = ImageCorpus(
        given_pictures([picture()]), processor, stack="vision", grid=PatchGrid(1, 14, 14, 16, 16)
    )
    assert corpus.batch_size == 20


def test_a_batch_equals_the_pictures_processed_one_by_one(folder, processor):
    (batch, *_) = make(folder, processor).batches()
    for row, name in enumerate(["a.jpg", "b.PNG"]):
        with Image.open(folder / name) as image:
            alone = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        assert torch.equal(batch.inputs["pixel_values"][row], alone[0])


def test_exif_orientation_is_followed(tmp_path):
    image = picture(size=(40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    image.save(tmp_path / "turned.png", exif=exif)
    turned = upright_rgb(tmp_path / "turned.png")
    assert turned.size == (30, 40)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = np.asarray(upright_rgb(tmp_path / "deep.png"))[..., 0].astype(float)
    assert np.abs(found - values / 257).max() <= 1


def test_cmyk_and_grey_photographs(shared_data):
    folder = shared_data("images")
    plain = np.asarray(upright_rgb(folder / "speciesnet_african_elephants.jpg")).astype(float)
    cmyk = np.asarray(upright_rgb(folder / "speciesnet_african_elephants_cmyk.jpg")).astype(float)
    grey = np.asarray(upright_rgb(folder / "speciesnet_african_elephants_bw.jpg"))
    assert plain.shape == cmyk.shape == grey.shape
    assert np.abs(plain - cmyk).mean() < 16
    assert (grey[..., 0] == grey[..., 2]).all()


def test_real_photographs_through_a_real_processor(shared_data, shared_model):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(shared_model("vit-tiny-patch16-224"))
    corpus = make(
        shared_data("images"), processor, grid=PatchGrid(1, 14, 14, 16, 16), batch_size=8, tokens=16 * 197
    )
    batches = list(corpus.batches())
    assert [tuple(batch.inputs["pixel_values"].shape) for batch in batches] == [(8, 3, 224, 224)] * 2
    assert batches[0].documents[0] == "kodak_kodim01.jpg"
    counts = batches[0].classes[0].bincount(minlength=6).tolist()
    assert counts[:2] == [1, 0]
    assert counts[2] + counts[3] == 52
    assert counts[4] + counts[5] == 144


def test_all_pictures_bad(tmp_path, processor):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UserError) as caught:
        first_pixels(folder_pictures(tmp_path), processor)
    assert str(caught.value) == (
        "none of the 2 pictures can be decoded (a.jpg: not a picture, or of an unknown kind); give others"
    )


def test_a_processor_that_keeps_sizes_is_refused():
    class Keeps:
        def __call__(self, images, return_tensors):
            return {"pixel_values": torch.zeros(1, 3, images.height, images.width)}

    pictures = given_pictures([picture(size=(32, 32)), picture(size=(64, 32))])
    corpus = ImageCorpus(pictures, Keeps(), stack="vision", grid=GRID)
    with pytest.raises(UserError) as caught:
        list(corpus.batches())
    assert str(caught.value) == (
        "the image processor makes 32 x 64 pixels of pictures[1], and another size of other pictures; "
        "only models that see one size are supported"
    )


def test_pictures_from_python(tmp_path):
    picture().save(tmp_path / "a.png")
    found = given_pictures([str(tmp_path / "a.png"), tmp_path / "a.png", picture()])
    assert [type(item.content).__name__ for item in found.items()] == ["PosixPath", "PosixPath", "Image"]
    with pytest.raises(UserError, match=r"^pictures\[0\] is a int; expected a path or a PIL image$"):
        given_pictures([3])
    with pytest.raises(UserError, match=r"^pictures\[0\]: no such file: nowhere.png$"):
        given_pictures(["nowhere.png"])
    with pytest.raises(UserError, match=r"^no pictures were given$"):
        given_pictures([])


def test_fingerprints_follow_content_and_settings(folder, processor):
    base = make(folder, processor).fingerprint()
    assert make(folder, processor).fingerprint() == base
    variants = [
        {"batch_size": 3},
        {"tokens": 20},
        {"sampling": Sampling(1)},
        {"grid": PatchGrid(0, 2, 2, 16, 16)},
    ]
    prints = {make(folder, processor, **variant).fingerprint() for variant in variants}
    (folder / "b.PNG").rename(folder / "b2.png")
    prints.add(make(folder, processor).fingerprint())
    content = bytearray((folder / "a.jpg").read_bytes())
    content[-3] ^= 1
    (folder / "a.jpg").write_bytes(content)
    prints.add(make(folder, processor).fingerprint())
    assert len(prints | {base}) == 7


def test_words_for_places(folder, processor):
    corpus = make(folder, processor)
    batch = next(corpus.batches())
    assert corpus.context(batch, 0, 0) == "before the patches of a.jpg"
    assert corpus.context(batch, 1, 4) == "patch in row 1, column 1 of b.PNG"
    assert corpus.place(0) is None
    assert corpus.place(3) == {"patch_row": 1, "patch_column": 0}
    assert corpus.token_text(3) is None


def test_damaged_data_of_any_kind_is_told(tmp_path):
    picture().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    rng = np.random.default_rng(0)
    reasons = []
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(8, len(damaged), 20):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "b.png").write_bytes(damaged)
        try:
            assert upright_rgb(tmp_path / "b.png").mode == "RGB"
        except MediaError as error:
            reasons.append(str(error))
    assert len(reasons) > 30
    assert all(reason and "\n" not in reason for reason in reasons)
