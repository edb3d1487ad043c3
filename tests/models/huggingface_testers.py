"""Hugging Face's own testers of models, imported from an unpacked source distribution of transformers.

The source distribution on PyPI holds `tests/test_modeling_common.py` and `tests/test_configuration_common.py`, but not
what they import from the folders below: `generation` (GenerationTesterMixin), `exporters` and `utils`. In a checkout of
the repository those are there, and are then used; otherwise empty classes stand for them.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
from pathlib import Path
from unittest import mock

import transformers

PACKAGE = "huggingface_testers_package"
# What `tests/utils/test_configuration_utils.py` of a checkout would name: settings that every configuration takes.
COMMON_SETTINGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["EchoForCausalLM"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}


def load(folder: str) -> types.SimpleNamespace:
    """ModelTesterMixin, GenerationTesterMixin and ConfigTester, and whether the second is Hugging Face's.

    Raises:
        ValueError: the folder holds no source of the installed version of transformers.
    """
    tests = Path(folder) / "tests"
    if not (tests / "test_modeling_common.py").is_file():
        raise ValueError(f"{folder} is no unpacked source of transformers: it has no tests/test_modeling_common.py")
    information = Path(folder) / "PKG-INFO"
    stated = (
        re.search(r"^Version: (\S+)", information.read_text(encoding="utf-8"), re.M) if information.is_file() else None
    )
    if stated is not None and stated[1] != transformers.__version__:
        raise ValueError(f"{folder} is of transformers {stated[1]}, installed is {transformers.__version__}")
    _package(PACKAGE, tests)
    for name, contents in (
        ("exporters.test_export", {"ExportTesterMixin": type("ExportTesterMixin", (), {})}),
        ("generation.test_utils", {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})}),
        ("utils.test_configuration_utils", {"config_common_kwargs": COMMON_SETTINGS}),
    ):
        room, _, module = name.partition(".")
        _package(f"{PACKAGE}.{room}", tests / room)
        if not (tests / room / f"{module}.py").is_file():
            stand_in = types.ModuleType(f"{PACKAGE}.{name}")
            vars(stand_in).update(contents)
            sys.modules[stand_in.__name__] = stand_in
    modeling = importlib.import_module(f"{PACKAGE}.test_modeling_common")
    # It would run the folder's __init__.py, which a source distribution lacks, only to return this.
    with mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
        configuration = importlib.import_module(f"{PACKAGE}.test_configuration_common")
    generation = importlib.import_module(f"{PACKAGE}.generation.test_utils")
    return types.SimpleNamespace(
        ModelTesterMixin=modeling.ModelTesterMixin,
        GenerationTesterMixin=generation.GenerationTesterMixin,
        ConfigTester=configuration.ConfigTester,
        generation_is_theirs=hasattr(generation, "__file__"),
    )


def _package(name: str, folder: Path) -> None:
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
