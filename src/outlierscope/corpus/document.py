"""Document: one text, or one conversation or pair of texts, and how it is made of the cells of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlierscope.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Document:
    """One text, or the token ids of one.

    Attributes:
        name: where it came from, for messages: ``my.jsonl:17``.
        blocks: consecutive pieces of the text; read once. Empty when token ids were given.
        token_ids: the token ids as given, or ``None``.
        pair: two texts that the model gets together, or ``None``.
    """

    name: str
    blocks: Iterable[str] = ()
    token_ids: list[int] | None = None
    pair: tuple[str, str] | None = None


Reader = Callable[[list[Any], str, str], Document]
"""Makes a document of the cells of one row: cells, the document's name, the place for messages."""


def read_text(cells: list[Any], name: str, place: str) -> Document:
    """A reader of one column of text or token ids; see ``cell_document``."""
    return cell_document(cells[0], name, place)


def cell_document(cell: object, name: str, place: str) -> Document:
    """The document in one cell of a table; an absent one (``None``) is an empty text.

    Raises:
        UserError: for anything but text and lists of token ids; ``place`` says where.
    """
    if cell is None:
        return Document(name, ("",))
    if isinstance(cell, str):
        return Document(name, (cell,))
    if isinstance(cell, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in cell):
        return Document(name, token_ids=cell)
    raise UserError(f"{place} holds {kind_of(cell)}, expected text or a list of token ids")


def read_pair(cells: list[Any], name: str, place: str) -> Document:
    """A reader of two columns of text that the model gets together.

    Raises:
        UserError: for anything but two texts.
    """
    for cell in cells:
        if not isinstance(cell, str):
            raise UserError(f"{place} holds {kind_of(cell)}, expected two texts")
    return Document(name, pair=(cells[0], cells[1]))


class ChatReader:
    """A reader of one column of conversations, through the tokenizer's own chat template.

    Documents are token ids: the template says which special tokens a conversation begins and ends with, and none are
    added to them.

    Raises:
        UserError: for a tokenizer without a template, and while reading for malformed messages and for those
            that the template refuses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if tokenizer is None:
            raise UserError("--chat needs the model's tokenizer, and this model comes without one")
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "--chat: this model's tokenizer has no chat template; leave the option out and give text, or take "
                "a model that was tuned on chats"
            )
        self.tokenizer = tokenizer

    def __call__(self, cells: list[Any], name: str, place: str) -> Document:
        """The token ids of one conversation."""
        from jinja2 import TemplateError

        messages = cells[0]
        if not isinstance(messages, list) or not messages:
            raise UserError(f"{place} holds {kind_of(messages)}, expected a list of messages")
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise UserError(f"{place}: message {number} is {kind_of(message)}, expected an object")
            for key in ("role", "content"):
                if not isinstance(message.get(key), str):
                    found = f"has {kind_of(message[key])} as" if key in message else "lacks"
                    raise UserError(f"{place}: message {number} {found} {key!r}, expected a text there")
        try:
            ids: Any = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        except (TemplateError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{place}: the chat template refuses this conversation ({reason})") from error
        return Document(name, token_ids=[int(token) for token in ids])


def missing_column(place: str, column: str, present: Iterable[str]) -> UserError:
    """The error for a column that is not there."""
    names = ", ".join(str(name) for name in present) or "none"
    return UserError(f"{place}: no column {column!r}; there are: {names}; choose one with --column")


def kind_of(value: object) -> str:
    """What a JSON or Arrow value is, in a user's words."""
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list of other things" if value else "an empty list"
    if isinstance(value, Mapping):
        return "an object"
    return "nothing" if value is None else f"a {type(value).__name__}"
