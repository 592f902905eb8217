"""`factory prompts`: lines of a language model are checked, counted, repeatable and resumable."""

import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.cli.options import assemble
from factory.config.prompts import Prompt, read_prompts
from factory.config.splits import seen_classes
from factory.config.vocabulary import coco, from_names, voc
from factory.errors import UserError
from factory.prompts.file import PromptsFile
from factory.prompts.interface import Instruction, Sampling
from factory.prompts.local_model import LocalModel
from tests.support import in_process
from tests.support.chat_server import chat_server, tiny_language_model

SAMPLING = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model(tmp_path_factory.mktemp("lm") / "tiny")


def invoke(*arguments: object) -> Any:
    return in_process.invoke("prompts", *arguments)


def summary(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code in (0, 4), result.output + repr(result.exception)
    return dict(json.loads(result.stdout))


def options(lm: object, out: Path, **changes: object) -> list[object]:
    given = {"classes": "dog,cat", "n": 8, "lm": lm, "batch": 4, "attempts": 40, "max-tokens": 8, "out": out}
    return [part for name, value in (given | changes).items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def written(lm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file of eight prompts in two batches, and the summary of the command."""
    path = tmp_path_factory.mktemp("written") / "p.jsonl"
    return path, summary(*options(lm, path))


def test_a_local_model_writes_a_file_that_generate_reads(written: tuple[Path, dict[str, Any]]) -> None:
    path, data = written
    assert (data["prompts"], data["exhausted"], data["exit_code"]) == (8, 0, 0)
    assert data["rejected"]["class_missing"] > 0 < data["rejected"]["other_class"]
    assert data["lines"] == 8 + sum(data["rejected"].values())
    assert data["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    prompts = read_prompts(path, from_names(["dog", "cat"]))
    assert sorted(Counter(prompt.classes for prompt in prompts).items()) == [(("cat",), 4), (("dog",), 4)]
    assert len({prompt.text for prompt in prompts}) == 8
    recipe = assemble(None, None, {"classes": "dog,cat", "n": 5, "prompts": path})
    assert recipe.user_prompts() == prompts
    assert recipe.prompts_digest == data["digest"]
    assert recipe.fingerprint() == recipe.model_copy(update={"prompts_digest": None}).fingerprint()


def test_a_complete_file_is_kept_and_another_command_does_not_replace_it(
    lm: Path, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, data = written
    before = path.stat().st_mtime_ns
    assert summary(*options(lm, path)) == data
    result = invoke(*options(lm, path, n=9))
    assert result.exit_code == 1
    assert "has other contents; give the same command" in str(result.exception)
    assert path.stat().st_mtime_ns == before
    assert summary(*options(lm, tmp_path / "p", seed=1))["digest"] != data["digest"]


@pytest.mark.parametrize("rest", ["", '{"text": "a dog", "cla', '{"text": "a dog", "classes": {"dog": "dog"}}\n'])
def test_an_interrupted_file_is_resumed_to_the_same_bytes(
    lm: Path, written: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    answer = LocalModel.answer

    def interrupted(self: LocalModel, instructions: Sequence[Instruction], seed: int) -> list[str]:
        if (tmp_path / "part.partial").exists():
            raise KeyboardInterrupt
        return answer(self, instructions, seed)

    with monkeypatch.context() as patch:
        patch.setattr(LocalModel, "answer", interrupted)
        assert invoke(*options(lm, tmp_path / "part")).exit_code == 130
    assert not (tmp_path / "part").exists()
    with (tmp_path / "part.partial").open("a") as stream:
        stream.write(rest)
    assert summary(*options(lm, tmp_path / "part")) == written[1] | {"prompts_file": str(tmp_path / "part")}
    assert (tmp_path / "part").read_bytes() == written[0].read_bytes()


def test_finished_batches_survive_a_full_disk_when_they_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PromptsFile(tmp_path / "p", {})
    file.open()
    file.append([Prompt("a dog", ("dog",), ("dog",))], {}, 0)
    before = (tmp_path / "p.partial").read_bytes()

    def full(path: Path, *arguments: object, **options: object) -> int:
        path.open("wb").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, full)
    with pytest.raises(OSError, match="No space left"):
        PromptsFile(tmp_path / "p", {}).open()
    assert (tmp_path / "p.partial").read_bytes() == before


@pytest.mark.parametrize("length", [0, 20, 100])
def test_a_file_whose_start_was_interrupted_is_resumed(length: int, tmp_path: Path) -> None:
    """The process was killed, or the disk was full. The same command was rejected because of "other options"."""
    prompt, settings = Prompt("a dog", ("dog",), ("dog",)), {"classes": ["Äpfel"]}
    for name in ("whole", "p"):
        if name == "p":
            (tmp_path / "p.partial").write_bytes((tmp_path / "whole").read_bytes()[:length])
        file = PromptsFile(tmp_path / name, settings)
        assert not file.open()
        file.append([prompt], {}, 0)
        file.finish()
    assert (tmp_path / "p").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("name", ["p", "p.partial"])
@pytest.mark.parametrize(
    "line", ['{"text": "a dog}\n', '{"classes": {}}\n', "# batch: {\n", "# batch: []\n", '# batch: {"rejected": 1}\n']
)
def test_a_file_that_was_edited_is_reported(line: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f'# settings: {{"seed": 3}}\n{line}')
    with pytest.raises(UserError, match=rf"line 2 of .*/{name} was changed .*; restore it, delete the file"):
        PromptsFile(tmp_path / "p", {"seed": 3}).open()


def test_an_empty_language_model_is_not_the_current_folder(tmp_path: Path) -> None:
    result = invoke(*options("", tmp_path / "p"))
    assert "--lm is empty; give the folder or hub id" in str(result.exception)


def test_an_unfinished_file_of_other_options_is_rejected(lm: Path, tmp_path: Path) -> None:
    (tmp_path / "p.partial").write_text('# settings: {"seed": 3}\n')
    result = invoke(*options(lm, tmp_path / "p"))
    assert "was started with other options" in str(result.exception)


def test_prompts_that_are_never_accepted_are_left_out_and_reported(lm: Path, tmp_path: Path) -> None:
    """The tiny model has no word for a zebra."""
    data = summary(*options(lm, tmp_path / "p", classes="dog,zebra", n=4, attempts=20))
    assert (data["prompts"], data["exhausted"], data["exit_code"]) == (2, 2, 4)
    assert {prompt.classes for prompt in read_prompts(tmp_path / "p", coco())} == {("dog",)}


def test_a_command_that_cannot_start_leaves_nothing_behind(
    lm: Path, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The corrected command would otherwise be rejected because of its other options."""
    (tmp_path / "empty").mkdir()
    result = invoke(*options(tmp_path / "empty", tmp_path / "p"))
    assert "the language model" in str(result.exception)
    assert not list(tmp_path.glob("p*"))
    assert summary(*options(lm, tmp_path / "p"))["digest"] == written[1]["digest"]


def test_two_processes_that_start_the_same_file_are_noticed(tmp_path: Path) -> None:
    first, second = PromptsFile(tmp_path / "p", {}), PromptsFile(tmp_path / "p", {})
    assert not first.open()
    assert not second.open()
    first.append([], {}, 1)
    with pytest.raises(UserError, match=r"another process writes .*p\.partial; stop one of them"):
        second.append([], {}, 1)


def test_without_an_accepted_prompt_the_command_fails(lm: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the complete file gives the same result
        result = invoke(*options(lm, tmp_path / "p", classes="zebra", n=2, attempts=1))
        assert result.exit_code == 3
        assert "No prompt was accepted; docs/prompts.md explains the reasons. Delete the file" in result.stdout


def test_torch_random_state_is_left_alone_and_batches_are_padded(lm: Path) -> None:
    model = LocalModel(str(lm), "cpu", "float32", SAMPLING)
    model.load()
    short, long = Instruction("", "a dog"), Instruction("", "a dog on grass in the rain at night under a grey sky")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = model.answer([short, long], 7)
    assert torch.equal(torch.rand(3), expected)
    assert first == model.answer([short, long], 7)
    assert first != model.answer([short, long], 8)
    assert not any("dog on grass in the rain at night" in text for text in first)


def test_a_chat_template_is_used(tmp_path: Path) -> None:
    model = LocalModel(str(tiny_language_model(tmp_path / "chat", chat=True)), "cpu", "float32", SAMPLING)
    model.load()
    assert model._text(Instruction("Show a bus.", "bus")) == "Show a bus. dog"
    plain = model.answer([Instruction("Show a bus.", "bus")] * 2, 1)
    assert len(plain) == 2
    assert not any(answer.startswith("<think>") for answer in plain)
    model._tokenizer.chat_template += "<think>\n"  # as of models that always reason
    assert all(answer.startswith("<think>") for answer in model.answer([Instruction("Show a bus.", "bus")], 1))


def test_unusable_models_are_rejected(lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="there is no folder no/where"):
        LocalModel("no/where", "cpu", "float32", SAMPLING)
    with pytest.raises(UserError, match=r"no language model \./none; give the folder or hub id .* causal language"):
        LocalModel("./none", "cpu", "float32", SAMPLING)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"the language model .*empty cannot be loaded"):
        LocalModel(str(tmp_path / "empty"), "cpu", "float32", SAMPLING).load()
    model = LocalModel(str(lm), "cpu", "float32", Sampling(max_tokens=600))
    model.load()
    with pytest.raises(UserError, match=r"reads 512 tokens, but the instruction has \d+ and --max-tokens is 600"):
        model.answer([Instruction("", "a dog")], 0)


def test_a_server_writes_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hunter22")
    with chat_server() as (url, requests):
        data = summary(*options(url, tmp_path / "p", classes="voc", n=30, objects="1:0.5,2:0.5"))
    assert (data["prompts"], data["exhausted"]) == (30, 0)
    assert set(data["rejected"]) == {"class_missing", "other_class"}
    prompts = read_prompts(tmp_path / "p", voc())
    assert sorted(Counter(len(prompt.classes) for prompt in prompts).items()) == [(1, 15), (2, 15)]
    assert prompts[0].text.endswith(".")
    assert "hunter22" not in (tmp_path / "p").read_text()
    assert {headers["Authorization"] for _, headers, _ in requests} == {"Bearer hunter22"}
    assert {path for path, _, _ in requests} == {"/v1/models", "/v1/chat/completions"}
    assert {body["model"] for _, _, body in requests if body} == {"small"}
    assert len({body["seed"] for _, _, body in requests if body}) > 30


def test_split_names_seen_classes_only(tmp_path: Path) -> None:
    with chat_server() as (url, _):
        summary(*options(url, tmp_path / "p", classes="voc", n=30, split="1"))
    named = {name for prompt in read_prompts(tmp_path / "p", voc()) for name in prompt.classes}
    assert named == set(seen_classes(voc(), "1"))


def test_prompts_fit_the_text_encoder(tiny_model: Path, lm: Path, tmp_path: Path) -> None:
    """The tiny text-to-image model knows captions only; one that knows the grammar reads 77 tokens."""
    result = invoke(*options(lm, tmp_path / "p", model=tiny_model))
    assert "was trained on a few captions only" in str(result.exception)
    from factory.config.rich_prompts import vocabulary_words
    from factory.prompts.text_encoder import open_text_encoder
    from tests.support.tiny_pipeline import tiny_pipeline

    model = tiny_pipeline(tmp_path / "model", words=vocabulary_words())
    fits, identity = open_text_encoder(str(model))
    assert fits("a photograph of a dog")
    assert not fits(f"a photograph of a dog {'in the rain ' * 25}")
    assert identity["model"] == str(model)


def test_prompts_file_that_cannot_be_written_or_is_shared_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = ("prompts", "--classes", "dog", "--n", 4, "--lm", "http://127.0.0.1:9/v1", "--out")
    message = in_process.error(*command, tmp_path / "file/p.jsonl")  # and not that the server does not respond
    assert message.startswith(f"--out: the folder {tmp_path}/file cannot be written: {tmp_path}/file is not a folder")
    file = PromptsFile(tmp_path / "p.jsonl", {})
    assert not file.open()
    file.append([], {}, 0)
    (other,) = tmp_path.glob("*p.jsonl*")
    other.write_text(other.read_text() + "of another process\n")
    with pytest.raises(UserError, match=r"another process writes .*; stop one of them and rerun the command"):
        file.append([], {}, 0)


def test_language_model_without_all_its_weights_or_a_last_token_is_rejected(lm: Path, tmp_path: Path) -> None:
    weights = shutil.copytree(lm, tmp_path / "weights")
    tensors = load_file(weights / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, weights / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensor is missing, such as model\.norm\.weight; copy the model again"):
        LocalModel(str(weights), "cpu", "float32", SAMPLING).load()
    endless = shutil.copytree(lm, tmp_path / "endless")
    config = json.loads((endless / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (endless / "tokenizer_config.json").write_text(json.dumps(config))
    (endless / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="has neither a padding nor an end token; give another --lm"):
        LocalModel(str(endless), "cpu", "float32", SAMPLING).load()
