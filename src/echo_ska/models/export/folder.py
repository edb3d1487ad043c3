"""Writing the folder."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from echo_ska.models.export.source import modeling_source
from echo_ska.models.modeling_echo import EchoForCausalLM

AUTO_MAP = {
    "AutoConfig": "modeling_echo.EchoConfig",
    "AutoModel": "modeling_echo.EchoModel",
    "AutoModelForCausalLM": "modeling_echo.EchoForCausalLM",
}


def export_model(model: EchoForCausalLM, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write weights, configuration, code and tokenizer, so that transformers can load them without this package.

    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` then loads the model by the code in the
    folder, modeling_echo.py; on a CPU and a GPU it computes the same as the package's model, by PyTorch alone.

    Args:
        model: what to write; it is not changed.
        folder: made if it is not there.
        tokenizer: to be kept beside it.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modeling_echo.py").write_text(modeling_source(model.config.layer_types), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "auto_map": AUTO_MAP}, indent=2) + "\n", encoding="utf-8")
