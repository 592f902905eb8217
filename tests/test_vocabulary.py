import pytest

from factory.config.vocabulary import caption, coco, from_names, parse_classes, voc
from factory.errors import UserError


def test_coco_has_its_eighty_official_ids_with_their_gaps() -> None:
    ids = [entry.id for entry in coco().classes]
    assert len(ids) == 80
    assert set(range(1, 91)) - set(ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert coco().by_id(1).name == "person"
    assert coco().by_id(13).name == "stop sign"
    assert coco().by_id(90).name == "toothbrush"


def test_voc_has_its_twenty_classes_in_their_order() -> None:
    assert [(entry.id, entry.name) for entry in voc().classes][8:11] == [(9, "chair"), (10, "cow"), (11, "diningtable")]
    assert voc().by_id(20).name == "tvmonitor"


def test_every_class_of_voc_is_prompted_by_a_name_of_coco() -> None:
    assert all(entry.display in coco().names for entry in voc().classes)
    assert voc().resolve("diningtable").display == "dining table"


@pytest.mark.parametrize("split", ["1", "2", "3"])
@pytest.mark.parametrize(("vocabulary", "unseen"), [(voc(), 5), (coco(), 15)])
def test_a_split_parts_the_classes_into_seen_and_unseen(vocabulary, split, unseen) -> None:
    assert len(vocabulary.unseen(split)) == unseen
    assert sorted(vocabulary.seen(split) + vocabulary.unseen(split)) == sorted(vocabulary.names)


def test_the_splits_of_voc_cover_fifteen_different_classes() -> None:
    assert len({name for split in "123" for name in voc().unseen(split)}) == 15


def test_an_unknown_split_is_told_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no split '4' of voc; its splits are: 1, 2, 3, zs3"):
        voc().unseen("4")


def test_names_resolve_by_alias_and_in_any_case() -> None:
    assert voc().resolve("Couch").name == "sofa"
    assert coco().resolve("aeroplane").id == 5
    assert coco().resolve("traffic_light").name == "traffic light"


def test_an_unknown_class_is_told_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"'zebar'.*did you mean zebra"):
        coco().resolve("zebar")


def test_captions_have_the_right_article() -> None:
    assert caption(["dog"]) == "a photograph of a dog"
    assert caption(["orange", "traffic light"]) == "a photograph of an orange and a traffic light"
    assert caption(["skis", "airplane"]) == "a photograph of skis and an airplane"


def test_classes_come_from_names_with_commas_and_quotes() -> None:
    assert parse_classes('dog, cat,"traffic light"').names == ("dog", "cat", "traffic light")
    assert [entry.id for entry in parse_classes("dog,cat").classes] == [18, 17]


def test_names_that_coco_does_not_know_count_from_one() -> None:
    assert [entry.id for entry in parse_classes("dog,snorkel").classes] == [1, 2]


def test_classes_come_from_a_file_with_a_name_per_line(tmp_path) -> None:
    (tmp_path / "names.txt").write_text("# mine\ndog\n\ntraffic light\n")
    assert parse_classes(str(tmp_path / "names.txt")).names == ("dog", "traffic light")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no class name"),
        ("dog,dog", "'dog' comes twice"),
        ("sofa,couch", "'couch' comes twice"),
        ("missing.txt", "no class file missing.txt"),
    ],
)
def test_bad_class_lists_are_told_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_classes(text)


def test_a_binary_class_file_is_told_in_a_sentence(tmp_path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    with pytest.raises(UserError, match="cannot be read"):
        parse_classes(str(tmp_path / "names.txt"))


def test_from_names_gives_official_names_for_aliases() -> None:
    assert from_names(["sofa"]).names == ("couch",)
