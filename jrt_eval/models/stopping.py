"""Stop strings: whether a row's new tokens spell one yet.

Text is searched, not tokens, because a stop string may begin or end inside a token. Only a token whose text can contain
the last character of a stop string can complete one, so all others cost one look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # the decoded text of a token that ends inside a character


class StopStrings:
    """Called with all rows' new tokens, says which rows' last token completes a stop string. Keeps no state."""

    def __init__(self, texts: Sequence[str], decode: Callable[[list[int]], str], token_texts: Sequence[str]) -> None:
        """texts: the stop strings, not empty. decode: token ids to text. token_texts: the text of each token alone."""
        self.texts = list(texts)
        self.tail = max(len(text.encode()) for text in texts) + 4  # a token has a byte at least; 4 finish a character
        self._decode = decode
        last = {text[-1] for text in texts}
        blank = " " in last  # a decoder may strip a blank at the start of a text, so any token may end with one
        self._may_end = bytearray(
            blank or not text or _UNFINISHED in text or not last.isdisjoint(text) for text in token_texts
        )

    def may_end(self, token: int) -> bool:
        """Whether `token` can complete a stop string."""
        return token < len(self._may_end) and bool(self._may_end[token])

    def __call__(self, rows: Sequence[list[int]]) -> list[bool]:
        return [bool(row) and self.may_end(row[-1]) and self._spelled(row) for row in rows]

    def _spelled(self, row: list[int]) -> bool:
        tail = self._decode(row[-self.tail :])
        return any(text in tail for text in self.texts)
