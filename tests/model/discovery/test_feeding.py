"""Feeding: lists of blocks that a model's own inputs do not reach are entered where their owner takes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from outlierscope.model.discovery.blocks import find_block_lists
from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.feeding import feed, runs_whole
from outlierscope.model.discovery.owner_inputs import owner_inputs, width_asked_for, widths_of
from outlierscope.model.discovery.whole_pass import record_whole


def _bert(blocks: int = 2) -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=8,
            num_hidden_layers=blocks,
            num_attention_heads=2,
            intermediate_size=20,
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
            found.append(width_asked_for(str(error)))
    try:
        torch.zeros(2, 4) + torch.zeros(6)
    except RuntimeError as error:
        found.append(width_asked_for(str(error)))
    assert found == [5, 7, 6]


class _FailsLate(_Unfeedable):
    """Fails after some of its encoder's blocks, on inputs that can be made."""

    def __init__(self, blocks_before: int) -> None:
        super().__init__()
        self.blocks_before = blocks_before

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.stack.layer[: self.blocks_before]:
            hidden_states = layer(hidden_states)
        return self.front(hidden_states[..., :3])


def test_a_pass_that_fails_behind_all_blocks_serves() -> None:
    model = _FailsLate(blocks_before=2)
    fed, reasons = feed(model)
    assert [passed.entry for passed in fed] == [""]
    assert reasons == []
    assert discover(model).proved is True


def test_a_pass_that_fails_between_blocks_does_not_serve() -> None:
    model = _FailsLate(blocks_before=1)

    def refuse(*_: object, **__: object) -> Tensor:
        raise ValueError("no hidden states are taken here")

    model.stack.forward = refuse  # nor can the encoder be run by itself
    fed, reasons = feed(model)
    assert fed == []
    assert [reason.partition(" (")[0] for reason in reasons] == ["a tiny forward pass of _FailsLate failed"]
    assert "shapes cannot be multiplied (24x3 and 8x8)" in reasons[0]


class _OfPixels(_Unfeedable):
    """Reads pixels, as it says, through an argument with a name that says otherwise."""

    main_input_name = "pixel_values"

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, channels = hidden_states.shape[:2]
        assert channels == 3
        tokens = hidden_states.reshape(batch, -1, 8)[:, :5]
        out: Tensor = self.stack(tokens).last_hidden_state
        return out


def test_the_only_argument_may_hold_what_the_model_says_that_it_reads() -> None:
    model = _OfPixels()
    assert runs_whole(model)
    assert not runs_whole(_Unfeedable())
    assert discover(model).proved is True


class _OverMaps(nn.Module):
    """Attends to the tokens of a map [B, d, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _bert(blocks=1).encoder.layer

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)  # [B, H * W, d]
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.transpose(1, 2).reshape(maps.shape)


def test_blocks_are_what_takes_the_tokens_of_a_map() -> None:
    model = nn.Sequential(_OverMaps())
    model.config = _bert().config
    recording = record_whole(model, {"input": torch.randn(2, 8, 3, 4)})
    assert [found.container for found in find_block_lists(model, recording)] == ["0.layers"]


class _OfPatches(_OfPixels):
    """Reads patches by sequence, and must be told their grid though its signature leaves it open."""

    def forward(self, pixel_values: Tensor, grid_thw: Tensor | None = None) -> Tensor:
        assert grid_thw is not None
        batch, patches = pixel_values.shape[:2]
        assert (pixel_values.ndim, patches) == (5, int(grid_thw.prod()))
        out: Tensor = self.stack(pixel_values.reshape(batch, patches, -1)[..., :8]).last_hidden_state
        return out


def test_a_grid_that_may_be_left_out_is_offered_with_patches() -> None:
    assert discover(_OfPatches()).proved is True
