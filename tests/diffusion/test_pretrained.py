"""Loading a pretrained model: from where, and one clear sentence for each way in which it cannot be had."""

import json
import os
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
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
VOCABULARY = "tokenizer/tokenizer.json" if transformers.__version__ >= "5" else "tokenizer/vocab.json"
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
            assert isinstance(answer, Path)
            for path in answer.rglob("*"):
                file = path.relative_to(answer).as_posix()
                if path.is_file() and any(fnmatch(file, pattern) for pattern in allow_patterns):
                    (tmp_path / "downloaded" / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, tmp_path / "downloaded" / file)
            return str(tmp_path / "downloaded")

        monkeypatch.setattr("cds_nerf.hub.model_info", model_info)
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
        for file in ("tokenizer.json", "vocab.json", "merges.txt"):
            (model / "tokenizer" / file).unlink(missing_ok=True)
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

    @pytest.mark.parametrize("name", ["AutoencoderTiny", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE"])
    def test_an_autoencoder_of_another_class(self, model: Path, name: str) -> None:
        change(model / "vae" / "config.json", _class_name=name)
        assert f"has the vae {name}, where it must be AutoencoderKL: put the one in its place that" in sentence(model)

    @pytest.mark.parametrize(
        ("part", "key", "value", "message"),
        [
            ("unet", "_class_name", "UNetMotionModel", "has the unet UNetMotionModel, where it must be UNet2D"),
            ("text_encoder", "architectures", ["T5EncoderModel"], "has the text_encoder T5EncoderModel, where it must"),
            (
                "unet",
                "in_channels",
                9,
                "is an inpainting model, whose UNet takes 9 channels where the VAE makes 4: use",
            ),
            ("unet", "in_channels", 8, r"is an instruction model (InstructPix2Pix), whose UNet takes 8 channels where"),
            ("unet", "in_channels", 5, "is a depth model, whose UNet takes 5"),
            ("unet", "in_channels", 7, "is an upscaler, whose UNet takes 7"),
            ("unet", "in_channels", 6, "is no text-to-image model, whose UNet takes 6"),
        ],
    )
    def test_other_kinds_are_named(self, model: Path, part: str, key: str, value: Any, message: str) -> None:
        change(model / part / "config.json", **{key: value})
        assert message in sentence(model)


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def shard(weights: Path, variant: str = "") -> None:
    """Put two shards and an index in place of a weight file, as diffusers and transformers save large ones."""
    tensors = load_file(weights)
    names = sorted(tensors)
    files = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{weights.name.split('.')[0]}{variant}-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, weights.with_name(file), {"format": "pt"})
        files |= dict.fromkeys(part, file)
    index = f"{weights.name.split('.')[0]}.safetensors.index{variant}.json"
    weights.with_name(index).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": files}))
    weights.unlink()


PARTS = ("unet", "vae", "text_encoder")


class TestWeightFiles:
    def test_shards_as_diffusers_saves_them_are_loaded(self, tmp_path: Path) -> None:
        pipeline = make_pipeline()
        pipeline.save_pretrained(tmp_path, max_shard_size="50KB")
        for part in ("unet", "vae"):
            assert len(list((tmp_path / part).glob("*-of-*.safetensors"))) > 1
        assert_equal_weights(LatentDiffusion.from_pretrained(tmp_path), pipeline)

    @pytest.mark.parametrize("variant", ["", ".fp16"])
    @pytest.mark.parametrize("part", PARTS)
    def test_each_part_may_be_in_shards(self, model: Path, part: str, variant: str) -> None:
        shard(next((model / part).glob("*.safetensors")), variant)
        for dtype in (torch.float32, torch.float16):
            assert_equal_weights(LatentDiffusion.from_pretrained(model, dtype=dtype), make_pipeline("v_prediction"))

    @pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
    @pytest.mark.parametrize("others", [(), ("vae",), ("unet", "text_encoder")])
    def test_each_part_decides_for_itself_on_its_variant(self, model: Path, variant: str, others: tuple[str]) -> None:
        for part in PARTS:
            if part not in others:
                weights = next((model / part).glob("*.safetensors"))
                weights.rename(weights.with_suffix(f".{variant}.safetensors"))
        for dtype in (torch.float32, torch.float16):
            assert_equal_weights(LatentDiffusion.from_pretrained(model, dtype=dtype), make_pipeline("v_prediction"))

    def test_a_shard_or_an_index_that_is_not_there_is_named(self, model: Path) -> None:
        weights = model / "unet" / "diffusion_pytorch_model.safetensors"
        shard(weights)
        (model / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
        assert "lacks unet/diffusion_pytorch_model-00002-of-00002.safetensors" in sentence(model)
        (model / "unet" / "diffusion_pytorch_model.safetensors.index.json").unlink()
        assert "lacks unet/diffusion_pytorch_model.safetensors.index.json, unet/diffusion_pyt" in sentence(model)

    def test_whole_weights_come_before_shards_that_are_not(self, model: Path) -> None:
        whole = model / "unet" / "diffusion_pytorch_model.safetensors"
        shutil.copy(whole, whole.with_suffix(".copy"))
        shard(whole, ".fp16")
        whole.with_suffix(".copy").rename(whole)
        (model / "unet" / "diffusion_pytorch_model.fp16-00001-of-00002.safetensors").unlink()
        loaded = LatentDiffusion.from_pretrained(model, dtype=torch.float16)
        assert_equal_weights(loaded, make_pipeline("v_prediction"))

    def test_pickled_shards_are_not_loaded(self, model: Path) -> None:
        weights = model / "unet" / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.bin"))
        assert "has unet/diffusion_pytorch_model-00001-of-00002.bin but not unet/diffusion_pyt" in sentence(model)


def assert_equal_weights(diffusion: LatentDiffusion, pipeline: Any) -> None:
    for name in PARTS:
        expected = getattr(pipeline, name).state_dict()
        weights = getattr(diffusion, name).state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key].to(diffusion.dtype)) for key in expected)


class TestHubCacheFolders:
    @pytest.fixture
    def cache(self, saved: Path, tmp_path: Path) -> Path:
        """A model's folder in the hub's cache, with two versions of which `main` is the whole one."""
        folder = tmp_path / "hub" / "models--owner--name"
        shutil.copytree(saved, folder / "snapshots" / "abc")
        shutil.copytree(saved / "vae", folder / "snapshots" / "def" / "vae")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        return folder

    @pytest.mark.parametrize("within", [".", "snapshots", "snapshots/abc"])
    def test_a_model_s_folder_in_the_cache_is_its_current_snapshot(self, cache: Path, within: str) -> None:
        assert LatentDiffusion.from_pretrained(cache / within).prediction_type == "v_prediction"

    def test_without_a_ref_it_is_the_newest_snapshot(self, cache: Path) -> None:
        shutil.rmtree(cache / "refs")
        os.utime(cache / "snapshots" / "def", (0, 0))
        LatentDiffusion.from_pretrained(cache)

    def test_a_snapshot_that_is_not_whole_is_told(self, cache: Path) -> None:
        (cache / "refs" / "main").write_text("def\n")
        assert "has no unet/" in sentence(cache)

    def test_the_cache_as_a_whole_is_told(self, cache: Path) -> None:
        assert "is the Hugging Face Hub's cache of several models: name one of them, as owner/name" in sentence(
            cache.parent
        )


class TestHub:
    def test_a_cached_model_is_loaded_without_asking(self, saved: Path, hub: Callable[..., list[str]]) -> None:
        asked = hub(ConnectionError("offline"), cached=saved)
        assert LatentDiffusion.from_pretrained(NAME).prediction_type == "v_prediction"
        assert not asked

    @pytest.mark.parametrize("missing", ["unet/diffusion_pytorch_model.safetensors", VOCABULARY])
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

    @pytest.mark.parametrize(
        ("dtype", "weights"), [(torch.float16, "model.fp16.safetensors"), (torch.float32, "model.safetensors")]
    )
    def test_the_weights_in_the_wanted_precision_alone_are_downloaded(
        self, model: Path, tmp_path: Path, hub: Callable[..., list[str]], dtype: torch.dtype, weights: str
    ) -> None:
        for name in ("model.fp16.safetensors", "pytorch_model.bin", "flax_model.msgpack"):
            shutil.copy(model / "text_encoder" / "model.safetensors", model / "text_encoder" / name)
        shard(model / "unet" / "diffusion_pytorch_model.safetensors")
        shutil.copytree(model / "text_encoder", model / "safety_checker")
        hub(model)
        LatentDiffusion.from_pretrained(NAME, dtype=dtype)
        files = [
            path.relative_to(tmp_path / "downloaded").as_posix() for path in (tmp_path / "downloaded").rglob("*.*")
        ]
        assert sorted(file for file in files if not file.endswith((".json", ".txt"))) == [
            f"text_encoder/{weights}",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ]

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
        monkeypatch.setattr("cds_nerf.hub.model_info", huggingface_hub.model_info)
        monkeypatch.setattr(huggingface_hub.model_info.__self__, "endpoint", "http://127.0.0.1:9")  # nobody listens
        assert re.search(r"cannot be reached \(.*Connection refused", sentence(NAME))

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
