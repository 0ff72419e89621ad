from __future__ import annotations

import numpy as np
import pytest
import torch

from outlierscope.corpus.iterables import GivenDocuments
from outlierscope.errors import UserError


def contents(source):
    return [
        (document.name, "".join(document.blocks) if document.token_ids is None else document.token_ids)
        for document in source
    ]


CASES = {
    "text": ("One.", [("texts[0]", "One.")]),
    "token ids": ([1, 2, 3], [("texts[0]", [1, 2, 3])]),
    "a tuple": ((1, 2), [("texts[0]", [1, 2])]),
    "an array": (np.array([1, 2]), [("texts[0]", [1, 2])]),
    "a tensor": (torch.tensor([1, 2]), [("texts[0]", [1, 2])]),
    "a batch": (torch.tensor([[1, 2], [3, 4]]), [("texts[0][0]", [1, 2]), ("texts[0][1]", [3, 4])]),
    "texts": (["a", "b"], [("texts[0][0]", "a"), ("texts[0][1]", "b")]),
    "a mapping with text": ({"text": ["a"], "label": [1]}, [("texts[0][0]", "a")]),
    "a mapping with ids": ({"input_ids": [7, 8]}, [("texts[0]", [7, 8])]),
    "a padded batch": (
        {
            "input_ids": torch.tensor([[1, 2, 0], [0, 4, 5]]),
            "attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]]),
        },
        [("texts[0][0]", [1, 2]), ("texts[0][1]", [4, 5])],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_items(case):
    item, expected = CASES[case]
    assert contents(GivenDocuments([item])) == expected
    assert contents(GivenDocuments(iter([item]))) == expected


def test_a_data_loader_that_shuffles_is_read_once():
    rows = [{"input_ids": torch.tensor([n, n])} for n in range(32)]
    source = GivenDocuments(torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True))
    first = contents(source)
    assert sorted(ids for _, ids in first) == [[n, n] for n in range(32)]
    assert contents(source) == first


def test_an_iterator_is_read_only_as_far_as_needed():
    taken = []

    def endless():
        n = 0
        while True:
            taken.append(n)
            yield f"text {n}"
            n += 1

    source = GivenDocuments(endless())
    readers = [iter(source), iter(source)]
    assert [next(readers[0]).name for _ in range(3)] == ["texts[0]", "texts[1]", "texts[2]"]
    assert [next(readers[1]).name for _ in range(4)][-1] == "texts[3]"
    assert taken == [0, 1, 2, 3]
    assert source.characters is None


def test_fingerprints_follow_the_content():
    prints = [
        GivenDocuments(items).fingerprint()
        for items in (["ab", "c"], ["a", "bc"], [[1, 2]], ["[1, 2]"], [[1], [2]], [])
    ]
    # Token ids and a text that looks like them may only differ by kind.
    assert len(set(prints)) == len(prints)
    assert GivenDocuments(["ab", "c"]).fingerprint() == prints[0]


ERRORS = {
    "texts[1] is a int; expected str, a sequence of token ids, or a mapping with input_ids or text": 3,
    "texts[1] is a NoneType; expected": None,
    "texts[1] is a bytes; expected": b"abc",
    "texts[1][0] is a float; expected": [1.5],
    "texts[1] has neither input_ids nor text; there are: body, label": {"body": 1, "label": 2},
    "texts[1]: input_ids must be token ids": {"input_ids": "words"},
}


@pytest.mark.parametrize("message", ERRORS)
def test_other_items(message):
    with pytest.raises(UserError) as caught:
        contents(GivenDocuments(["fine", ERRORS[message]]))
    assert str(caught.value).startswith(message)
