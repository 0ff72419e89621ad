"""Feeding: lists of blocks that a model's own inputs do not reach are entered where their owner takes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.feeding import feed
from outlierscope.model.discovery.owner_inputs import owner_inputs, width_asked_for, widths_of


def _bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20
        )
    )


class _Unfeedable(nn.Module):
    """Runs an encoder on what no example can be made of."""

    def __init__(self) -> None:
        super().__init__()
        bert = _bert()
        self.config = bert.config
        self.front = nn.Linear(8, 8)
        self.stack = bert.encoder

    def forward(self, session: object) -> Tensor:
        assert isinstance(session, dict)
        out: Tensor = self.stack(self.front(session["states"])).last_hidden_state
        return out


def test_a_stack_behind_an_input_that_cannot_be_made_is_entered_at_its_owner() -> None:
    fed, reasons = feed(_Unfeedable())
    assert [passed.entry for passed in fed] == ["stack"]
    assert reasons == []


def test_such_a_stack_is_proved_and_says_where_it_was_entered() -> None:
    anatomy = discover(_Unfeedable())
    assert anatomy.proved is True
    assert {stack.entry for stack in anatomy.stacks.values()} == {"stack"}


def test_the_reason_stays_where_no_owner_takes_hidden_states() -> None:
    model = _Unfeedable()

    def refuse(*_: object, **__: object) -> Tensor:
        raise ValueError("no hidden states are taken here")

    model.stack.forward = refuse
    fed, reasons = feed(model)
    assert fed == []
    assert reasons == ["no example can be made of the input 'session' of _Unfeedable"]


def test_two_required_inputs_may_differ_in_width() -> None:
    class Owner(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first

    shapes = [
        tuple(value.shape[-1] for value in inputs.values() if isinstance(value, Tensor))
        for inputs in owner_inputs(Owner(), [8, 20])
    ]
    assert shapes[:4] == [(8, 8), (20, 20), (8, 20), (20, 8)]


def test_the_width_of_a_block_is_that_of_most_of_its_vectors() -> None:
    assert widths_of(_bert().encoder.layer[0])[0] == 8


def test_pytorch_still_words_its_messages_so_that_the_width_is_found() -> None:
    found = []
    for module, shape in ((nn.Linear(5, 3), (2, 4)), (nn.LayerNorm(7), (2, 4))):
        try:
            module(torch.zeros(shape))
        except RuntimeError as error:
            found.append(width_asked_for(error))
    try:
        torch.zeros(2, 4) + torch.zeros(6)
    except RuntimeError as error:
        found.append(width_asked_for(error))
    assert found == [5, 7, 6]
