"""Rendered scenes: sprites, exact masks, and VOC folders of them."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from factory.config.vocabulary import coco, from_names, voc
from factory.dataset.masks import palette
from factory.errors import UserError
from factory.stickers import training_scenes
from factory.stickers.atlas import DRAWN_STYLES, HELD_OUT_STYLE, STYLES, TRAIN_STYLES, load_atlas, sprites_of
from factory.stickers.backgrounds import KINDS, kind_shares
from factory.stickers.scenes import random_class_names, render_scene
from factory.stickers.voc_folder import embedded_name, write_voc_folder


@pytest.mark.parametrize("name", coco().names)
def test_every_class_has_sprites_in_two_training_styles_and_the_held_out_one(name: str) -> None:
    assert len(sprites_of(name, TRAIN_STYLES)) >= 2
    assert len(sprites_of(name, (HELD_OUT_STYLE,))) == 1


def test_the_held_out_style_is_not_a_training_style() -> None:
    assert HELD_OUT_STYLE not in TRAIN_STYLES
    assert {style for _, style in load_atlas()} == set(STYLES)


def test_all_sprites_differ() -> None:
    drawings = [sprite.drawing.tobytes() for sprites in load_atlas().values() for sprite in sprites]
    assert len(set(drawings)) == len(drawings)


def test_variants_are_further_drawings_in_training_styles() -> None:
    default, all_drawings = sprites_of("bird"), sprites_of("bird", variants=True)
    assert len(all_drawings) > 2 * len(default)
    assert set(map(id, default)) < set(map(id, all_drawings))
    assert sprites_of("bird", (HELD_OUT_STYLE,), variants=True) == sprites_of("bird", (HELD_OUT_STYLE,))


@pytest.mark.parametrize("name", coco().names)
def test_a_style_without_a_default_drawing_of_a_class_shows_none_of_its_variants(name: str) -> None:
    assert not any(sprite.is_variant for sprite in sprites_of(name))
    assert all(len(sprites_of(name, (style,))) <= 1 for style in STYLES)


def test_a_scene_shows_variants_only_on_request() -> None:
    shown = {render_scene(k, ("bird",), 32).image.tobytes() for k in range(20)}
    assert shown == {render_scene(k, ("bird",), 32, variants=False).image.tobytes() for k in range(20)}
    assert shown != {render_scene(k, ("bird",), 32, variants=True).image.tobytes() for k in range(20)}


def test_pixels_depend_only_on_the_seed() -> None:
    first, again, other = (render_scene(seed, ("dog", "bus")) for seed in (5, 5, 6))
    assert (first.image == again.image).all()
    assert (first.instance_map == again.instance_map).all()
    assert (first.image != other.image).any()


@pytest.mark.parametrize("size", [64, 65, 128, 256])
def test_masks_are_disjoint_visible_and_have_the_scene_size(size: int) -> None:
    for seed in range(20):
        scene = render_scene(seed, ("dog", "traffic light", "pizza"), size)
        masks = scene.masks()
        assert scene.image.shape == (size, size, 3)
        assert masks.shape == (3, size, size)
        assert masks.sum(0).max() == 1
        assert (masks.sum((1, 2)) >= 12).all()


def test_a_mask_covers_exactly_the_pixels_of_its_object() -> None:
    """The mask equals the sprite's coverage, and pixels far from the object are background or shadow."""
    from factory.stickers import scenes

    scene = render_scene(3, ("stop sign",))
    rng = scenes._generator(3)
    sprites = [scenes._choose(rng, "stop sign", TRAIN_STYLES, variants=False)]
    background = scenes.random_background(rng, 128)
    layers, _ = scenes._place(rng, sprites, 128, scenes.MIN_VISIBLE)
    alpha = layers[0].alpha
    assert (scene.masks()[0] == (alpha >= 0.5)).all()
    far = np.asarray(Image.fromarray((alpha > 0).astype(np.uint8) * 255).resize((16, 16), Image.Resampling.BOX)) == 0
    untouched = np.repeat(np.repeat(far, 8, 0), 8, 1)
    lighter = scene.image[untouched].astype(int) - background[untouched]
    assert lighter.max() <= 1, "only the shadow, which darkens, may extend beyond the object"


def test_the_background_does_not_depend_on_the_number_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of a scene are drawn with a generator of the same seed; with one style, nothing is drawn between."""
    from factory.stickers import scenes

    draws: list[float] = []

    def background(rng: np.random.Generator, size: int, kind_shares: tuple[float, ...]) -> np.ndarray:
        draws.append(rng.random())
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(scenes, "random_background", background)
    counts = []
    for k in range(300):
        names = random_class_names(np.random.default_rng((7, k)), ("dog", "bus"), 2)
        counts.append(len(names))
        render_scene((7, k), names, 32, DRAWN_STYLES)
    single, pairs = (np.mean([draw for draw, n in zip(draws, counts, strict=True) if n == count]) for count in (1, 2))
    assert abs(single - pairs) < 0.15


@pytest.mark.parametrize(("min_visible", "hidden"), [(1.0, False), (0.6, True)])
def test_objects_hide_each_other_as_far_as_allowed(
    min_visible: float, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.stickers import scenes

    alphas: list[np.ndarray] = []
    place = scenes._place

    def recorded(*arguments: Any) -> Any:
        layers, instance_map = place(*arguments)
        alphas.append(np.stack([layer.alpha >= 0.5 for layer in layers]))
        return layers, instance_map

    monkeypatch.setattr(scenes, "_place", recorded)
    for seed in range(20):
        render_scene(seed, ("dog", "pizza"), 64, min_visible=min_visible)
    assert any((alpha.sum(0) > 1).any() for alpha in alphas) == hidden


def test_a_scene_must_have_one_to_three_objects() -> None:
    with pytest.raises(ValueError, match="1 to 3 objects, got 4"):
        render_scene(0, ("dog",) * 4)
    counts = {len(random_class_names(np.random.default_rng(k), coco().names)) for k in range(100)}
    assert counts == {1, 2, 3}


def test_the_voc_folder_has_the_files_that_voc_readers_expect(tmp_path) -> None:
    write_voc_folder(tmp_path / "voc", voc(), 10, TRAIN_STYLES)
    sets = tmp_path / "voc" / "ImageSets" / "Segmentation"
    keys = (sets / "trainval.txt").read_text().split()
    assert len(keys) == 10
    assert sorted((sets / "train.txt").read_text().split() + (sets / "val.txt").read_text().split()) == keys
    for key in keys:
        with Image.open(tmp_path / "voc" / "JPEGImages" / f"{key}.jpg") as image:
            assert image.size == (128, 128)
        with Image.open(tmp_path / "voc" / "SegmentationClass" / f"{key}.png") as classes:
            assert classes.mode == "P"
            assert classes.getpalette()[:768] == list(palette())
            class_values = np.asarray(classes)
        with Image.open(tmp_path / "voc" / "SegmentationObject" / f"{key}.png") as objects:
            object_values = np.asarray(objects)
        assert class_values.shape == object_values.shape == (128, 128)
        assert set(np.unique(class_values)) <= {*range(21), 255}
        assert ((class_values == 255) == (object_values == 255)).all()
        assert ((class_values == 0) == (object_values == 0)).all()
        for number in np.unique(object_values[(object_values > 0) & (object_values < 255)]):
            assert len(np.unique(class_values[object_values == number])) == 1


def test_an_interrupted_rendering_resumes_to_the_same_bytes(tmp_path) -> None:
    write_voc_folder(tmp_path / "whole", voc(), 6, TRAIN_STYLES)

    class InterruptedRunError(Exception):
        pass

    def stop(done: int) -> None:
        if done == 3:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        write_voc_folder(tmp_path / "cut", voc(), 6, TRAIN_STYLES, progress=stop)
    write_voc_folder(tmp_path / "cut", voc(), 6, TRAIN_STYLES)
    contents = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert contents[0] == contents[1]


def test_rendering_into_a_foreign_folder_is_refused_and_changes_nothing(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="choose a new or empty"):
        write_voc_folder(tmp_path, voc(), 2, TRAIN_STYLES)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    write_voc_folder(tmp_path / "a", voc(), 2, TRAIN_STYLES)
    with pytest.raises(UserError, match="another seed"):
        write_voc_folder(tmp_path / "a", voc(), 2, TRAIN_STYLES, seed=1)


def test_a_folder_has_the_requested_backgrounds_only(tmp_path) -> None:
    def pixels(name: str) -> bytes:
        return (tmp_path / name / "JPEGImages" / "000000.jpg").read_bytes()

    for name in ("all", *KINDS):
        write_voc_folder(tmp_path / name, voc(), 1, TRAIN_STYLES, kind_shares=kind_shares(name))
    assert len({pixels(name) for name in KINDS}) == len(KINDS)
    assert pixels("all") in {pixels(name) for name in KINDS}
    for name, other in (("stripes", "all"), ("all", "model")):
        with pytest.raises(UserError, match="another background"):
            write_voc_folder(tmp_path / name, voc(), 1, TRAIN_STYLES, kind_shares=kind_shares(other))


def test_an_unknown_class_raises_an_error_with_the_known_classes() -> None:
    assert embedded_name(voc(), "sofa") == "couch"
    vocabulary = from_names(["dog", "unicorn"])
    with pytest.raises(UserError, match=r"do not know 'unicorn'.*80 COCO classes.*--model"):
        embedded_name(vocabulary, "unicorn")


def test_training_scenes_show_thin_classes_and_pairs_more_often() -> None:
    scenes = [training_scenes.scene_classes(index) for index in range(4000)]
    names = [name for scene in scenes for name in scene]
    assert set(names) == set(coco().names)
    assert len([scene for scene in scenes if len(scene) == 2]) / 4000 == pytest.approx(0.65, abs=0.02)
    assert all(len(set(scene)) == len(scene) for scene in scenes)
    emphasis = [training_scenes._EMPHASIS.get(name, 1) for name in coco().names]
    correlation = np.corrcoef(emphasis, [names.count(name) for name in coco().names])[0, 1]
    assert correlation > 0.9
