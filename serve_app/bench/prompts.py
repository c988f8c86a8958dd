"""Prompt texts of a wanted token length, each different from the others.

A text is a random walk over words that are one token each, with and without a space before them.
The words differ from the first one on, so that no prefix cache can answer for the engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from policies.core.errors import ConfigError
from serve_app.bench.options import Endpoint
from serve_app.models import resolve_model
from serve_app.models.catalog import KNOWN_MODELS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MIN_WORDS = 100
_CORRECTIONS = 5
_SPACE_MARKS = ("\u0120", "\u2581")  # a space before the word: byte-level BPE, SentencePiece
# One token each in most English vocabularies: what is left when no tokenizer is known.
_COMMON_TEXT = """
about after again also because before between change city country day different end every
example family fact few find first follow food form friend general give good great group hand
head help high home house idea important interest kind large last late learn leave life light
line little long look main make man many mean money month more most move music name nature need
never new next night north number often old open order other over own page part people place
plan play point power present problem public question reason right river room school sea second
sense set show side small social sound south start state still story study system table thing
think time town tree turn under use value view voice wall war water way week well west white
whole wind word work world write year young
"""
_COMMON_WORDS = _COMMON_TEXT.split()


class PromptSource:
    """Makes prompt texts. `note` says where the lengths come from; `exact` whether they hold."""

    def __init__(self, tokenizer: Tokenizer | None, note: str, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._words = _COMMON_WORDS if tokenizer is None else _one_token_words(tokenizer)
        self.exact = tokenizer is not None and len(self._words) >= _MIN_WORDS
        if tokenizer is not None and not self.exact:
            self._tokenizer, self._words = None, _COMMON_WORDS
            note = f"{note} has too few whole-word tokens"
        self.note = note if self.exact else f"{note}: prompt lengths count words, not tokens"

    def text(self, index: int, tokens: int) -> str:
        """Return the prompt of request `index`, `tokens` long; the same for the same seed."""
        rng = np.random.default_rng([self._seed, index])
        words = [self._words[at] for at in rng.integers(len(self._words), size=tokens)]
        if self._tokenizer is None:
            return " ".join(words)
        for _ in range(_CORRECTIONS):
            surplus = (
                len(self._tokenizer.encode(" ".join(words), add_special_tokens=False)) - tokens
            )
            if surplus == 0:
                break
            if surplus > 0:
                words = words[: max(1, len(words) - surplus)]
            else:
                more = rng.integers(len(self._words), size=-surplus)
                words += [self._words[at] for at in more]
        return " ".join(words)


def request_body(model: str, endpoint: Endpoint, prompt: str, output_tokens: int) -> bytes:
    """Return the JSON of a streaming request that makes exactly `output_tokens` tokens.

    `ignore_eos` is vLLM's: the model goes on after its end mark, so that lengths are as planned.
    """
    content: dict[str, Any] = (
        {"messages": [{"role": "user", "content": prompt}]}
        if endpoint is Endpoint.CHAT
        else {"prompt": prompt}
    )
    fixed = {"temperature": 0, "ignore_eos": True, "stream": True}
    usage = {"stream_options": {"include_usage": True}}
    body = {"model": model, **content, "max_tokens": output_tokens, **fixed, **usage}
    return json.dumps(body).encode()


def prompt_source(model: str, tokenizer: Path | None, seed: int) -> PromptSource:
    """Return the source for a model: by the tokenizer given, else by the model's own folder.

    Raises ConfigError only where a tokenizer was named; a model without one falls back to words.
    """
    if tokenizer is not None:
        return PromptSource(_load(tokenizer), f"tokenizer {tokenizer}", seed)
    try:
        folder = Path(resolve_model(model))
        found = _load(folder) if model in KNOWN_MODELS or folder.is_dir() else None
    except ConfigError:
        found = None
    if found is None:
        return PromptSource(None, f"no tokenizer for {model} (see --tokenizer)", seed)
    return PromptSource(found, f"tokenizer {folder}", seed)


def _load(path: Path) -> Tokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"--tokenizer {path}: expected a folder with tokenizer.json, or the file")
    try:
        from tokenizers import Tokenizer  # the engines bring it; a client-only install has none
    except ImportError:
        raise ConfigError(f"--tokenizer {path}: needs the package tokenizers") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ConfigError(f"--tokenizer {file}: {error}") from error


def _one_token_words(tokenizer: Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    words = (token[1:] for token in vocabulary if token.startswith(_SPACE_MARKS))
    likely = sorted(
        word
        for word in words
        if word in vocabulary and 3 <= len(word) <= 10 and word.isascii() and word.islower()
        if word.isalpha()
    )
    pairs = [f"{word} {word}" for word in likely]  # what the tokenizer does is what counts
    encodings = tokenizer.encode_batch(pairs, add_special_tokens=False)
    return [word for word, pair in zip(likely, encodings, strict=True) if len(pair) == 2]
