"""What is wrong with the prompts of an edit: by their letters before there is a model, by its tokens once there is.

Imports no torch, so that a command line can check what it was given at once.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

from cds_nerf.errors import UserAdvice, UserError

NAMES = ("source_prompt", "target_prompt")
"""What the two prompts are called unless a command has other names for them."""
OTHER_SYNTAX = re.compile(
    r"<\w+:[^<>]*>"  # <lora:name:0.8>
    r"|\(+[^()]+\)+[-+]*|\[+[^\[\]]+\]+|\{+[^{}]+\}+"  # (blue:1.4), ((blue)), [blue], {blue}
    r"|\w+(?:\+{2,}|-{2,})(?!\w)"  # blue++
    r"|\b(?:BREAK|AND)\b"
    r"|\bembedding:\S+"
    r"|::-?[\d.]+|(?<!\S)--\w+"  # blue::2, --stylize
)
"""What weighs words, adds networks or parts prompts in other programs."""
WORD = re.compile(r"[^\W\d_]+|\S")
"""What a tokenizer looks at by itself: some letters, a digit, a sign."""
CLOSED_VOCABULARY = 1000
"""A tokenizer that has learnt fewer words than this knows those alone; one that has learnt none spells all of them."""
WORDS_SHOWN = 60
"""Of a closed vocabulary, at most."""
LETTERS_SHOWN = 200
"""Of what is cut off, at most."""


def check_prompts(source_prompt: str, target_prompt: str, names: tuple[str, str] = NAMES) -> None:
    """Check what can be seen without the model.

    Args:
        source_prompt: describes what there is.
        target_prompt: describes what it is to become.
        names: what the user calls the two.

    Raises:
        UserError: if a prompt is empty, or both have the same letters but for capitals and white space.
    """
    wanted = ('what there is, such as "a photo of a fox"', 'what it is to become, such as "a photo of a wolf"')
    for name, prompt, what in zip(names, (source_prompt, target_prompt), wanted, strict=True):
        if not prompt.strip():
            raise UserError(f"{name} is missing: describe {what}")
    source_name, target_name = names
    if source_prompt.strip() == target_prompt.strip():
        raise UserError(f"{source_name} and {target_name} are both {source_prompt!r}: there is nothing to change")
    if source_prompt.lower().split() == target_prompt.lower().split():
        raise UserError(
            f"{source_name} {source_prompt!r} and {target_name} {target_prompt!r} differ in capitals or white space "
            "alone, which the model does not see: there is nothing to change"
        )


def check_seen_prompts(
    source_prompt: str, target_prompt: str, tokenizers: Sequence[tuple[Any, int]], names: tuple[str, str] = NAMES
) -> None:
    """Check what the model sees of the prompts, and warn of what means nothing to it.

    Args:
        source_prompt: describes what there is.
        target_prompt: describes what it is to become.
        tokenizers: of the model's text encoders, each with the number of tokens that its text encoder takes.
        names: what the user calls the two.

    Raises:
        UserError: if a prompt has words that the model does not know, or the model sees both prompts as the same. Signs
            that it does not know are warned of.
    """
    for name, prompt in zip(names, (source_prompt, target_prompt), strict=True):
        _warn_of_other_syntax(name, prompt, tokenizers[0][0])
        _check_words(name, prompt, tokenizers[0][0])

    source, target = (
        [token_ids(prompt, tokenizer) for tokenizer, _ in tokenizers] for prompt in (source_prompt, target_prompt)
    )
    limits = [limit for _, limit in tokenizers]
    if [_seen(*pair) for pair in zip(source, limits, strict=True)] != [
        _seen(*pair) for pair in zip(target, limits, strict=True)
    ]:
        return
    tokenizer, limit = tokenizers[0]
    seen = tokenizer.decode(_seen(source[0], limit), skip_special_tokens=True)
    prompts = f"{names[0]} {source_prompt!r} and {names[1]} {target_prompt!r}"
    if source == target:
        raise UserError(f"the model reads {prompts} alike, as {seen!r}: there is nothing to change")
    raise UserError(f"{prompts} differ only beyond the model's {limit} tokens, after {seen!r}: shorten both")


def token_ids(prompt: str, tokenizer: Any) -> list[int]:
    """The tokens of a prompt, from the first special one to the last, however many they are."""
    return tokenizer(with_inversions(prompt, tokenizer), verbose=False).input_ids


def with_inversions(prompt: str, tokenizer: Any) -> str:
    """A prompt in which the word of a textual inversion stands for as many tokens as it has vectors."""
    from diffusers.loaders import TextualInversionLoaderMixin

    if set(tokenizer.added_tokens_encoder) <= set(tokenizer.all_special_tokens):
        return prompt
    return TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)


def warn_of_cut_off(prompt: str, tokenizer: Any, limit: int) -> None:
    """Warn where a prompt is longer than its text encoder's limit, quoting what is cut off."""
    if cut_off := token_ids(prompt, tokenizer)[limit - 1 : -1]:
        text = tokenizer.decode(cut_off)
        text = text if len(text) <= LETTERS_SHOWN else f"{text[:LETTERS_SHOWN]}..."
        warnings.warn(
            UserAdvice(f"the prompt is longer than the model's {limit} tokens; it does not see {text!r}"), stacklevel=2
        )


def unknown_words(prompt: str, tokenizer: Any) -> list[str]:
    """The words of a prompt that are not in a tokenizer's vocabulary.

    Where it has pieces for all words, as Stable Diffusion's has, those are signs that it cannot spell. Where it has
    learnt a few words alone, it would spell others in letters that mean nothing to the model: they are unknown.
    """
    closed = bool(_closed_vocabulary(tokenizer))

    def is_unknown(word: str) -> bool:
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
        return tokenizer.unk_token_id in ids or (closed and len(ids) > 1)

    return [
        word for word in dict.fromkeys(re.findall(WORD, _without_added_tokens(prompt, tokenizer))) if is_unknown(word)
    ]


def _check_words(name: str, prompt: str, tokenizer: Any) -> None:
    unknown = unknown_words(prompt, tokenizer)
    words = ", ".join(repr(word) for word in unknown if word.isalpha())
    if words and (known := _closed_vocabulary(tokenizer)):
        more = f", and {len(known) - WORDS_SHOWN} more" if len(known) > WORDS_SHOWN else ""
        known_words = f"a, {', '.join(known[:WORDS_SHOWN])}{more}"
        raise UserError(f"{name} has {words}, which the model does not know: its words are {known_words}")
    unread = unknown_words(OTHER_SYNTAX.sub(" ", prompt), tokenizer)  # that has been warned of
    if unread:
        warnings.warn(
            UserAdvice(f"{name} has {', '.join(map(repr, unread))}, which the model cannot read"), stacklevel=3
        )


def _closed_vocabulary(tokenizer: Any) -> list[str]:
    """The words of more than one letter that a tokenizer has learnt, if they are few; else none."""
    ending = "</w>"
    learnt = {token.removesuffix(ending) for token in tokenizer.get_vocab() if token.endswith(ending)}
    words = sorted(word for word in learnt if len(word) > 1)
    return words if len(words) < CLOSED_VOCABULARY else []


def _warn_of_other_syntax(name: str, prompt: str, tokenizer: Any) -> None:
    found = list(dict.fromkeys(OTHER_SYNTAX.findall(_without_added_tokens(prompt, tokenizer))))
    if prompt.isupper():
        found = [part for part in found if part not in ("BREAK", "AND")]
    if found:
        way_out = "; LoRAs are added by the option lora" if any(part.startswith("<") for part in found) else ""
        warnings.warn(
            UserAdvice(
                f"{name} has {', '.join(map(repr, found))}, which some programs take for weights, networks or parts of "
                f"a prompt: here it is text like any other{way_out}"
            ),
            stacklevel=3,
        )


def _without_added_tokens(prompt: str, tokenizer: Any) -> str:
    """A prompt, composed as tokenizers do, without the words of textual inversions, whatever signs they are made of."""
    prompt = unicodedata.normalize("NFC", prompt)
    for token in sorted(tokenizer.added_tokens_encoder, key=len, reverse=True):
        prompt = prompt.replace(token, " ")
    return prompt


def _seen(ids: list[int], limit: int) -> list[int]:
    """What is left of a prompt's tokens: those before the cut, and the one that ends them."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
