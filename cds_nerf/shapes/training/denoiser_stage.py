"""Trains the UNet and the text encoder of the prior, together, on the latents of renders and their captions."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cds_nerf.shapes.scene import ATTRIBUTES, COLORS, FILLER, FLOORS, SHAPES, Scene, article
from cds_nerf.shapes.training.loop import Worker, train

STEPS, BATCH, LEARNING_RATE = 4200, 32, 8e-4
SNR_LIMIT = 5.0
"""Of the min-SNR weights (arXiv 2303.09556)."""
LEAST_WEIGHT = 0.1
"""Of any timestep: at high noise, where the weights of min-SNR vanish, the words decide what there will be."""
TOKENS = 16
"""Of a prompt, at the most, with its first and last token."""
CAPTION_SHARES = {
    "a photo of {a} {color} {shape} on a {floor} floor": 0.52,
    "{a} {color} {shape} on a {floor} floor": 0.12,
    "a photo of {a} {color} {shape}": 0.05,
    "{a} {color} {shape}": 0.04,
    "a photo of a {shape} on a {floor} floor": 0.05,
    "a {shape} on a {floor} floor": 0.04,
    "a photo of a {shape}": 0.04,
    "a photo of a {floor} floor": 0.04,
    "": 0.10,
}
"""How often a render is captioned in each way."""


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each word of the world; words from elsewhere fall into letters."""
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def write_vocabulary(folder: Path) -> None:
    """Write the tokenizer's tokens and merges, in the files that transformers 4 and 5 both read."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: dict[tuple[str, str], str] = {}
    # Longer words first: earlier merges win, and those of "red" would break up "checkered".
    for word in sorted((*itertools.chain(*ATTRIBUTES.values()), *FILLER), key=len, reverse=True):
        start, *rest = (*word[:-1], f"{word[-1]}</w>")
        for letter in rest:
            merges[start, letter] = start + letter
            start += letter
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *merges.values()]
    numbers = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(numbers) + "\n", "utf8")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf8")


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder of two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet on 16x16 latents of 8 channels, with self- and cross-attention at both of its levels."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=64,
        attention_head_dim=4,  # which diffusers takes as the number of heads
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, for a model that predicts the velocity."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


class DenoisingObjective(nn.Module):
    """Error of the predicted velocity (arXiv 2202.00512), with min-SNR weights."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = new_unet()
        self.text_encoder = new_text_encoder(tokenizer)
        self.alphas_cumprod = new_scheduler().alphas_cumprod

    def forward(
        self,
        latents: Float[Tensor, "batch 8 16 16"],
        tokens: Int[Tensor, "batch tokens"],
        timestep: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch 8 16 16"],
    ) -> dict[str, Tensor]:
        """The loss of captioned latents."""
        alpha = self.alphas_cumprod[timestep][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        prediction = self.unet(noisy, timestep, self.text_encoder(tokens).last_hidden_state).sample.float()
        snr = alpha / (1 - alpha)
        weight = (snr.clamp(max=SNR_LIMIT) / (snr + 1)).clamp(min=LEAST_WEIGHT)
        return {"velocity": (weight * (prediction - velocity).square()).mean()}


def train_denoiser(
    worker: Worker, latents: Float[Tensor, "renders 8 16 16"], words: Int[Tensor, "renders attributes"]
) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """The trained UNet and text encoder, and the tokenizer."""
    torch.manual_seed(worker.seed)
    tokenizer = make_tokenizer()
    objective = DenoisingObjective(tokenizer)
    captions = _caption_tokens(tokenizer)
    shares = torch.tensor(list(CAPTION_SHARES.values()))
    timesteps = len(objective.alphas_cumprod)
    count = BATCH // worker.count

    def batch(step: int, generator: Generator) -> tuple[Tensor, ...]:
        chosen = torch.randint(len(latents), (count,), generator=generator)
        wording = torch.multinomial(shares, count, replacement=True, generator=generator)
        # Spread evenly over the schedule, so that batches differ less.
        timestep = ((torch.arange(count) + torch.rand(count, generator=generator)) * timesteps / count).long()
        noise = torch.randn((count, *latents.shape[1:]), generator=generator)
        return latents[chosen], captions[(*words[chosen].T, wording)], timestep, noise

    train(worker, "denoiser", objective, batch, STEPS, LEARNING_RATE)
    return objective.unet.eval(), objective.text_encoder.eval(), tokenizer


def _caption_tokens(tokenizer: CLIPTokenizer) -> Int[Tensor, "colors shapes floors wordings tokens"]:
    """The tokens of every caption of every scene."""
    return torch.stack(
        [tokenize(tokenizer, wordings(Scene(*words))) for words in itertools.product(COLORS, SHAPES, FLOORS)]
    ).unflatten(0, (len(COLORS), len(SHAPES), len(FLOORS)))


def wordings(scene: Scene) -> list[str]:
    """A scene's captions, in each of the ways of `CAPTION_SHARES`."""
    words = {"a": article(scene.color), "color": scene.color, "shape": scene.shape, "floor": scene.floor}
    return [caption.format(**words) for caption in CAPTION_SHARES]


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Int[Tensor, "prompts tokens"]:
    """Prompts as the text encoder takes them."""
    return tokenizer(
        list(prompts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
