"""Prompts that cannot make an edit are told apart from those that can, as the model sees them."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_stable_diffusion import make_pipeline, make_tokenizer
from tiny_stable_diffusion_xl import make_xl_pipeline
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from cds_nerf import LatentDiffusion
from cds_nerf.diffusion.prompts import check_prompts, check_seen_prompts, unknown_words
from cds_nerf.errors import UserAdvice, UserError, print_advice_alone
from cds_nerf.shapes import prior_path

OTHER_SYNTAX = [
    "(blue:1.4)", "((blue))", "(blue)", "[blue]", "[a:b:0.5]", "{blue}", "{{blue}}", "(blue)++", "blue++", "blue--",
    "BREAK", "AND", "<lora:toy:0.8>", "<lyco:toy>", "embedding:toy", "::2", "--stylize",
]  # fmt: skip


def shapes_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(prior_path(), subfolder="tokenizer")


def open_tokenizer() -> CLIPTokenizer:
    """A tokenizer as Stable Diffusion's: all bytes, and so many pieces and words that any text can be made of them."""
    bytes_ = sorted(ByteLevel.alphabet())
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = [(one, other) for one in letters for other in letters]
    merges += [(one, f"{other}</w>") for one in letters for other in letters]
    merges += [(f"{one}{other}", f"{third}</w>") for one in letters for other in letters for third in "aeioust"]
    tokens = [*bytes_, *(f"{byte}</w>" for byte in bytes_), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:  # by files, as tests/tiny_stable_diffusion.py does
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), "utf8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n", "utf8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


class TestLetters:
    def test_different_ones_pass(self) -> None:
        check_prompts("a fox", "a wolf")

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            ("", "a fox", 'source is missing: describe what there is, such as "a photo of a fox"'),
            ("a fox", " \t", "target is missing: describe what it is to become"),
            ("a fox", "a fox ", "source and target are both 'a fox': there is nothing to change"),
            ("A fox", "a fox", "source 'A fox' and target 'a fox' differ in capitals or white space alone"),
            ("a  fox", "a\nfox", r"source 'a  fox' and target 'a\\nfox' differ in capitals or white space alone"),
        ],
    )
    def test_what_cannot_be_an_edit_is_told(self, source: str, target: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            check_prompts(source, target, ("source", "target"))


class TestSeen:
    @pytest.fixture
    def diffusion(self) -> LatentDiffusion:
        return as_diffusion(make_pipeline())

    @pytest.mark.parametrize(("source", "target"), [("a Fox", "a fox"), ("a fox,a", " a  fox , a"), ("fox", "fox")])
    def test_prompts_of_the_same_tokens_are_refused(self, diffusion: LatentDiffusion, source: str, target: str) -> None:
        with pytest.raises(UserError, match=f"the model reads source_prompt '{source}' and .* alike, as '(a )?fox"):
            diffusion.check_prompts(source, target)

    def test_a_difference_beyond_the_cut_is_none(self, diffusion: LatentDiffusion) -> None:
        common = "a b c d e f g h i j k l m n"
        diffusion.check_prompts(f"{common[:-2]} y", f"{common[:-2]} z")
        with pytest.raises(UserError, match=rf"differ only beyond the model's 16 tokens, after '{common}': shorten"):
            diffusion.check_prompts(f"{common} y", f"{common} z")
        with pytest.raises(UserError, match="differ only beyond"):
            diffusion.check_prompts(common, f"{common} z")

    def test_long_ones_are_looked_at_without_a_library_s_warnings(
        self, diffusion: LatentDiffusion, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        diffusion.check_prompts("a fox and a wolf and a cat", "a wolf and a fox and a cat")
        with pytest.warns(UserAdvice, match="longer than the model's 16 tokens"):
            diffusion.encode_prompt("a fox and a wolf and a cat")
        assert "longer than" not in caplog.text + capfd.readouterr().err

    def test_sdxl_s_second_text_encoder_sees_the_difference_too(self) -> None:
        diffusion = as_diffusion(make_xl_pipeline())
        with pytest.raises(UserError, match="alike"):
            diffusion.check_prompts("a Fox", "a fox")
        diffusion.tokenizer.add_tokens(["<toy>", "<bear>"])  # type: ignore[union-attr]
        diffusion.check_prompts("a <toy>", "a <bear>")

    def test_a_learned_word_is_one_thing_and_its_letters_another(self, diffusion_folder: Path, tmp_path: Path) -> None:
        save_file({"toy": torch.ones(3, 32)}, tmp_path / "a.safetensors")
        diffusion = LatentDiffusion.from_pretrained(diffusion_folder, textual_inversions=[f"{tmp_path}/a.safetensors"])
        diffusion.check_prompts("a toy", "a t o y")
        many = "a b c d e f g h i j k"  # and three vectors: no more are seen
        with pytest.raises(UserError, match="differ only beyond"):
            diffusion.check_prompts(f"{many} toy", f"{many} toy b")


class TestUnknownWords:
    def test_the_bundled_model_refuses_those_that_it_has_not_and_says_its_own(self) -> None:
        with pytest.raises(
            UserError, match="target_prompt has 'dog', which the model does not know: its words are a, "
        ):
            check_seen_prompts("a photo of a cube", "a photo of a dog", [(shapes_tokenizer(), 16)])
        with pytest.raises(UserError, match=r"source_prompt has 'phone', 'big', .* an, blue, checkered, cone"):
            check_seen_prompts("a phone, big", "a photo of a cube", [(shapes_tokenizer(), 16)])

    def test_signs_that_the_bundled_model_cannot_read_are_warned_about_alone(self) -> None:
        with pytest.warns(UserAdvice) as told:
            check_seen_prompts("a photo of a cube.", "a (blue:1.4) cube", [(shapes_tokenizer(), 16)])
        assert [str(warning.message).split(", which")[0] for warning in told] == [
            "source_prompt has '.'",
            "target_prompt has '(blue:1.4)'",
        ]

    @pytest.mark.parametrize("caption", ["a photo of a red cube on a wooden floor", "A Photo of an orange\ncone"])
    def test_the_bundled_model_knows_its_captions(self, caption: str) -> None:
        assert unknown_words(caption, shapes_tokenizer()) == []

    @pytest.mark.parametrize("prompt", ["a photo of a xylograph", "qzxv 3d, it's", "深い森", "ein Fuß; 50% off!", "🦊"])
    def test_a_tokenizer_that_can_spell_anything_knows_every_word(self, prompt: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_seen_prompts(prompt, "a fox", [(open_tokenizer(), 77)])

    def test_one_that_only_spells_is_warned_about_signs_that_it_has_not(self) -> None:
        assert unknown_words("a fox's den, 3 of them.", make_tokenizer()) == []
        with pytest.warns(UserAdvice, match=r"target_prompt has 'ö', '!', which the model cannot read"):
            check_seen_prompts("a fox", "zw ö lf!", [(make_tokenizer(), 16)])

    def test_learned_words_are_known(self) -> None:
        tokenizer = shapes_tokenizer()
        tokenizer.add_tokens(["<my-dog>"])
        assert unknown_words("a photo of a <my-dog>", tokenizer) == []


class TestOtherSyntax:
    @pytest.mark.parametrize("prompt", OTHER_SYNTAX)
    def test_is_warned_about(self, prompt: str) -> None:
        with pytest.warns(UserAdvice, match="target_prompt has .*: here it is text like any other") as told:
            check_seen_prompts("a cat", f"a cat {prompt}", [(open_tokenizer(), 77)])
        assert prompt in str(told[0].message)
        assert ("added by the option lora" in str(told[0].message)) == prompt.startswith("<")
        assert len(told) == 1 and "\n" not in str(told[0].message)

    @pytest.mark.parametrize(
        "prompt", ["a fox and a break", "A FOX AND A WOLF", "it's 9:30 - well-known, 3 < 4; a/b *c*", "R&B + soul"]
    )
    def test_ordinary_text_is_not(self, prompt: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_seen_prompts(prompt, "a cat", [(open_tokenizer(), 77)])

    def test_a_learned_word_of_such_signs_is_not(self) -> None:
        tokenizer = open_tokenizer()
        tokenizer.add_tokens(["[V]", "<s:1>"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_seen_prompts("a [V] dog", "a <s:1> dog", [(tokenizer, 77)])

    def test_commands_print_it_as_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_advice_alone("cds-nerf")
        print(warnings.formatwarning(UserAdvice("a (fox)"), UserAdvice, "file.py", 1), end="")
        assert capsys.readouterr().out == "cds-nerf: warning: a (fox)\n"


def as_diffusion(pipeline) -> LatentDiffusion:
    names = ("unet", "scheduler", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return LatentDiffusion(**{name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)})
