"""The default corpus: the prose of Python's language reference, which every CPython carries.

``pydoc_data.topics`` holds what ``help("lambda")`` shows: technical English, under the licence of the Python
Software Foundation. Code, grammar rules and tables are left out, so that running text with its usual
punctuation remains: about 60,000 BERT tokens. The text differs a little between Python versions, hence the
version and the hash of the text in ``describe`` and ``fingerprint``.
"""

from __future__ import annotations

import hashlib
import platform
import re
import textwrap
from functools import cached_property
from typing import TYPE_CHECKING, Any

from outlierscope.corpus.document import Document
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST_CHARACTERS = 80
_LEAST_SHARE_OF_WORDS = 0.7
_CODE_MARKS = (">>>", "::=", " = ", "|  ")


class PythonReference:
    """All topics in alphabetical order as one document.

    Raises (while reading):
        UserError: when this Python was stripped of ``pydoc_data``.
    """

    @cached_property
    def _text(self) -> str:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise UserError(
                "this Python lacks pydoc_data.topics, the default text; give one with --data FILE or --text"
            ) from None
        # Dictionary keys keep the first occurrence only: some topics repeat whole sections of others.
        seen = {item: None for name in sorted(topics) for item in prose_paragraphs(topics[name])}
        return "\n\n".join(seen)

    @property
    def characters(self) -> int:
        """Length of the text."""
        return len(self._text)

    def __iter__(self) -> Iterator[Document]:
        yield Document("Python language reference", (self._text,))

    def fingerprint(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Its origin; the text depends on the version of Python."""
        return {
            "kind": "default",
            "path": None,
            "title": "prose of the Python language reference (pydoc_data.topics, PSF licence)",
            "python": platform.python_version(),
        }


def prose_paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of running text, each on one line without markup.

    >>> page = "Rule\\n****\\n\\n   a ::= b\\n\\nIt says that a rule named *a* can be replaced "
    >>> list(prose_paragraphs(page + "wherever it occurs by\\nanother one, which is named b."))
    ['It says that a rule named a can be replaced wherever it occurs by another one, which is named b.']
    """
    for block in re.split(r"\n\s*\n", textwrap.dedent(text)):
        line = re.sub(r"^(\* |\d+\. )", "", " ".join(block.split()))
        line = re.sub(r"\*{1,2}(\w[^*]*)\*{1,2}", r"\1", line)  # emphasis
        words = line.split()
        plain = sum(word.strip(".,;:!?()\"'’").isalpha() for word in words)
        if (
            len(line) >= _LEAST_CHARACTERS
            and line[-1] in ".!?:)"
            and plain >= _LEAST_SHARE_OF_WORDS * len(words)
            and not any(mark in line for mark in _CODE_MARKS)
        ):
            yield line
