"""A model in the layout of Stable Diffusion's own checkpoints: one .safetensors file, as people share them."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0.conv": "downsample.conv",
    "upsamplers.0.conv": "upsample.conv",
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
}

OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_single_file(pipeline: Any, path: Path) -> None:
    """Write UNet, VAE and text encoders under the names of the original implementation."""
    weights = {f"model.diffusion_model.{_unet_name(pipeline, key)}": value for key, value in _state(pipeline.unet)}
    for key, value in _state(pipeline.vae):
        matrix = "attentions" in key and key.endswith("weight") and value.ndim == 2
        weights[f"first_stage_model.{_vae_name(pipeline, key)}"] = value[:, :, None, None] if matrix else value
    xl = hasattr(pipeline, "text_encoder_2")
    prefix = "conditioner.embedders.0.transformer" if xl else "cond_stage_model.transformer"
    for key, value in _state(pipeline.text_encoder):
        weights[f"{prefix}.text_model.{key.removeprefix('text_model.')}"] = value
    if xl:
        second = _open_clip(dict(_state(pipeline.text_encoder_2)), pipeline.text_encoder_2.config.num_hidden_layers)
        weights |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    save_file({key: value.contiguous() for key, value in weights.items()}, path)


def _state(model: Any) -> list[tuple[str, Tensor]]:
    return list(model.state_dict().items())


def _unet_name(pipeline: Any, key: str) -> str:
    per_block = pipeline.unet.config.layers_per_block + 1
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key):
        side, block, kind, index, rest = match.groups()
        first = int(block) * per_block
        if kind == "downsamplers":
            return f"input_blocks.{first + per_block}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":
            attends = any(name.startswith(f"up_blocks.{block}.attentions") for name, _ in _state(pipeline.unet))
            return f"output_blocks.{first + per_block - 1}.{2 if attends else 1}.{rest}"
        place = f"input_blocks.{first + 1 + int(index)}" if side == "down" else f"output_blocks.{first + int(index)}"
        return f"{place}.0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"
    key = _renamed(key, UNET)
    return _renamed(
        key,
        {
            f"{place}.{old}": f"{place}.{new}"
            for place in ("middle_block.0", "middle_block.2")
            for old, new in RESNET.items()
        },
    )


def _vae_name(pipeline: Any, key: str) -> str:
    blocks = len(pipeline.vae.config.block_out_channels)
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}", key)
    for old, new in VAE.items():
        key = key.replace(old, new)
    return key


def _open_clip(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    weights = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        weights[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        for layer in range(layers):
            old, new = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            queries = [state[f"{old}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            weights[f"{new}.attn.in_proj_{kind}"] = torch.cat(queries)
            for their, own in OPEN_CLIP.items():
                weights[f"{new}.{own}.{kind}"] = state[f"{old}.{their}.{kind}"]
    return weights


def _renamed(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key
