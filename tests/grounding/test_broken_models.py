"""Empty shards, NaN at every stage before a mask, and defaults chosen by the hardware."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.config.prompts import captioned
from factory.config.vocabulary import voc
from factory.dataset.receipts import Receipt
from factory.dataset.storage import Store
from factory.errors import GpuError, UserError
from factory.generator.interface import Attention, Captured, Generated
from factory.grounder import batch_size
from factory.grounder.attention import class_heats
from factory.grounder.data import OracleDataset, first_samples
from factory.grounder.folder import load_grounder, save_grounder
from factory.grounder.run import MAX_BATCH, GrounderTraining, train_here
from factory.grounder.trained import TrainedGrounder
from factory.grounder.training import GrounderOptions, GrounderTask
from factory.training.checkpoint import saved_options
from factory.training.loop import train
from factory.training.memory import _available
from tests.support.in_process import invoke
from tests.support.oracle_datasets import OPTIONS


def _silent(text: str) -> None:
    pass


def _copied(oracle: Path, folder: Path) -> Store:
    shutil.copytree(oracle, folder)
    return Store(str(folder))


def _replaced(store: Store, name: str, data: bytes) -> None:
    store.delete(name)
    store.create(name, data)


def _rewritten(data: bytes, change: Any) -> bytes:
    """The tar with each member replaced by `change(name, content)`; None removes it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=stream, mode="w") as new:
        for member in old:
            content = change(member.name, old.extractfile(member).read())
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _nan(name: str, content: bytes) -> bytes:
    if not name.endswith("latent.npy"):
        return content
    stream = io.BytesIO()
    np.save(stream, np.full_like(np.load(io.BytesIO(content)), np.nan))
    return stream.getvalue()


def test_training_accepts_an_empty_first_shard(oracle: Path, tmp_path: Path) -> None:
    store = _copied(oracle, tmp_path / "set")
    rows = OracleDataset(store).receipts[0]
    indices = [sample.index for sample in OracleDataset(store).plan.shard(0).samples]
    _replaced(store, rows.tar.name, _rewritten(store.get(rows.tar.name) or b"", lambda name, content: None))
    emptied: Receipt = replace(rows, accepted=0, short=tuple(indices))
    _replaced(store, "receipts/000000.json", emptied.to_json())
    opened = OracleDataset(store)
    assert first_samples(opened, 3)[0].key == f"{indices[-1] + 1:09d}"
    task = GrounderTask([opened], GrounderOptions(), "cpu", OPTIONS.steps)
    task.validation = []
    assert train(task, replace(OPTIONS, steps=1), tmp_path / "run", _silent).is_dir()


def test_a_nan_latent_raises_a_clear_error(oracle: Path, tmp_path: Path) -> None:
    store = _copied(oracle, tmp_path / "set")
    _replaced(store, "train/000000.tar", _rewritten(store.get("train/000000.tar") or b"", _nan))
    with pytest.raises(UserError, match=r"the latent of sample 00000000\d of .*set contains NaN"):
        first_samples(OracleDataset(store), 1)


def test_nan_features_raise_a_clear_error_at_the_first_step(oracle: Path, tmp_path: Path) -> None:
    task = GrounderTask([OracleDataset(Store(str(oracle)))], GrounderOptions(), "cpu", OPTIONS.steps)
    with torch.no_grad():
        task.reader.pipeline.unet.mid_block.resnets[0].conv1.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"the U-Net of the model .* returns values that are not finite"):
        train(task, OPTIONS, tmp_path / "run", _silent)
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_a_grounder_with_nan_weights_is_neither_saved_nor_loaded(trained: Path, tmp_path: Path) -> None:
    module, config = load_grounder(trained)
    with torch.no_grad():
        module.last.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"weight last.weight contains NaN or infinity, so it was not saved"):
        save_grounder(module, config, {}, tmp_path / "written")
    assert not (tmp_path / "written/config.json").exists()
    broken = shutil.copytree(trained, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    save_file({**weights, "last.bias": weights["last.bias"] * torch.inf}, broken / "model.safetensors")
    with pytest.raises(UserError, match=r"contains NaN or infinity in last.bias"):
        load_grounder(broken)


def test_a_weight_too_large_for_half_precision_stays_float32(trained: Path, tmp_path: Path) -> None:
    module, config = load_grounder(trained)
    with torch.no_grad():
        module.last.bias.fill_(1e6)
    save_grounder(module, config, {"miou_one": float("nan")}, tmp_path)
    assert load_grounder(tmp_path)[0].last.bias.item() == 1e6
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1, "as readable as the other files"
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"miou_one": None}


def test_nan_features_and_attention_raise_a_clear_error(trained: Path, captured: tuple[Captured, torch.Tensor]) -> None:
    grounder, (read, pictures) = TrainedGrounder(trained), captured
    broken = replace(read, features={**read.features, "in.1": read.features["in.1"] * torch.nan})
    with torch.no_grad(), pytest.raises(UserError, match=r"reads NaN or infinity in in.1; the weights of the text-to-"):
        grounder.logits(broken, pictures)
    attention = Attention({(4, 4): np.full((4, 4, 4), np.nan, np.float32)}, {(4, 4): 1})
    with pytest.raises(UserError, match="attention to dog is NaN"):
        class_heats(attention, captioned(voc(), ["dog"]))


def test_the_batch_size_fits_memory_and_is_kept_on_resume(
    oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = GrounderTask([OracleDataset(Store(str(oracle)))], GrounderOptions(), "cpu", 1)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    sample_bytes = batch_size._bytes_per_sample(task)
    assert 2**20 < sample_bytes < 2**28
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert batch_size.fitting_batch(task, MAX_BATCH, _silent) == MAX_BATCH
    messages: list[str] = []
    for free, batch in ((9.5 * sample_bytes, 8), (1.5 * sample_bytes, 1), (0.0, 1)):
        monkeypatch.setattr(batch_size, "free_bytes", lambda device, free=free: free)
        assert batch_size.fitting_batch(task, MAX_BATCH, messages.append) == batch
    assert "Batch size 8: a sample takes" in messages[0]
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: 4.5 * sample_bytes)
    run = GrounderTraining((str(oracle),), str(tmp_path / "run"), steps=2, threads=1)
    train_here(run, _silent)
    assert saved_options(tmp_path / "run")["batch"] == 4
    monkeypatch.undo()
    train_here(run, _silent)
    with pytest.raises(UserError, match="batch was 4, is 2"):
        train_here(replace(run, batch=2), _silent)


def test_the_batch_size_divides_evenly_among_devices() -> None:
    run = GrounderTraining(("oracle",), "run")
    assert [run.on_several(devices).batch for devices in (2, 3, 5, 64)] == [32, 30, 30, 64]
    assert replace(run, batch=7).on_several(2).batch == 7
    assert run.on_several(1).batch is None


def test_train_grounder_chooses_batch_sizes(oracle: Path, tmp_path: Path) -> None:
    for module, extra, batch in (("guided", [], MAX_BATCH), ("paper-cfg", ["--batch", 2], 2)):
        arguments = ["--out", tmp_path / module, "--steps", 1, "--threads", 1, "--module", module, *extra]
        result = invoke("train-grounder", oracle, *arguments)
        assert result.exit_code == 0, result.output + str(result.exception)
        assert saved_options(tmp_path / module)["batch"] == batch
        assert load_grounder(tmp_path / module / "model")[1].module == module


def test_masks_of_a_batch_that_does_not_fit_into_memory_are_predicted_in_parts(
    trained: Path, captured: tuple[Captured, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `generate` as well as at the end of a training, whose batch may be smaller than that of its evaluation."""
    grounder, (read, images) = TrainedGrounder(trained), captured
    prompts = [captioned(voc(), ["dog", "train"]), captioned(voc(), ["dog", "cat"]), captioned(voc(), ["dog"])]
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    generated = [
        Generated(
            image=pixels[k],
            features={name: value[k] for name, value in read.features.items()},
            cross_attention={name: maps[k, :, : len(p.classes)] for name, maps in read.cross_attention.items()},
        )
        for k, p in enumerate(prompts)
    ]
    expected, logits = grounder.ground(generated, prompts), grounder.logits

    def limited(part: Captured, part_images: torch.Tensor) -> torch.Tensor:
        if len(part_images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(part, part_images)

    monkeypatch.setattr(grounder, "logits", limited)
    for found, other in zip(grounder.ground(generated, prompts), expected, strict=True):
        assert [i.class_name for i in found.instances] == [i.class_name for i in other.instances]
        for instance, same in zip(found.instances, other.instances, strict=True):
            assert (instance.mask != same.mask).mean() < 0.01


def test_a_training_is_evaluated_in_parts_that_fit_into_memory(oracle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = GrounderTask([OracleDataset(Store(str(oracle)))], GrounderOptions(), "cpu", 1)
    read = task._read

    def limited(samples: Any) -> Captured:
        if len(samples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(samples)

    monkeypatch.setattr(task, "_read", limited)
    with torch.no_grad():
        assert task.sample_sheet(task.model.eval()).width


def test_a_gpu_that_holds_the_model_but_reads_no_sample_is_reported(
    oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> Captured:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("factory.generator.pipeline.PipelineGenerator.read", read)
    with pytest.raises(GpuError, match="too little free memory for a training step with one sample"):
        train_here(GrounderTraining((str(oracle),), str(tmp_path / "run"), batch=2))


def test_the_memory_of_a_host_without_meminfo_is_all_of_it(tmp_path: Path) -> None:
    """On macOS, `train-grounder` without --batch ended with an error about /proc/meminfo."""
    assert _available(tmp_path / "none") >= _available()
