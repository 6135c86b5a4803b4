"""LoRAs and textual inversions act as they do in diffusers, in every file format that people share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_stable_diffusion import make_pipeline
from tiny_stable_diffusion_xl import make_xl_pipeline
from torch import Tensor

from cds_nerf import LatentDiffusion
from cds_nerf.diffusion import adapters
from cds_nerf.errors import UserError

MAKERS = {"SD": make_pipeline, "SDXL": make_xl_pipeline}
UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {family: tmp_path_factory.mktemp("model") for family in MAKERS}
    for family, path in paths.items():
        MAKERS[family]().save_pretrained(path)
    return paths


def lora_pipeline(family: str, seed: int = 1, alpha: int = 1) -> Any:
    """A pipeline with a random LoRA of rank 2 in the UNet and the text encoders."""
    pipeline = MAKERS[family]()
    torch.manual_seed(seed)
    for name, layers in (("unet", UNET_LAYERS), ("text_encoder", TEXT_LAYERS), ("text_encoder_2", TEXT_LAYERS)):
        if hasattr(pipeline, name):
            config = LoraConfig(r=2, lora_alpha=alpha, target_modules=layers, init_lora_weights=False)
            getattr(pipeline, name).add_adapter(config)
    return pipeline


def lora_weights(pipeline: Any) -> dict[str, Tensor]:
    """In diffusers' present format."""
    names = [name for name in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipeline, name)]
    states = {name: get_peft_model_state_dict(getattr(pipeline, name)) for name in names}
    return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}


def kohya_weights(weights: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """In the format of kohya's trainer, which most shared LoRAs of Stable Diffusion 1.x have."""
    converted = {}
    for key, value in weights.items():
        layer, direction, _ = key.rsplit(".", 2)
        layer = layer.replace("text_encoder.text_model.", "text_encoder.")  # as transformers 4 calls it
        layer = layer.replace("text_encoder.encoder", "lora_te_text_model_encoder").replace("unet.", "lora_unet_")
        layer = layer.replace(".", "_")
        converted[f"{layer}.{'lora_down' if direction == 'lora_A' else 'lora_up'}.weight"] = value
        converted[f"{layer}.alpha"] = torch.tensor(alpha)
    return converted


def noise(diffusion: LatentDiffusion, prompt: str = "cat") -> Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = diffusion.encode_prompt(prompt)
    with torch.no_grad():
        return diffusion.predict_noise(latents, torch.tensor([400]), text.conditional, text.pooled_conditional)


def as_diffusion(pipeline: Any) -> LatentDiffusion:
    names = ("unet", "scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return LatentDiffusion(**{name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)})


@pytest.mark.parametrize("family", MAKERS)
def test_a_lora_acts_as_unmerged(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    pipeline = lora_pipeline(family, alpha=2)
    save_file(lora_weights(pipeline), tmp_path / "a.safetensors")
    loaded = LatentDiffusion.from_pretrained(folders[family], loras=[str(tmp_path / "a.safetensors")])
    torch.testing.assert_close(noise(loaded), noise(as_diffusion(pipeline)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(noise(loaded), noise(LatentDiffusion.from_pretrained(folders[family])), atol=1e-3)
    assert not any("lora" in name for name, _ in loaded.unet.named_modules())


def test_a_lora_of_kohya_s_trainer_acts_with_its_alpha(folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline = lora_pipeline("SD", alpha=1)
    save_file(kohya_weights(lora_weights(pipeline), alpha=1.0), tmp_path / "a.safetensors")
    loaded = LatentDiffusion.from_pretrained(folders["SD"], loras=[str(tmp_path / "a.safetensors")])
    torch.testing.assert_close(noise(loaded), noise(as_diffusion(pipeline)), rtol=1e-4, atol=1e-5)


def test_several_loras_add_up_each_with_its_scale(folders: dict[str, Path], tmp_path: Path) -> None:
    scales = {"a": 0.5, "b": -1.0}
    for seed, name in enumerate(scales):
        save_file(lora_weights(lora_pipeline("SD", seed, alpha=2)), tmp_path / f"{name}.safetensors")
    loras = [f"{tmp_path}/{name}.safetensors:{scale}" for name, scale in scales.items()]

    pipeline = DiffusionPipeline.from_pretrained(folders["SD"])
    for name in scales:
        pipeline.load_lora_weights(str(tmp_path / f"{name}.safetensors"), adapter_name=name)
    pipeline.set_adapters(list(scales), list(scales.values()))
    loaded = LatentDiffusion.from_pretrained(folders["SD"], loras=loras)
    torch.testing.assert_close(noise(loaded), noise(as_diffusion(pipeline)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("nowhere.safetensors", "there is no LoRA nowhere.safetensors"),
        ("./nowhere:0.5", "there is no LoRA ./nowhere"),
        ("old.bin", "is pickled"),
        ("text.safetensors", "the LoRA text.safetensors does not load"),
        ("xl.safetensors", "the LoRA xl.safetensors does not load"),
        ("vae.safetensors", "the LoRA vae.safetensors"),
    ],
)
def test_a_lora_that_does_not_fit_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.safetensors").write_text("no weights")
    save_file(lora_weights(lora_pipeline("SDXL")), "xl.safetensors")
    save_file({"vae.lora_A.weight": torch.zeros(2, 2)}, "vae.safetensors")
    with pytest.raises(UserError, match=message):
        LatentDiffusion.from_pretrained(folders["SD"], loras=[lora])


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"], "is a LoHa, and plain LoRAs alone are loaded"),
        (["lokr_w1", "lokr_w2_a", "lokr_w2_b"], "is a LoKr, .* merge it into its model with LyCORIS or"),
        (["oft_blocks"], "is an OFT"),
        (["on_input", "weight"], "is an IA3"),
        (["diff"], "is made of whole weights"),
        (["a1.weight", "b1.weight"], "is a GLoRA"),
        (["lora_down.weight", "lora_mid.weight", "lora_up.weight"], "is a LoCon with a Tucker decomposition"),
        (["lora_down.weight", "lora_up.weight", "dora_scale"], "is a DoRA"),
    ],
)
def test_lycoris_is_named_before_the_model_is_loaded(tmp_path: Path, names: list[str], message: str) -> None:
    save_file({f"{LAYER}.{name}": torch.zeros(2, 2) for name in names}, tmp_path / "a.safetensors")
    for lora in (tmp_path / "a.safetensors", tmp_path):  # a file, and a folder with one
        with pytest.raises(UserError, match=f"the LoRA {lora} {message}"):
            LatentDiffusion.from_pretrained("no/model", loras=[f"{lora}:0.5"])


def test_a_lora_of_the_hub_is_looked_at_when_it_is_there(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {f"{LAYER}.lora_down.weight": torch.zeros(2, 16), f"{LAYER}.lora_up.weight": torch.zeros(16, 2)}
    save_file(weights | {f"{LAYER}.dora_scale": torch.ones(16, 1)}, tmp_path / "pytorch_lora_weights.safetensors")
    monkeypatch.setattr(
        "diffusers.loaders.lora_base._get_model_file", lambda *_, weights_name, **__: tmp_path / weights_name
    )
    calls: list[str] = []

    def snapshot_download(name: str, local_files_only: bool) -> str:
        calls.append(name)
        if len(calls) == 1:  # diffusers downloads it after that
            raise LocalEntryNotFoundError("not cached")
        return str(tmp_path)

    monkeypatch.setattr(adapters, "snapshot_download", snapshot_download)
    monkeypatch.setattr(
        "diffusers.loaders.lora_base._best_guess_weight_name", lambda *_, **__: "pytorch_lora_weights.safetensors"
    )
    with pytest.raises(UserError, match="the LoRA owner/lora is a DoRA"):
        LatentDiffusion.from_pretrained(folders["SD"], loras=["owner/lora"])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "is a whole checkpoint: give it as the model"),
        ("emb_params", "is a textual inversion: give it as textual_inversion"),
    ],
)
def test_what_is_no_lora_is_sent_where_it_belongs(tmp_path: Path, tensor: str, message: str) -> None:
    save_file({tensor: torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        LatentDiffusion.from_pretrained("no/model", loras=[str(tmp_path / "a.safetensors")])


def test_loras_without_peft_say_what_to_install(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "is_peft_available", lambda: False)
    with pytest.raises(UserError, match=r"pip install .cds-nerf\[lora\]"):
        LatentDiffusion.from_pretrained(folders["SD"], loras=["a.safetensors"])


def vectors(count: int, width: int = 32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("count", [1, 3])
def test_a_textual_inversion_puts_its_vectors_in_place_of_its_word(
    folders: dict[str, Path], tmp_path: Path, count: int
) -> None:
    save_file({"<toy>": vectors(count)}, tmp_path / "a.safetensors")
    diffusion = LatentDiffusion.from_pretrained(folders["SD"], textual_inversions=[str(tmp_path / "a.safetensors")])
    assert diffusion.text_encoder is not None
    seen: list[Tensor] = []
    table = diffusion.text_encoder.get_input_embeddings()
    table.register_forward_hook(lambda _module, _args, output: seen.append(output[0]))
    diffusion.encode_prompt("a <toy>")
    torch.testing.assert_close(seen[0][2 : 2 + count], vectors(count))


def test_the_word_is_the_file_s_name_where_it_has_none_or_the_one_given(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    save_file({"emb_params": vectors(1)}, tmp_path / "easy.safetensors")
    file = str(tmp_path / "easy.safetensors")
    by_name, by_word = (
        LatentDiffusion.from_pretrained(folders["SD"], textual_inversions=[source]) for source in (file, f"{file}=<x>")
    )
    assert "easy" in by_name.tokenizer.get_vocab()
    assert "<x>" in by_word.tokenizer.get_vocab()
    assert torch.equal(by_name.encode_prompt("easy").conditional, by_word.encode_prompt("<x>").conditional)


def test_a_textual_inversion_of_sdxl_reaches_both_text_encoders(folders: dict[str, Path], tmp_path: Path) -> None:
    save_file({"clip_l": vectors(2, 32), "clip_g": vectors(2, 48)}, tmp_path / "toy.safetensors")
    file = str(tmp_path / "toy.safetensors")
    diffusion = LatentDiffusion.from_pretrained(folders["SDXL"], textual_inversions=[file])
    for tokenizer, encoder, width in (
        (diffusion.tokenizer, diffusion.text_encoder, 32),
        (diffusion.tokenizer_2, diffusion.text_encoder_2, 48),
    ):
        table = encoder.get_input_embeddings().weight
        assert torch.equal(table[tokenizer.convert_tokens_to_ids(["toy", "toy_1"])], vectors(2, width))
    assert not torch.equal(diffusion.encode_prompt("toy").conditional, diffusion.encode_prompt("t").conditional)
    for tokenizer, encoder in (
        (diffusion.tokenizer, diffusion.text_encoder),
        (diffusion.tokenizer_2, diffusion.text_encoder_2),
    ):
        seen: list[Tensor] = []
        encoder.get_input_embeddings().register_forward_hook(
            lambda _module, args, _output, seen=seen: seen.append(args[0])
        )
        diffusion.encode_prompt("a toy b")
        assert seen[0][0, :6].tolist() == tokenizer("a toy toy_1 b").input_ids


@pytest.mark.parametrize(
    ("inversion", "message"),
    [
        ("nowhere.safetensors", "there is no textual inversion nowhere.safetensors"),
        ("old.pt", "is pickled"),
        ("wide.safetensors", "the textual inversion wide.safetensors does not load"),
    ],
)
def test_a_textual_inversion_that_does_not_fit_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inversion: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"<toy>": vectors(1, 99)}, "wide.safetensors")
    with pytest.raises(UserError, match=message):
        LatentDiffusion.from_pretrained(folders["SD"], textual_inversions=[inversion])
