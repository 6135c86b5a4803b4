"""A frozen latent diffusion model behind one small interface: encode, decode, encode a prompt, predict the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from cds_nerf.diffusion.adapters import add_loras, add_textual_inversions, check_additions
from cds_nerf.diffusion.model_settings import ModelSettings
from cds_nerf.diffusion.pretrained import load_parts
from cds_nerf.diffusion.prompts import NAMES, check_seen_prompts, warn_of_cut_off, with_inversions
from cds_nerf.diffusion.supported import ADVICE, why_other_channels
from cds_nerf.errors import UserError

SIZE_CONDITIONING = ("original height", "original width", "crop top", "crop left", "target height", "target width")
"""What SDXL is told about an image's size, in this order (arXiv 2307.01952, section 2.2)."""


@dataclass(frozen=True)
class TextEmbedding:
    """What the UNet's cross-attention sees of a prompt.

    A batch of one serves a batch of any size.
    """

    conditional: Float[Tensor, "batch tokens channels"]
    """The prompt's embedding."""
    unconditional: Float[Tensor, "batch tokens channels"]
    """The empty prompt's embedding, for classifier-free guidance."""
    pooled_conditional: Float[Tensor, "batch pooled_channels"] | None = None
    """The prompt as one vector, which SDXL sees besides."""
    pooled_unconditional: Float[Tensor, "batch pooled_channels"] | None = None
    """The empty prompt as one vector."""


class LatentDiffusion:
    """The parts of a Stable Diffusion model (1.x, 2.x or XL base), frozen and in eval mode.

    Not an `nn.Module`: held as an attribute of one, it never enters that module's parameters or `state_dict`.

    Args:
        unet: predicts the noise or, as its scheduler says, the velocity v.
        scheduler: only its noise schedule (`alphas_cumprod`) and `prediction_type` are used.
        vae: needed by `encode` and `decode`.
        text_encoder: needed by `encode_prompt`, with its tokenizer.
        tokenizer: the tokenizer of the text encoder.
        text_encoder_2: the second text encoder of SDXL.
        tokenizer_2: the second text encoder's tokenizer.
        force_zeros_for_empty_prompt: whether SDXL's unconditional embedding is zero, as its base was trained, or the
            empty prompt's.
        settings: those that suit the model.

    Raises:
        UserError: if the UNet or the scheduler is of a kind that the guidance cannot use.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: Any,
        vae: AutoencoderKL | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        force_zeros_for_empty_prompt: bool = True,
        settings: ModelSettings | None = None,
    ) -> None:
        self.unet = unet
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.text_encoder_2 = text_encoder_2
        self.tokenizer_2 = tokenizer_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.settings = settings or ModelSettings()
        for part in (unet, vae, text_encoder, text_encoder_2):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)

        if getattr(scheduler, "alphas_cumprod", None) is None:
            raise UserError(
                f"{type(scheduler).__name__} has no alphas_cumprod: flow-matching models are not supported, {ADVICE}"
            )
        self.prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"the scheduler's prediction_type is {self.prediction_type!r}; "
                "supported are 'epsilon' and 'v_prediction'"
            )
        self.is_xl = unet.config.get("addition_embed_type") == "text_time"
        if not self.is_xl and unet.config.get("addition_embed_type") is not None:
            raise UserError(
                f"the UNet wants additional conditioning (addition_embed_type={unet.config['addition_embed_type']!r}); "
                f"{ADVICE}"
            )
        if self.is_xl and text_encoder_2 is not None:
            channels = unet.config["projection_class_embeddings_input_dim"] - text_encoder_2.config.projection_dim
            if channels != len(SIZE_CONDITIONING) * unet.config["addition_time_embed_dim"]:
                raise UserError("the UNet has another size conditioning than SDXL's base: refiners are not supported")
        if unet.config.get("class_embed_type") is not None or unet.config.get("num_class_embeds") is not None:
            raise UserError(f"the UNet wants class labels, as those of upscalers and unCLIP do: {ADVICE}")
        if vae is not None and (
            problem := why_other_channels(unet.config["in_channels"], vae.config["latent_channels"])
        ):
            raise UserError(f"the diffusion model {problem}")
        self.alphas_cumprod = scheduler.alphas_cumprod.to(self.device, torch.float32)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        loras: Sequence[str] = (),
        textual_inversions: Sequence[str] = (),
        model_config: str | Path | None = None,
    ) -> LatentDiffusion:
        """Load Stable Diffusion 1.x, 2.x or XL base, or a model fine-tuned from them, from safetensors only.

        Args:
            model: a local diffusers folder, a checkpoint in a single file, a hub id such as
                "stable-diffusion-v1-5/stable-diffusion-v1-5", or "shapes" for the one that comes with this package; a
                hub model that is already in the local cache is loaded without asking the hub.
            device: where all its parts go.
            dtype: of all its weights, but for a VAE of SDXL that overflows in float16 and stays in float32.
            loras: added to the weights (see `add_loras`): files, folders or hub ids, with `:scale` behind each or not.
            textual_inversions: added to the words of prompts (see `add_textual_inversions`).
            model_config: a folder or hub id with the configuration of a single file; by default the hub's for its kind.

        Raises:
            UserError: if the model or an addition to it cannot be had; the message says why and what to do.
        """
        check_additions(loras, textual_inversions)
        parts, settings = load_parts(model, dtype, model_config)
        add_textual_inversions(parts, textual_inversions)
        add_loras(parts, loras)
        for part in parts.values():
            if isinstance(part, nn.Module):
                part.to(device)
        return cls(**parts, settings=settings)

    @property
    def device(self) -> torch.device:
        """Where the model runs: where the UNet's weights are, or where they go to run if they are offloaded."""
        hook = getattr(self.unet, "_hf_hook", None)
        return self.unet.device if hook is None else hook.execution_device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the UNet's weights."""
        return self.unet.dtype

    @property
    def loss_dtype(self) -> torch.dtype:
        """The precision of latents and losses: float32, or float64 for a float64 model."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def image_multiple(self) -> int:
        """Image sides are multiples of this many pixels: one latent.

        The UNet sets no further condition: where its own down- and upsampling do not come out even,
        diffusers hands the upsampling its exact size.
        """
        return 2 ** (len(self._vae.config["block_out_channels"]) - 1)

    @property
    def native_size(self) -> int:
        """The side of the square images that the model was trained on, in pixels."""
        return self.unet.config["sample_size"] * self.image_multiple

    @property
    def _vae(self) -> AutoencoderKL:
        if self.vae is None:
            raise UserError("this LatentDiffusion has no VAE: give it one (vae=...) to encode or decode images")
        return self.vae

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """Scaled latents of images: the posterior mean, times the VAE's scaling factor. Differentiable.

        Args:
            images: in 0..1, on any device; sides must be multiples of `image_multiple`.

        Returns:
            Latents on the model's device, in `loss_dtype`.

        Raises:
            UserError: if a side is not a multiple of `image_multiple`; the message says the nearest that are.
        """
        height, width = images.shape[-2:]
        multiple = self.image_multiple
        if height % multiple or width % multiple or not height or not width:
            sides = [sorted({max(s // multiple, 1) * multiple, -(-s // multiple) * multiple}) for s in (height, width)]
            raise UserError(
                f"images of {width}x{height} pixels (width x height) do not fit the model, whose sides are multiples "
                f"of {multiple}; the nearest that fit: width {' or '.join(map(str, sides[1]))}, "
                f"height {' or '.join(map(str, sides[0]))}"
            )
        with torch.autocast(self.device.type, enabled=False):
            posterior = self._vae.encode(images.to(self.device, self._vae.dtype) * 2 - 1).latent_dist  # type: ignore[union-attr]
            return posterior.mean.to(self.loss_dtype) * self._vae.config["scaling_factor"]

    def decode(self, latents: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        """The images in 0..1 of scaled latents. Differentiable, but for the clamp to 0..1."""
        with torch.autocast(self.device.type, enabled=False):
            latents = latents.to(self.device, self.loss_dtype) / self._vae.config["scaling_factor"]
            images = self._vae.decode(latents.to(self._vae.dtype)).sample  # type: ignore[union-attr]
            return (images.to(self.loss_dtype) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_prompt(self, prompt: str | Sequence[str]) -> TextEmbedding:
        """Embed a prompt (or a batch of them) and, for classifier-free guidance, the empty prompt.

        A prompt longer than the text encoder's limit is cut, with a warning that quotes what was cut off.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        encoders = self._text_encoders()
        for text in prompts:
            warn_of_cut_off(text, encoders[0][0], _token_limit(*encoders[0]))
        conditional, pooled_conditional = self._embed(prompts, encoders)
        unconditional, pooled_unconditional = self._embed([""] * len(prompts), encoders)
        if pooled_unconditional is not None and self.force_zeros_for_empty_prompt:
            unconditional, pooled_unconditional = unconditional * 0, pooled_unconditional * 0
        return TextEmbedding(conditional, unconditional, pooled_conditional, pooled_unconditional)

    def check_prompts(self, source_prompt: str, target_prompt: str, names: tuple[str, str] = NAMES) -> None:
        """Check what the model sees of the prompts of an edit, and warn of what means nothing to it.

        Args:
            source_prompt: describes what there is.
            target_prompt: describes what it is to become.
            names: what the user calls the two.

        Raises:
            UserError: if a prompt has words that the model does not know, or the model sees both prompts as the same.
        """
        tokenizers = [(tokenizer, _token_limit(tokenizer, encoder)) for tokenizer, encoder in self._text_encoders()]
        check_seen_prompts(source_prompt, target_prompt, tokenizers, names)

    def _text_encoders(self) -> list[tuple[Any, Any]]:
        """Each tokenizer with its text encoder."""
        encoders = [(self.tokenizer, self.text_encoder)]
        if self.is_xl:
            encoders.append((self.tokenizer_2, self.text_encoder_2))
        if any(part is None for pair in encoders for part in pair):
            raise UserError(
                "this LatentDiffusion has no text encoder and tokenizer (SDXL: two of each), which prompts need"
            )
        return encoders

    def _embed(self, texts: list[str], encoders: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor | None]:
        """The embedding [B,L,D] of texts, and for SDXL the pooled one [B,P]."""
        outputs = []
        for tokenizer, text_encoder in encoders:
            limit = _token_limit(tokenizer, text_encoder)
            converted = [with_inversions(text, tokenizer) for text in texts]
            tokens = tokenizer(converted, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
            outputs.append(text_encoder(tokens.input_ids.to(self.device), output_hidden_states=self.is_xl))
        if not self.is_xl:
            return outputs[0].last_hidden_state, None
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds

    def _alpha_cumprod(self, timestep: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 1 1"]:
        return self.alphas_cumprod[timestep.to(self.device)].to(self.loss_dtype)[:, None, None, None]

    def add_noise(
        self,
        latents: Float[Tensor, "batch channels h w"],
        noise: Float[Tensor, "batch channels h w"],
        timestep: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels h w"]:
        """The forward process, DDPM (arXiv 2006.11239) equation 4: sqrt(a) z + sqrt(1 - a) noise."""
        alpha = self._alpha_cumprod(timestep)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def predict_noise(
        self,
        noisy_latents: Float[Tensor, "batch channels h w"],
        timestep: Int[Tensor, " batch"],
        embedding: Float[Tensor, "batch tokens text_channels"],
        pooled: Float[Tensor, "batch pooled_channels"] | None = None,
    ) -> Float[Tensor, "batch channels h w"]:
        """The UNet's noise prediction in `loss_dtype`, without classifier-free guidance.

        For a velocity model the noise is sqrt(a) v + sqrt(1 - a) z_t (arXiv 2202.00512, appendix D). SDXL needs the
        pooled embedding too, and is told that the image was neither resized nor cropped.
        """
        condition: dict[str, Any] = {}
        if self.is_xl:
            if pooled is None:
                raise UserError("SDXL needs pooled text embeddings: take the TextEmbedding of encode_prompt as a whole")
            height, width = (side * self.image_multiple for side in noisy_latents.shape[-2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], device=self.device, dtype=self.dtype)
            pooled = pooled.to(self.device, self.dtype)
            embeds = {"text_embeds": pooled, "time_ids": sizes.expand(len(noisy_latents), -1)}
            condition = {"added_cond_kwargs": embeds}
        prediction = self.unet(
            noisy_latents.to(self.device, self.dtype),
            timestep.to(self.device),
            embedding.to(self.device, self.dtype),
            **condition,
        ).sample.to(self.loss_dtype)
        if self.prediction_type == "epsilon":
            return prediction
        alpha = self._alpha_cumprod(timestep)
        return alpha.sqrt() * prediction + (1 - alpha).sqrt() * noisy_latents


def _token_limit(tokenizer: Any, text_encoder: Any) -> int:
    return min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
