"""Loading a pretrained model: from where, and one clear sentence for each way in which it cannot be had."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file
from tiny_stable_diffusion import make_pipeline

from cds_nerf import LatentDiffusion
from cds_nerf.diffusion import pretrained
from cds_nerf.errors import UserError

NAME = "owner/name"
RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipeline("v_prediction").save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A saved model to damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Put a hub and its cache in place: `hub(files or error, cached=folder, missing=[...])` -> what it was asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def set_up(
        answer: Path | Exception,
        cached: Path | None = None,
        missing: tuple[str, ...] = (),
        broken: Exception | None = None,
    ) -> list[str]:
        asked: list[str] = []
        if cached is not None:
            repository = tmp_path / "cache" / "models--owner--name"
            shutil.copytree(cached, repository / "snapshots" / "abc")
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text("abc")
            for file in missing:
                (repository / "snapshots" / "abc" / file).unlink()

        def model_info(name: str, timeout: float) -> Any:
            asked.append("info")
            assert timeout <= 10
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in pretrained._files(answer)])

        def snapshot_download(name: str, allow_patterns: list[str]) -> str:
            asked.append("download")
            if broken is not None:
                raise broken
            return str(answer)

        monkeypatch.setattr(pretrained, "model_info", model_info)
        monkeypatch.setattr(pretrained, "snapshot_download", snapshot_download)
        return asked

    return set_up


def sentence(model: str | Path) -> str:
    """What the user is told when the model does not load: one line."""
    with pytest.raises(UserError) as caught:
        LatentDiffusion.from_pretrained(model)
    message = str(caught.value)
    assert "\n" not in message and str(model) in message
    return message


class TestFolders:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_a_saved_model_comes_back(self, saved: Path, dtype: torch.dtype) -> None:
        diffusion = LatentDiffusion.from_pretrained(saved, dtype=dtype)
        original = make_pipeline("v_prediction")
        for name in ("unet", "vae", "text_encoder"):
            part = getattr(diffusion, name)
            assert not part.training
            weights = getattr(original, name).state_dict()
            for key, weight in part.state_dict().items():
                assert weight.dtype == dtype and torch.equal(weight, weights[key].to(dtype))
        assert diffusion.dtype == dtype and diffusion.prediction_type == "v_prediction"
        assert torch.equal(diffusion.alphas_cumprod, original.scheduler.alphas_cumprod)
        assert diffusion.tokenizer("a fox").input_ids == original.tokenizer("a fox").input_ids

    def test_a_tilde_is_the_home_folder(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(model.parent))
        LatentDiffusion.from_pretrained("~/tiny")

    @pytest.mark.parametrize("name", ["/no/such", "./no-such", "~/no-such", "outputs/no/such"])
    def test_none_there(self, name: str) -> None:
        assert sentence(name).startswith(f"there is no folder {name}")

    def test_a_single_file(self, model: Path) -> None:
        assert "has no UNet in the layout" in sentence(model / "unet" / "diffusion_pytorch_model.safetensors")

    def test_no_unet(self, model: Path) -> None:
        shutil.rmtree(model / "unet")
        assert "has no unet/" in sentence(model)

    def test_pickled_weights_are_not_loaded(self, model: Path) -> None:
        weights = model / "text_encoder" / "model.safetensors"
        weights.rename(weights.with_name("pytorch_model.bin"))
        assert "has text_encoder/pytorch_model.bin but not text_encoder/model.safetensors" in sentence(model)
        weights = model / "unet" / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
        assert "save_pretrained(FOLDER)" in sentence(model)

    def test_a_transformer(self, model: Path) -> None:
        (model / "transformer").mkdir()
        (model / "transformer" / "config.json").write_text("{}")
        assert "as SD3, FLUX and PixArt do: use Stable Diffusion 1.x, 2.x or XL base" in sentence(model)

    def test_a_refiner(self, model: Path) -> None:
        (model / "text_encoder").rename(model / "text_encoder_2")
        assert "has the second text encoder of SDXL alone, as its refiner does" in sentence(model)

    def test_a_missing_vocabulary_is_not_taken_for_an_empty_one(self, model: Path) -> None:
        (model / "tokenizer" / "tokenizer.json").unlink()
        assert "lacks tokenizer/vocab.json, tokenizer/merges.txt" in sentence(model)

    @pytest.mark.parametrize(
        "file", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    )
    @pytest.mark.parametrize("content", [b"", b"{x" * 1000], ids=["empty", "garbage"])
    def test_a_damaged_file(self, model: Path, file: str, content: bytes) -> None:
        (model / file).write_bytes(content)
        assert "does not load" in sentence(model) and "files are damaged" in sentence(model)

    @pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
    def test_weights_that_are_not_there_are_not_left_random(self, model: Path, part: str) -> None:
        file = next((model / part).glob("*.safetensors"))
        weights = load_file(file)
        lost = sorted(weights)[3]
        shape = weights.pop(lost).shape
        save_file(weights, file, metadata={"format": "pt"})
        assert f"the weights of {part} lack" in sentence(model)
        save_file(weights | {lost: torch.zeros(*shape, 2)}, file, metadata={"format": "pt"})
        assert "does not load" in sentence(model)


class TestHub:
    def test_a_cached_model_is_loaded_without_asking(self, saved: Path, hub: Callable[..., list[str]]) -> None:
        asked = hub(ConnectionError("offline"), cached=saved)
        assert LatentDiffusion.from_pretrained(NAME).prediction_type == "v_prediction"
        assert not asked

    @pytest.mark.parametrize("missing", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"])
    def test_a_half_downloaded_model_is_completed(
        self, saved: Path, hub: Callable[..., list[str]], missing: str
    ) -> None:
        asked = hub(saved, cached=saved, missing=(missing,))
        LatentDiffusion.from_pretrained(NAME)
        assert asked == ["info", "download"]

    def test_a_model_that_is_not_cached_is_downloaded(self, saved: Path, hub: Callable[..., list[str]]) -> None:
        asked = hub(saved)
        LatentDiffusion.from_pretrained(NAME)
        assert asked == ["info", "download"]

    def test_a_model_that_would_not_load_is_not_downloaded(self, model: Path, hub: Callable[..., list[str]]) -> None:
        (model / "unet").rename(model / "transformer")
        asked = hub(model)
        assert "on the Hugging Face Hub has a transformer in place of the UNet, as SD3" in sentence(NAME)
        assert asked == ["info"]

    @pytest.mark.parametrize(
        "error",
        [
            OfflineModeIsEnabled("offline mode is enabled"),
            ConnectionError("no route\nto host"),
            TimeoutError(),
            LocalEntryNotFoundError("not in the cache"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_offline(self, saved: Path, hub: Callable[..., list[str]], error: Exception) -> None:
        hub(error, cached=saved, missing=("vae/config.json",))
        message = sentence(NAME)
        assert "the Hugging Face Hub cannot be reached" in message
        assert (str(error).splitlines() or ["TimeoutError"])[0] in message
        assert f"`hf download {NAME} --local-dir FOLDER`" in message

    def test_offline_fails_after_one_question(
        self, hub: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub(ConnectionError())
        monkeypatch.setattr(pretrained, "model_info", huggingface_hub.model_info)
        monkeypatch.setattr(huggingface_hub.model_info.__self__, "endpoint", "http://127.0.0.1:9")  # nobody listens
        assert "cannot be reached ([Errno 111] Connection refused)" in sentence(NAME)

    def test_a_connection_lost_on_the_way(self, saved: Path, hub: Callable[..., list[str]]) -> None:
        hub(saved, broken=ConnectionError("reset by peer"))
        assert "cannot be reached (reset by peer)" in sentence(NAME)

    def test_a_wrong_name(self, hub: Callable[..., list[str]]) -> None:
        hub(RepositoryNotFoundError("401", response=RESPONSE))
        assert sentence(NAME).startswith(f"there is no diffusion model {NAME}")

    def test_a_name_that_cannot_be_one(self, hub: Callable[..., list[str]]) -> None:
        hub(ConnectionError())
        assert sentence("a fox").startswith("there is no diffusion model a fox")

    def test_a_gated_model(self, saved: Path, hub: Callable[..., list[str]]) -> None:
        hub(saved, broken=GatedRepoError("403", response=RESPONSE))
        assert f"is gated: accept its licence at https://huggingface.co/{NAME}" in sentence(NAME)
