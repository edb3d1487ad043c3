"""`echo-ska export`: a model folder with its own code."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from echo_ska.commands.keep import whole_folder
from echo_ska.commands.load import load_model, load_tokenizer
from echo_ska.commands.rare_lines import say
from echo_ska.models.export import export_model


def export(model_folder: Path, folder: Path, console: Console) -> None:
    """Write the model in `model_folder`, with its tokenizer if it has one, to the new `folder`.

    Raises:
        ValueError: there is no such model, or its tokenizer does not fit it; nothing was written.
        OSError: it could not be written; nothing is left of it.
    """
    model = load_model(model_folder, "cpu")
    has_tokenizer = (model_folder / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(model_folder, model.config.vocab_size) if has_tokenizer else None
    with whole_folder(folder, "model") as partial:
        export_model(model, partial, tokenizer)
    say(
        console,
        f"Kept in {folder}, with its code in modeling_echo.py{'' if has_tokenizer else ' and without a tokenizer'}. "
        f'AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True) loads it.',
    )
