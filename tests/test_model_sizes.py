"""Configurations of models with absurd sizes are rejected before memory is allocated for them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generation.preflight import preflight
from tests.support.recipes import two_shards
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def kl_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("kl"), kl=True)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config", {"block_out_channels": [10**9, 10**9]}, "block_out_channels 1000000000; allowed are 1 to"),
        ("unet/config", {"block_out_channels": [0, 32]}, "block_out_channels 0; allowed are 1 to"),
        ("unet/config", {"block_out_channels": [-32, 32]}, "block_out_channels -32; allowed are 1 to"),
        ("unet/config", {"block_out_channels": [20_000, 20_000]}, "parameters, but its weights have only"),
        ("unet/config", {"block_out_channels": [1e9, 32]}, "block_out_channels 1000000000.0; allowed are 1 to"),
        ("unet/config", {"layers_per_block": 10**6}, "layers_per_block 1000000; allowed are 1 to 1000"),
        ("unet/config", {"layers_per_block": 900}, "parameters, but its weights have only"),
        ("unet/config", {"transformer_layers_per_block": 10**6}, "transformer_layers_per_block 1000000; allowed are 0"),
        (
            "unet/config",
            {"transformer_layers_per_block": [[10**6], 1]},
            "transformer_layers_per_block 1000000; allowed",
        ),
        ("unet/config", {"norm_num_groups": 0}, "norm_num_groups 0; allowed are 1 to"),
        ("unet/config", {"attention_head_dim": -1}, "attention_head_dim -1; allowed are 1 to"),
        ("unet/config", {"sample_size": 10**6}, "sample_size 1000000; allowed are 1 to 8192"),
        ("unet/config", {"sample_size": -8}, "sample_size -8; allowed are 1 to 8192"),
        ("text_encoder/config", {"intermediate_size": 10**12}, "intermediate_size 1000000000000; allowed are 1 to"),
        ("text_encoder/config", {"intermediate_size": 10**6}, "parameters, but its weights have only"),
        ("text_encoder/config", {"num_hidden_layers": 10**6}, "num_hidden_layers 1000000; allowed are 1 to 1000"),
        ("text_encoder/config", {"num_hidden_layers": 1000}, "parameters, but its weights have only"),
        ("text_encoder/config", {"num_attention_heads": 0}, "num_attention_heads 0; allowed are 1 to"),
        ("text_encoder/config", {"vocab_size": 10**6}, "parameters, but its weights have only"),
        ("text_encoder/config", {"vocab_size": -1}, "vocab_size -1; allowed are 1 to"),
        ("text_encoder/config", {"max_position_embeddings": 10**12}, "max_position_embeddings 1000000000000; allowed"),
        ("text_encoder/config", {"text_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers 1000000; allowed"),
        ("vae/config", {"block_out_channels": [10**9] * 4}, "block_out_channels 1000000000; allowed are 1 to"),
        ("vae/config", {"block_out_channels": [10**5] * 4}, "parameters, but its weights have only"),
        ("vae/config", {"layers_per_block": 0}, "layers_per_block 0; allowed are 1 to"),
        (
            "scheduler/scheduler_config",
            {"num_train_timesteps": 10**12},
            "num_train_timesteps 1000000000000; allowed are",
        ),
    ],
)
def test_absurd_size_is_rejected(
    file: str, changes: dict[str, Any], message: str, kl_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(kl_model, tmp_path / "model"))
    path = folder / f"{file}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message) as raised:
        preflight(pin_recipe(two_shards(folder)))
    assert str(raised.value).startswith(f"the configuration of the {path.parent.name} of {folder} ")


def test_hidden_files_are_no_weights(kl_model: Path, tmp_path: Path) -> None:
    """macOS adds ._NAME to each file that it copies to another file system; its header was taken for damage."""
    folder = Path(shutil.copytree(kl_model, tmp_path / "model"))
    before = pin_recipe(two_shards(folder))
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(4080))
    recipe = pin_recipe(two_shards(folder))
    preflight(recipe)
    assert recipe == before
