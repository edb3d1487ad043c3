"""The trained checkpoint that lies in the repository: whole, small, and as good as its record says."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

import echo_ska.models  # noqa: F401 (registers the class)
from echo_ska.evaluation.sampling import sample_text
from echo_ska.memory import ContextState
from echo_ska.training import bits_per_byte, book_path, load_text

FOLDER = Path(__file__).parents[1] / "checkpoints" / "echo-books"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def test_it_is_below_five_megabytes_and_holds_nothing_pickled():
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".jinja", ""}
    assert (FOLDER / "SHA256SUMS").exists()


def test_its_tokenizer_loads_before_the_package_is_imported():
    PreTrainedConfig.from_json_file(FOLDER / "config.json")  # what AutoTokenizer does first, with no Echo registered


def test_it_reads_the_shipped_novel_as_well_as_its_record_says(model):
    record = json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))
    checked = record["checked"]
    (novel,) = load_text([book_path("unseen")])
    score = bits_per_byte(model, novel.tokens, max_bytes=checked["bytes"])
    assert score.bits_per_byte == pytest.approx(checked["bits_per_byte"], abs=2e-3)
    assert record["figures"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for figure in (checked["bits_per_byte"], record["figures"]["bits_per_byte"]):
        assert f"{figure:.3f}" in card
    assert record["commit"][:8] in card


def test_it_writes_with_its_own_tokenizer_and_goes_on_from_a_context(model):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer("It was the best of ", return_tensors="pt").input_ids
    written = tokenizer.decode(model.generate(ids, max_new_tokens=20, do_sample=False)[0])
    assert written.startswith("It was the best of ")
    context = ContextState.read(model, ids)
    continued = context.generate(model, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(continued[0]) == written.removeprefix("It was the best of ")
    assert len(sample_text(model, "It was ", 12, temperature=0.8, top_k=None, seed=0)) > 0
