"""Any OpenAI-compatible `/v1/embeddings` as an embedder.

Every answer is checked (one finite vector of one length for each text) before any of it is used; what goes wrong ends
as a `ModelError`. Retries and their waits are the SDK's. The key goes to the endpoint it belongs to and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy
import openai
from pydantic import SecretStr

from mia.config import EmbeddingSettings, resolve_key, resolve_url
from mia.embeddings.base import Vectors, unit_rows
from mia.errors import ConfigError, ModelRefused, ModelReplyError, ModelUnavailable, RealCallForbidden
from mia.models import real_calls_forbidden

_OPENAI_URL = "https://api.openai.com/v1"
_BATCH = 128
_MAX_CHARACTERS = 8000
"""Of one text; what is longer is cut. Even at a token a character it fits the usual window of 8192."""


class OpenAIEmbedder:
    """Vectors from an endpoint. Safe to use from several threads."""

    def __init__(
        self, base_url: str, model: str, api_key: str, *, timeout_seconds: float = 60.0, max_retries: int = 3
    ) -> None:
        self._base_url = base_url.rstrip("/") or _OPENAI_URL
        self._model = model
        foreign = self._base_url != _OPENAI_URL
        headers: dict[str, str | openai.Omit] = {} if api_key else {"Authorization": openai.Omit()}
        if foreign:
            headers |= {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        self._headers = headers
        self._client = openai.OpenAI(
            base_url=self._base_url, api_key=api_key or "none", timeout=timeout_seconds, max_retries=max_retries
        )

    @classmethod
    def from_settings(cls, settings: EmbeddingSettings) -> OpenAIEmbedder:
        """Raises ConfigError."""
        base_url = resolve_url(settings.base_url)
        key = resolve_key(settings.base_url, SecretStr(""), settings.api_key_env)
        if not key and base_url.rstrip("/") in ("", _OPENAI_URL):
            raise ConfigError(
                "there is no key for OpenAI's own embeddings.",
                hint="export OPENAI_API_KEY=… (or set embeddings.base_url for another endpoint)",
            )
        return cls(base_url, settings.model, key)

    @property
    def space(self) -> str:
        return f"openai/{self._model}@{self._base_url}/{self.dimension}"

    @cached_property
    def dimension(self) -> int:
        """Asked of the endpoint once, with one short text."""
        return int(self._request(["dimension"]).shape[1])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Raises ModelError."""
        vectors = numpy.zeros((len(texts), self.dimension), dtype=numpy.float32)
        # Endpoints refuse an empty text; its row stays zero.
        rows = [row for row, text in enumerate(texts) if text.strip()]
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            vectors[batch] = self._request([texts[row] for row in batch], self.dimension)
        return vectors

    def _request(self, texts: Sequence[str], dimension: int | None = None) -> Vectors:
        if real_calls_forbidden():
            raise RealCallForbidden(f"real calls are forbidden in this process, and {self._where} was to be asked.")
        cut = [text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode() for text in texts]
        try:
            # Many servers know no base64, which the SDK would ask for by itself.
            reply = self._client.embeddings.create(
                input=cut, model=self._model, encoding_format="float", extra_headers=self._headers
            )
            by_index = {item.index: item.embedding for item in reply.data}
            vectors = numpy.array([by_index[index] for index in range(len(cut))], dtype=numpy.float32)
        except (openai.APITimeoutError, openai.APIConnectionError) as error:
            raise ModelUnavailable(
                f"{self._where} cannot be reached ({type(error.__cause__ or error).__name__})."
            ) from None
        except (openai.RateLimitError, openai.InternalServerError, openai.ConflictError) as error:
            raise ModelUnavailable(f"{self._where} answers {error.status_code} after every retry.") from None
        except openai.APIStatusError as error:
            raise ModelRefused(
                f"{self._where} refuses with status {error.status_code}.",
                hint="check embeddings.base_url, embeddings.model and the key (embeddings.api_key_env)",
            ) from None
        except (openai.OpenAIError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelReplyError(f"{self._where} gave no usable vectors ({type(error).__name__}).") from error
        length = vectors.shape[1] if vectors.ndim == 2 else 0
        if not length or length != (dimension or length) or not numpy.isfinite(vectors).all():
            raise ModelReplyError(f"{self._where} gave vectors of unlike length, or with values that are no numbers.")
        return unit_rows(vectors)

    @property
    def _where(self) -> str:
        return f"the embeddings endpoint {self._base_url} (model '{self._model}')"
