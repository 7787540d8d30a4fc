"""From sampled tokens to text, piece by piece: no half characters, nothing of a stop string, nothing taken back.

`TextStream` is fed one token at a time. What `take` returns may be shown at once; what could still turn out to be the
beginning of a stop string, or half of a character, is held until the next tokens decide it. The pieces joined are the
text, which is cut before the earliest stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""


class TextStream:
    """The text of one reply while it grows.

    Tokens are decoded in the company of the few before them, because many tokenizers write a token differently at the
    beginning (without its space, say). The whole reply is never decoded again, so a long one costs no more per token.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self.text = ""
        """All that was taken so far and may be shown."""
        self.stopped = False
        """Whether a stop string came."""
        self._decode = decode
        self._stop = tuple(filter(None, stop))
        self._ids: list[int] = []
        self._before = 0
        self._read = 0
        self._held = ""

    def take(self, token: int) -> str:
        """The text that this token settles; often the token's own, sometimes none, sometimes that of several."""
        self._ids.append(token)
        return self._settle(self._fresh(final=False))

    def finish(self) -> str:
        """The text still held, at the end of a reply."""
        piece = self._settle(self._fresh(final=True))
        if self.stopped:
            return piece
        rest, self._held = self._held, ""
        self.text += rest
        return piece + rest

    def _fresh(self, *, final: bool) -> str:
        """What the tokens since the last whole character say."""
        shown = self._decode(self._ids[self._before : self._read])
        grown = self._decode(self._ids[self._before :])
        if not final and (len(grown) <= len(shown) or grown.endswith(_HALF)):
            return ""
        self._before, self._read = self._read, len(self._ids)
        return grown[len(shown) :]

    def _settle(self, fresh: str) -> str:
        """Look for stop strings in what is held and new, and keep back what may be the beginning of one."""
        if self.stopped:
            return ""
        whole = self._held + fresh
        found = min((at for stop in self._stop if (at := whole.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            shown, self._held = whole[:found], ""
        else:
            held = max((_overlap(whole, stop) for stop in self._stop), default=0)
            shown, self._held = whole[: len(whole) - held], whole[len(whole) - held :]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
