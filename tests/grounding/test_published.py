"""The paper's released module: both halves of guidance, its size, and the checkpoint's layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from factory.config.plan import Plan
from factory.config.recipe import make_recipe
from factory.errors import UserError
from factory.generation.pin import pin_recipe
from factory.generator.interface import CLASS_EMBEDDINGS, FEATURES, HALVES, LATENT, Captured, Request
from factory.generator.noise import mixture
from factory.generator.pipeline import PipelineGenerator
from factory.grounder.folder import load_grounder
from factory.grounder.modules.backbone import Backbone
from factory.grounder.modules.published import PublishedModule
from factory.grounder.released import layout, load_released
from tests.support.in_process import invoke
from tests.support.oracle_datasets import oracle_recipe, read_blocks

SMALL = Backbone({"in.0": (6, 1), "in.1": (4, 2), "in.2": (4, 4), "mid": (8, 8), "out.0": (2, 1)}, {}, 12, 16)
"""Four levels, as in Stable Diffusion 1."""


def _mixer(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    rows: dict[str, tuple[int, ...]] = {}
    for n in (1, 2):
        rows[f"{name}.conv{n}.weight"] = (channels, channels, 3, 3)
        rows[f"{name}.conv{n}.bias"] = (channels,)
        rows[f"{name}.conv{n}.u0"] = (1, channels)
        rows[f"{name}.conv{n}.sv0"] = (1,)
        rows[f"{name}.stored_mean{n}"] = rows[f"{name}.stored_var{n}"] = (channels,)
    return rows


def released_shapes(inputs: tuple[int, ...], token: int, words: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `torch.load("grounding_module.pth")`, transcribed from the released code."""
    levels, widths = ("low", "mid", "high", "highest"), (16, 32, 64, 128)
    rows: dict[str, tuple[int, ...]] = {
        f"{level}_feature_conv.0.weight": (width, given, 1, 1)
        for level, width, given in zip(levels, widths, inputs, strict=True)
    }
    for level, channels in (("mid", 48), ("high", 112), ("highest", 240)):
        rows |= _mixer(f"{level}_feature_mix_conv", channels)
    for k in range(3):
        layer = f"transfromer_decoder.layers.{k}"
        for attention in ("self_attn", "multihead_attn"):
            rows[f"{layer}.{attention}.in_proj_weight"] = (1536, 512)
            rows[f"{layer}.{attention}.out_proj.weight"] = (512, 512)
        rows |= {f"{layer}.linear1.weight": (2048, 512), f"{layer}.linear1.bias": (2048,)}
        rows |= {f"{layer}.linear2.weight": (512, 2048), f"{layer}.linear2.bias": (512,)}
        rows |= {f"{layer}.norm{n}.{kind}": (512,) for n in (1, 2, 3) for kind in ("weight", "bias")}
        outputs = 240 if k == 2 else 512
        rows |= {f"mlp.layers.{k}.weight": (outputs, 512), f"mlp.layers.{k}.bias": (outputs,)}
    return rows | {"to_k.weight": (512, token), "to_q.weight": (512, words)}


def released(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A checkpoint of random weights with a realistic spread."""
    random = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    scale = {name: value.flatten(1).shape[1] ** -0.5 if value.ndim > 1 else 0.1 for name, value in weights.items()}
    return {name: value * scale[name] for name, value in weights.items()}


SMALL_SHAPES = released_shapes((8, 4, 4, 8), 240, 12)


def test_the_published_module_has_the_released_names_and_shapes() -> None:
    """Both guidance halves: 15360, 14080, 8320 and 5120 channels; 18.8 M parameters."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        blocks = read_blocks(unet, frozenset({FEATURES, HALVES}), 2)
        backbone = Backbone.of(Captured(blocks, {}, torch.empty(1, 1, 768)))
        module = PublishedModule(backbone)
    assert [backbone.channels(level) for level in backbone.levels()] == [15360, 14080, 8320, 5120]
    assert sum(weight.numel() for weight in module.parameters()) == 18_796_560
    expected = released_shapes((15360, 14080, 8320, 5120), 3840, 768)
    assert {entry.name: entry.shape for entry in layout(module)} == expected
    used = {entry.target for entry in layout(module)} - {None}
    assert used == set(module.state_dict()) - {name for name in module.state_dict() if name[-2:] in ("_u", "_v")}


def _normed(weights: dict[str, Tensor], name: str) -> Tensor:
    """A convolution's weight over its largest singular value, by one power iteration from u0."""
    weight, u = weights[f"{name}.weight"], weights[f"{name}.u0"]
    matrix = weight.reshape(len(weight), -1)
    v = F.normalize(u @ matrix, dim=1)
    return weight / (F.normalize(v @ matrix.T, dim=1) @ matrix @ v.T)


def _batch_norm(maps: Tensor) -> Tensor:
    return F.batch_norm(maps, None, None, training=True, eps=1e-4)


def _as_released(weights: dict[str, Tensor], levels: list[Tensor], text: Tensor) -> Tensor:
    """Logits (K, h, w) of one image at the finest level's size: the released code's arithmetic, reimplemented.

    `levels` are the features from coarse to fine, (1, C, h, w), `text` (K, channels).
    """

    def grown(maps: Tensor, side: int) -> Tensor:
        return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)

    sides = [level.shape[-1] for level in levels]
    mixed = F.conv2d(grown(levels[0], sides[1]), weights["low_feature_conv.0.weight"])
    for k, name in enumerate(("mid", "high", "highest"), 1):
        side = sides[min(k + 1, 3)]
        own = F.conv2d(grown(levels[k], side), weights[f"{name}_feature_conv.0.weight"])
        block = f"{name}_feature_mix_conv"
        first = F.relu(_batch_norm(torch.cat([grown(mixed, side), own], 1)))
        middle = F.conv2d(first, _normed(weights, f"{block}.conv1"), weights[f"{block}.conv1.bias"], padding=1)
        last = F.relu(_batch_norm(middle))
        mixed = first + F.conv2d(last, _normed(weights, f"{block}.conv2"), weights[f"{block}.conv2.bias"], padding=1)
    tokens = mixed[0].flatten(1).T @ weights["to_k.weight"].T  # tokens of one position: the small U-Net is 16 wide
    queries = text @ weights["to_q.weight"].T

    def attended(name: str, inputs: Tensor, given: Tensor) -> Tensor:
        query, key, value = weights[f"{name}.in_proj_weight"].chunk(3)
        q, k, v = (
            (x @ w.T).reshape(len(x), 8, 64).transpose(0, 1) for x, w in ((inputs, query), (given, key), (given, value))
        )
        answer = (q @ k.transpose(1, 2) / 8).softmax(-1) @ v
        return answer.transpose(0, 1).reshape(len(inputs), 512) @ weights[f"{name}.out_proj.weight"].T

    for k in range(3):
        layer = f"transfromer_decoder.layers.{k}"

        def norm(x: Tensor, n: int, layer: str = layer) -> Tensor:
            return F.layer_norm(x, (512,), weights[f"{layer}.norm{n}.weight"], weights[f"{layer}.norm{n}.bias"])

        inputs = norm(queries, 1)
        queries = queries + attended(f"{layer}.self_attn", inputs, inputs)
        queries = queries + attended(f"{layer}.multihead_attn", norm(queries, 2), tokens)
        inner = F.relu(F.linear(norm(queries, 3), weights[f"{layer}.linear1.weight"], weights[f"{layer}.linear1.bias"]))
        queries = queries + F.linear(inner, weights[f"{layer}.linear2.weight"], weights[f"{layer}.linear2.bias"])
    for k in range(3):
        queries = F.linear(queries, weights[f"mlp.layers.{k}.weight"], weights[f"mlp.layers.{k}.bias"])
        queries = F.relu(queries) if k < 2 else queries
    return torch.einsum("kc,chw->khw", queries, mixed[0])


def test_released_weights_reproduce_the_released_code(tmp_path: Path) -> None:
    weights = released(SMALL_SHAPES)
    torch.save(weights, tmp_path / "grounding_module.pth")
    module = PublishedModule(SMALL)
    load_released(module, tmp_path / "grounding_module.pth")
    sides = {1: 16, 2: 8, 4: 4, 8: 2}
    random = torch.Generator().manual_seed(1)
    features = {
        name: torch.randn(2, channels, sides[level], sides[level], generator=random)
        for name, (channels, level) in SMALL.blocks.items()
    }
    embeddings = torch.randn(2, 2, 12, generator=random)
    with torch.no_grad():
        logits = module.eval()(Captured(features, {}, embeddings), torch.empty(2, 3, 16, 16))
        for k in range(2):
            levels = [features["mid"], features["in.2"], features["in.1"]]
            finest = torch.cat([features["in.0"], features["out.0"]], 1)
            expected = _as_released(weights, [level[k : k + 1] for level in (*levels, finest)], embeddings[k])
            assert torch.allclose(logits[k], expected, atol=1e-4 * float(expected.abs().max()))
            assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop("to_q.weight"), "to_q.weight is missing"),
        (lambda rows: rows.update(other=torch.zeros(1)), "other is unknown"),
        (lambda rows: rows.update({"to_k.weight": torch.zeros(512, 16)}), "to_k.weight is 512x16 and not 512x240"),
        (lambda rows: rows["to_k.weight"].fill_(float("nan")), "to_k.weight contains NaN"),
        (lambda rows: rows.update(epoch=3), "it is not a dictionary of tensors"),
    ],
)
def test_another_checkpoint_than_the_released_one_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    weights = released(SMALL_SHAPES)
    change(weights)
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load_released(PublishedModule(SMALL), tmp_path / "a.pth")


def test_a_truncated_checkpoint_and_a_u_net_of_other_levels_are_refused(tmp_path: Path) -> None:
    torch.save(released(SMALL_SHAPES), tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_released(PublishedModule(SMALL), tmp_path / "a.pth")
    (tmp_path / "text.pth").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be read .it is not a file of tensors.; download it again"):
        load_released(PublishedModule(SMALL), tmp_path / "text.pth")
    with pytest.raises(UserError, match="reads a U-Net of 4 levels, but this one has 2"):
        layout(PublishedModule(Backbone({"in.0": (6, 1), "in.1": (4, 2)}, {}, 12, 16)))


def test_both_halves_are_captured_and_reproduced_from_the_latent(tiny_model: Path) -> None:
    recipe = oracle_recipe(tiny_model)
    requests = [Request(sample.prompt, 7) for sample in Plan(recipe).shard(0).samples[:2]]
    needs = frozenset({FEATURES, CLASS_EMBEDDINGS, LATENT})
    cond_only = PipelineGenerator(recipe, needs=needs).generate(requests)
    generator = PipelineGenerator(recipe, needs=needs | {HALVES})
    both = generator.generate(requests)
    for alone, joined in zip(cond_only, both, strict=True):
        assert (alone.image == joined.image).all()
        for name, block in alone.features.items():
            assert joined.features[name].shape[0] == 2 * len(block)
            assert torch.allclose(joined.features[name][len(block) :], block, atol=1e-5)
            same = torch.allclose(joined.features[name][: len(block)], block, atol=1e-5)
            assert same == (name == "in.0")  # the first convolution does not depend on the prompt
    latents = torch.stack([torch.from_numpy(row.latent).float() for row in both if row.latent is not None])
    again = generator.read(latents, [request.prompt for request in requests])
    for name, blocks in again.features.items():
        assert torch.allclose(blocks, torch.stack([row.features[name] for row in both]), atol=2e-2)


def test_an_imported_checkpoint_works_in_generate(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = UNet2DConditionModel.load_config(model / "unet")
    blocks = ("CrossAttnDownBlock2D",) * 4, ("CrossAttnUpBlock2D",) * 4
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        cross_attention_dim=config["cross_attention_dim"], down_block_types=blocks[0], up_block_types=blocks[1],
    )  # fmt: skip
    unet.save_pretrained(model / "unet")
    inputs = tuple(2 * 8 * count for count in (4, 4, 4, 5))
    torch.save(released(released_shapes(inputs, 240, 32)), tmp_path / "grounding_module.pth")
    arguments = ["import-grounder", tmp_path / "grounding_module.pth", "--model", model, "--out", tmp_path / "grounder"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    _, saved = load_grounder(tmp_path / "grounder")
    assert (saved.module, saved.split) == ("paper-cfg", "1")
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert mixture(scheduler, saved.noise_level).timestep == 1
    assert json.loads((tmp_path / "grounder/config.json").read_text())["data"][0].startswith("released checkpoint")
    generator = {"model": str(model), "steps": 2}
    data = {"n": 2, "classes": "voc", "generator": generator, "masks": {"source": str(tmp_path / "grounder")}}
    from factory.generation.components import load_components

    recipe = pin_recipe(make_recipe(data))
    parts = load_components(recipe)
    prompts = [sample.prompt for sample in Plan(recipe).shard(0).samples]
    generated = parts.generator.generate([Request(prompt, 1) for prompt in prompts])
    assert len(parts.grounder.ground(generated, prompts)) == 2
    with pytest.raises(UserError, match="already holds a grounder"):
        raise invoke(*arguments).exception
