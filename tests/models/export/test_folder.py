"""An exported folder is loaded by a process that cannot import this package, and computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer
from echo_ska.models.export import export_model

ASK = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "echo_ska":
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
folder, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.endswith("modeling_echo")
assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)) is model.config_class
assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "EchoModel"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer("The cat sat on the mat. " * 8, return_tensors="pt")["input_ids"]
logits = model(ids).logits.detach()
tokens = model.generate(ids, max_new_tokens=12, do_sample=False)
model.train()
loss = model(ids, labels=ids).loss
loss.backward()
gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
save_file({"logits": logits, "tokens": tokens, "gradient": gradient}, output)
assert not any(name.split(".")[0] == "echo_ska" for name in sys.modules)
"""
KINDS = {
    "mamba2": {"ska_layers": []},
    "ska": {"ska_layers": [1, 2]},
    "full_attention": {"attention_layers": [1]},
    "all, refresh, koopman": {
        "ska_layers": [1],
        "attention_layers": [2],
        "refresh_interval": 8,
        "feed_forward": "koopman-gated",
        "tie_word_embeddings": True,
    },
    "peers": {"layer_types": ["linear_attention", "gated_delta_net", "gla", "rwkv7"]},
    "more peers": {
        "layer_types": ["based", "mesa_net", "mamba3", "sliding_attention"],
        "sliding_window": 8,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_the_same_without_the_package(kind, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_heads": 2, "rank": 8, "state_size": 8}
    model = EchoForCausalLM(EchoConfig(**sizes, **KINDS[kind])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tokenizer = byte_tokenizer()
    export_model(model, tmp_path / "exported", tokenizer)
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
    }
    command = [sys.executable, "-c", ASK, str(tmp_path / "exported"), str(tmp_path / "answer.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = load_file(tmp_path / "answer.safetensors")

    ids = tokenizer("The cat sat on the mat. " * 8, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
        tokens = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert (answer["logits"] - logits).abs().max() < 1e-5 * max(1.0, logits.abs().max())
    assert torch.equal(answer["tokens"], tokens)
    model.train()
    model(ids, labels=ids).loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (answer["gradient"] - gradient).abs().max() < 1e-4 * gradient.abs().max()


def test_what_the_folder_holds(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "rank": 4, "state_size": 4}
    model = EchoForCausalLM(EchoConfig(**sizes))
    export_model(model, tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "SHA256SUMS",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_echo.py",
    }
    assert json.loads((tmp_path / "m" / "config.json").read_text())["auto_map"]["AutoConfig"].startswith(
        "modeling_echo."
    )
    PreTrainedConfig.from_json_file(tmp_path / "m" / "config.json")  # as the Trainer reads it where it resumes
    again = EchoForCausalLM.from_pretrained(tmp_path / "m")  # the package reads it too
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
