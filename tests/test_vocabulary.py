"""Class lists: COCO, VOC, their splits, and names that users give."""

import pytest

from factory.config.class_option import parse_classes
from factory.config.splits import seen_classes
from factory.config.vocabulary import caption, coco, from_names, voc
from factory.errors import UserError


def test_coco_has_eighty_official_ids_with_gaps() -> None:
    ids = [entry.id for entry in coco().classes]
    assert len(ids) == 80
    assert set(range(1, 91)) - set(ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    names = {entry.id: entry.name for entry in coco().classes}
    assert (names[1], names[13], names[90]) == ("person", "stop sign", "toothbrush")


def test_voc_has_twenty_classes_in_order() -> None:
    assert [(entry.id, entry.name) for entry in voc().classes][8:11] == [(9, "chair"), (10, "cow"), (11, "diningtable")]
    assert (voc().classes[-1].id, voc().classes[-1].name) == (20, "tvmonitor")


def test_voc_classes_are_prompted_by_coco_names() -> None:
    assert all(entry.display in coco().names for entry in voc().classes)
    assert voc().resolve("diningtable").display == "dining table"


@pytest.mark.parametrize("split", ["1", "2", "3"])
@pytest.mark.parametrize(("vocabulary", "unseen"), [(voc(), 5), (coco(), 15)])
def test_split_partitions_the_classes(vocabulary, split, unseen) -> None:
    assert len(vocabulary.unseen(split)) == unseen
    assert sorted(seen_classes(vocabulary, split) + vocabulary.unseen(split)) == sorted(vocabulary.names)


def test_voc_splits_cover_fifteen_classes() -> None:
    assert len({name for split in "123" for name in voc().unseen(split)}) == 15


def test_unknown_split_error_lists_available_splits() -> None:
    with pytest.raises(UserError, match=r"no split '4' for voc; give 1, 2, 3, zs3, or a file"):
        voc().unseen("4")


def test_names_resolve_by_alias_and_case() -> None:
    assert voc().resolve("Couch").name == "sofa"
    assert coco().resolve("aeroplane").id == 5
    assert coco().resolve("traffic_light").name == "traffic light"


def test_unknown_class_error_suggests_names() -> None:
    with pytest.raises(UserError, match=r"'zebar'.*did you mean zebra"):
        coco().resolve("zebar")


def test_captions_use_the_right_article() -> None:
    assert caption(["dog"]) == "a photograph of a dog"
    assert caption(["orange", "traffic light"]) == "a photograph of an orange and a traffic light"
    assert caption(["skis", "airplane"]) == "a photograph of skis and an airplane"


def test_classes_from_comma_separated_names() -> None:
    assert parse_classes('dog, cat,"traffic light"').names == ("dog", "cat", "traffic light")
    assert [entry.id for entry in parse_classes("dog,cat").classes] == [18, 17]


def test_custom_names_get_ids_from_one() -> None:
    assert [entry.id for entry in parse_classes("dog,snorkel").classes] == [1, 2]


@pytest.mark.parametrize("text", ["COCO", "Voc", "coco,axolotl"])
def test_the_name_of_a_vocabulary_is_not_a_class(text: str) -> None:
    """With a published model, every prompt would ask for "a photograph of a COCO"."""
    with pytest.raises(UserError, match=r"; give (coco|voc) alone for the classes of (COCO|VOC), or list all names"):
        parse_classes(text)


def test_classes_from_a_file(tmp_path) -> None:
    (tmp_path / "names.txt").write_text("# mine\ndog\n\ntraffic light\n")
    assert parse_classes(str(tmp_path / "names.txt")).names == ("dog", "traffic light")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class name"),
        ("dog,dog", "'dog' is repeated"),
        ("sofa,couch", "'couch' is repeated"),
        ("missing.txt", "no class file missing.txt"),
    ],
)
def test_invalid_class_lists_raise_clear_errors(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_classes(text)


def test_binary_class_file_raises_a_clear_error(tmp_path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    with pytest.raises(UserError, match="cannot be read"):
        parse_classes(str(tmp_path / "names.txt"))


def test_from_names_maps_aliases_to_official_names() -> None:
    assert from_names(["sofa"]).names == ("couch",)


def test_unlike_name_is_answered_with_the_first_classes() -> None:
    with pytest.raises(UserError, match="it has aeroplane, bicycle, bird, boat, bottle and others"):
        voc().resolve("xyzzyx")
    with pytest.raises(UserError, match="it has dog, cat"):
        from_names(["dog", "cat"]).resolve("xyzzyx")
