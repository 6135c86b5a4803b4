"""A run's config.yml: written anywhere by any version, and never able to act."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.utils.writer import EventName

from cds_nerf.errors import UserError
from cds_nerf.nerf.config_loader import AbsentConfiguration, absent_in, load_config


@pytest.fixture
def load(tmp_path):
    """What a text in a config.yml is read as."""

    def load(text: str):
        path = tmp_path / "config.yml"
        path.write_text(text, "utf8")
        return load_config(path)

    return load


@pytest.mark.parametrize("method", [name for name, config in all_methods.items() if hasattr(config, "pipeline")])
def test_every_installed_method_is_read_as_nerfstudio_reads_it(load, method):
    text = yaml.dump(all_methods[method])
    config, left_out = load(text)
    assert config == yaml.load(text, Loader=yaml.Loader)
    assert yaml.dump(config) == text
    assert not left_out


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("!!python/object/apply:os.system [touch FILE]", "os.system"),
        ("!!python/object/new:os.system [touch FILE]", "object/new:os.system"),
        ("!!python/object/apply:subprocess.check_call [[touch, FILE]]", "subprocess.check_call"),
        ("!!python/object/apply:builtins.eval [\"open('FILE', 'w')\"]", "builtins.eval"),
        ("!!python/object/apply:builtins.getattr [!!python/name:os.system '', __call__]", "os.system"),
        ("!!python/object/apply:_operator.getitem [!!python/name:os.environ '', PATH]", "os.environ"),
        ("!!python/name:os.system ''", "os.system"),
        ("!!python/module:this ''", "module:this"),
        ("!!python/object:collections.OrderedDict {}", "collections.OrderedDict"),
        ("!!python/object/apply:numpy.core.multiarray.scalar [1]", "numpy.core.multiarray.scalar"),
        ("!unknown {}", "!unknown"),
        # of nerfstudio and its plugins, but no configuration
        (
            "!!python/object/apply:nerfstudio.utils.scripts.run_command [touch FILE]",
            "nerfstudio.utils.scripts.run_command",
        ),
        (
            "!!python/object/apply:nerfstudio.engine.trainer.TrainerConfig []",
            "nerfstudio.engine.trainer.TrainerConfig",
        ),
        (
            "!!python/object:nerfstudio.data.dataparsers.nerfstudio_dataparser.Nerfstudio {}",
            "nerfstudio.data.dataparsers.nerfstudio_dataparser.Nerfstudio",
        ),
        # what their modules have imported
        ("!!python/name:cds_nerf.files.shutil ''", "cds_nerf.files.shutil"),
        ("!!python/name:cds_nerf.files.contextmanager ''", "cds_nerf.files.contextmanager"),
        # a function where a class makes the object
        (
            "!!python/object:nerfstudio.engine.trainer.TrainerConfig "
            "{_target: !!python/name:nerfstudio.utils.scripts.run_command ''}",
            "run_command as the _target of TrainerConfig",
        ),
    ],
)
def test_whatever_could_act_is_refused_by_name_and_does_not(load, text, name, tmp_path):
    with pytest.raises(UserError, match=rf"config\.yml cannot be read \(line 2 asks for {re.escape(name)}\)"):
        load("a: 1\nb: " + text.replace("FILE", str(tmp_path / "made")))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "text",
    ["a: [", "!!timestamp x", "!!float ''", "!!bool x", "!!python/tuple x", "[" * 3000, "\x01", "? [a]\n: b", "b: *a"],
)
def test_nonsense_is_named_in_one_line(load, text):
    with pytest.raises(UserError, match=r"config\.yml cannot be read") as refusal:
        load(text)
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "config.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"config\.yml cannot be read"):
        load_config(tmp_path / "config.yml")


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("PosixPath [/, data, fox]", Path("/data/fox")),
        ("PosixPath [data, fox]", Path("data/fox")),
        ("PosixPath []", Path()),
        ("WindowsPath [data, fox]", Path("data/fox")),
        (r"WindowsPath ['data\fox']", Path("data/fox")),
        (r"PureWindowsPath ['C:\', Users, fox]", Path(r"C:\Users\fox")),
    ],
)
def test_paths_of_any_system_are_paths_of_this_one(load, module, path, expected):
    read, _ = load(f"!!python/object/apply:{module}.{path}")
    assert read == expected
    assert type(read) is type(Path())


def test_enumerations_are_read_as_other_versions_of_python_write_them(load):
    name = "nerfstudio.utils.writer.EventName"
    assert load(f"!!python/object/apply:{name} [ETA (time)]") == (EventName.ETA, [])
    assert load(f"!!python/object/apply:builtins.getattr [!!python/name:{name} '', ETA]") == (EventName.ETA, [])


def test_missing_settings_have_their_defaults_and_unknown_ones_are_named(load):
    config, left_out = load(
        "!!python/object:nerfstudio.data.datamanagers.base_datamanager.VanillaDataManagerConfig\n"
        "train_num_rays_per_batch: 77\nsample_faster: true\n"
    )
    assert config == VanillaDataManagerConfig(train_num_rays_per_batch=77)
    assert not hasattr(config, "sample_faster")
    assert left_out == ["VanillaDataManagerConfig.sample_faster"]


def test_classes_of_older_versions_are_what_does_their_work_now(load):
    old = "nerfstudio.data.datamanagers.depth_datamanager.DepthDataManager"
    config, _ = load(
        f"!!python/object:{old}Config\n_target: !!python/name:{old} ''\n"
        "dataparser: !!python/object:nerfstudio.data.dataparsers.nerfstudio_dataparser.NerfstudioDataParserConfig\n"
        "  train_split_percentage: 0.5\n"
    )
    assert config._target is VanillaDataManagerConfig()._target
    assert config.dataparser.train_split_fraction == 0.5


def test_classes_that_are_gone_are_absent_and_named(load):
    config, left_out = load("!!python/object:nerfstudio.models.old.OldModelConfig {near_plane: 0.1}")
    assert config == AbsentConfiguration("nerfstudio.models.old.OldModelConfig", {"near_plane": 0.1})
    assert left_out == [absent_in({"model": [config]})] == ["nerfstudio.models.old.OldModelConfig"]
