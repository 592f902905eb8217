"""The modules and their losses."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from factory.generator.interface import FEATURES, Captured
from factory.grounder.loss import binary_loss, competing_loss
from factory.grounder.modules.backbone import Backbone
from factory.grounder.modules.guided import GuidedModule, GuidedOptions
from factory.grounder.modules.paper import PaperModule
from factory.grounder.modules.published import PublishedModule
from factory.grounder.training import GrounderOptions
from tests.support.oracle_datasets import read_blocks


def test_the_papers_module_has_the_papers_size() -> None:
    """Both guidance halves concatenated: 15360, 14080, 8320 and 5120 channels; 18.8 M parameters."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        blocks = read_blocks(unet, frozenset({FEATURES}), 1)
    cond = Backbone.of(Captured(blocks, {}, torch.empty(1, 1, 768)))
    assert len(cond.blocks) == 25
    both = replace(cond, blocks={name: (2 * channels, level) for name, (channels, level) in cond.blocks.items()})
    assert {level: both.channels(level) for level in both.levels()} == {8: 15360, 4: 14080, 2: 8320, 1: 5120}
    with torch.device("meta"):
        module = PaperModule(both)
    assert [block.body[0].num_features for block in module.mix] == [48, 112, 240]
    assert module.tokens.in_features == 3840
    assert round(sum(weight.numel() for weight in module.parameters()) / 1e6, 1) == 18.8


@pytest.mark.parametrize("kind", [PaperModule, PublishedModule, GuidedModule])
def test_an_image_has_the_same_masks_alone_and_in_a_batch(captured: Any, kind: Any) -> None:
    read, pictures = captured
    module = kind(Backbone.of(read)).eval()
    with torch.no_grad():
        together = module(read, pictures)
        assert together.shape == (3, 2, 64, 64)
        for k, classes in enumerate((2, 2, 1)):
            part = Captured(
                {name: block[k : k + 1] for name, block in read.features.items()},
                {name: maps[k : k + 1, :, :classes] for name, maps in read.cross_attention.items()},
                read.class_embeddings[k : k + 1, :classes],
            )
            alone = module(part, pictures[k : k + 1])
            assert torch.allclose(alone[0], together[k, :classes], atol=1e-4)


def test_missing_classes_and_ignored_pixels_have_no_gradient() -> None:
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[:, :4], labels[:, 4:6] = 1, 255
    found = torch.tensor([[True, False], [True, True]])
    for loss in (competing_loss, binary_loss):
        (gradient,) = torch.autograd.grad(loss(logits, labels, found), logits)
        assert (gradient[0, 1] == 0).all()
        assert (gradient[:, :, 4:6] == 0).all()
        assert (gradient[1, 1, 6:] != 0).all()


def test_a_backbone_is_written_and_read_as_in_existing_grounder_folders() -> None:
    """`class_channels` is stored under the key `words`, as in every config.json written so far."""
    stored = {"blocks": {"in.0": [6, 1], "in.1": [4, 2]}, "layers": {"down.attn2": 8}, "words": 12, "side": 16}
    backbone = Backbone.from_dict(stored)
    assert backbone == Backbone({"in.0": (6, 1), "in.1": (4, 2)}, {"down.attn2": 8}, class_channels=12, side=16)
    assert backbone.to_dict() == stored
    assert list(backbone.to_dict()) == list(stored)


def test_options_are_stored_under_the_names_of_existing_grounder_folders() -> None:
    stored = {
        "width": 80,
        "map_width": 8,
        "head_width": 32,
        "learnt_maps": False,
        "others": False,
        "picture": False,
        "features": True,
    }
    options = GuidedOptions.from_dict(stored)
    assert options == GuidedOptions(80, 8, 32, attention_mixtures=False, other_classes=False, image=False)
    assert options.to_dict() == stored
    assert list(options.to_dict()) == list(stored)


@pytest.mark.parametrize("name", ["attention_mixtures", "other_classes", "image", "features"])
def test_every_input_of_the_head_can_be_left_out(captured: Any, name: str) -> None:
    """benchmarks/ablations.py does so. All remaining weights are used."""
    read, pictures = captured
    module = GuidedModule(Backbone.of(read), replace(GuidedOptions(), **{name: False}))
    logits = module(read, pictures)
    assert logits.shape == (3, 2, 64, 64)
    logits.sum().backward()
    assert [weight for weight, value in module.named_parameters() if value.grad is None] == []
    whole = GuidedModule(Backbone.of(read))
    assert sum(value.numel() for value in module.parameters()) < sum(value.numel() for value in whole.parameters())


def test_checkpoints_of_earlier_versions_are_resumed() -> None:
    """A checkpoint records its options as a text, which must not change with the names in the code."""
    assert GrounderOptions().identity == (
        "GrounderOptions(module='guided', guided=GuidedOptions(width=96, map_width=16, head_width=64, "
        "learnt_maps=True, others=True, picture=True, features=True), dice=1.0, competing=True)"
    )


def test_the_embedded_grounders_config_is_read_and_written_back_unchanged() -> None:
    from factory.files.embedded_models import grounder_folder

    stored = json.loads((grounder_folder() / "config.json").read_text())
    assert Backbone.from_dict(stored["backbone"]).to_dict() == stored["backbone"]
    assert GuidedOptions.from_dict(stored["options"]).to_dict() == stored["options"]
