"""Text from tokens, piece by piece: joined it is the whole, and it never shows what has to be taken back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models

from mia.models.decoding import TextStream

TOKENIZER = tiny_tokenizer()


def decode(ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode(ids))


def pieces_of(ids: Sequence[int], stop: Sequence[str] = (), through: object = decode) -> tuple[list[str], TextStream]:
    """What is shown after each token, until a stop string comes; the last piece is the rest."""
    assert callable(through)
    stream = TextStream(through, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.take(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces, stream


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_pieces_joined_are_the_text_and_no_character_is_cut(text: str) -> None:
    pieces, stream = pieces_of(TOKENIZER.encode(text))
    assert "".join(pieces) == stream.text == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(st.integers(0, len(TOKENIZER) - 6), max_size=40))
def test_any_tokens_give_what_decoding_them_at_once_gives(ids: list[int]) -> None:
    assert pieces_of(ids)[1].text == decode(ids)


@given(st.text(alphabet="ab<é", max_size=40), st.lists(st.text(alphabet="ab<é", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, stream = pieces_of(TOKENIZER.encode(text), stop)
    found = [text.find(string) for string in stop if string in text]
    assert stream.stopped == bool(found)
    assert stream.text == "".join(pieces)
    if not found:
        assert stream.text == text
    else:
        # Where one stop string begins before another that is complete earlier, the complete one counts.
        ends = min(text.find(string) + len(string) for string in stop if string in text)
        assert text.startswith(stream.text)
        assert len(stream.text) in {at for string in stop if 0 <= (at := text.find(string)) <= ends}
        assert not any(string in stream.text for string in stop)


def test_a_stop_string_over_several_tokens_is_never_shown() -> None:
    pieces, stream = pieces_of(TOKENIZER.encode("say</ans <answer>zz"), ["</answer>", "<answer>"])
    assert stream.text == "say</ans "
    assert not any("<a" in piece for piece in pieces)
    assert "</ans" in "".join(pieces), "what only looked like a stop string is shown in the end"


@pytest.mark.parametrize(
    ("decoder", "vocabulary", "text"),
    [
        (decoders.Metaspace(), ["▁Who", "▁found", "▁Titan", "?"], "Who found Titan?"),
        (decoders.WordPiece(), ["who", "found", "tit", "##an", "?"], "who found titan?"),
    ],
)
def test_tokenizers_that_write_the_first_token_otherwise(decoder: object, vocabulary: list[str], text: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(vocabulary)}, unk_token="?"))
    tokenizer.decoder = decoder
    pieces, stream = pieces_of(range(len(vocabulary)), through=tokenizer.decode)
    assert stream.text == tokenizer.decode(list(range(len(vocabulary)))) == text
    assert all(pieces[:-1]), "each token shows at once"


def test_half_a_character_at_the_end_is_said_to_be_one() -> None:
    ids = TOKENIZER.encode("é")
    assert len(ids) == 2
    pieces, stream = pieces_of(ids[:1])
    assert pieces == ["", "\ufffd"]
    assert stream.text == "\ufffd"
