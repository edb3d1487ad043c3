"""Saved weights that are held to their checksums, and to the shapes of the model's parameters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from echo_ska.models.shapes import require_shapes
from echo_ska.sealed.folder import SUMS, broken_sum, write_sums

SEALED_FILES = ("model*.safetensors", "model*.safetensors.index.json")
"""The files of a saved model whose checksums are kept: the weights. People edit the JSON beside them by hand."""


class SealedWeights(PreTrainedModel):
    """A model whose folder also holds the checksums of its weights, and that refuses damaged ones."""

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **settings: Any
    ) -> Any:
        """As Hugging Face's, with the checksums of the weights beside them, in SHA256SUMS.

        The checksums of what was there before are deleted first: if the saving ends early, none are there that the
        weights would not match.
        """
        sums = Path(save_directory, SUMS)
        if is_main_process and sums.is_file():
            sums.unlink()
        result = super().save_pretrained(save_directory, is_main_process, **settings)
        if is_main_process and not sums.exists():
            _seal(sums.parent)
        return result

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *arguments: Any, **settings: Any) -> Any:
        """As Hugging Face's: it is what `save_pretrained(push_to_hub=True)` ends with. The checksums go along."""
        _seal(Path(working_dir))
        return super()._upload_modified_files(working_dir, *arguments, **settings)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **settings: Any) -> Any:
        """As Hugging Face's; weights that have a SHA256SUMS beside them are held to it.

        Raises:
            ValueError: a weight file is not as it was saved.
            OtherShapesError: a weight has another shape than the configuration says, unless `ignore_mismatched_sizes`.
        """
        if isinstance(pretrained_model_name_or_path, str | os.PathLike):
            _require_whole(Path(pretrained_model_name_or_path, settings.get("subfolder") or ""))
        return super().from_pretrained(pretrained_model_name_or_path, *arguments, **settings)

    @classmethod
    def _finalize_model_loading(cls, model: Any, load_config: Any, loading_info: Any) -> Any:
        """As Hugging Face's: it is what `from_pretrained` ends with. Other shapes are one sentence, and no table."""
        if not load_config.ignore_mismatched_sizes:
            require_shapes(model, loading_info.mismatched_keys, load_config.pretrained_model_name_or_path)
        return super()._finalize_model_loading(model, load_config, loading_info)


def _seal(folder: Path) -> None:
    """Write the checksums of a saved model's weights."""
    write_sums(folder, sorted(path.name for kind in SEALED_FILES for path in folder.glob(kind)))


def _require_whole(folder: Path) -> None:
    """Raise a ValueError unless a saved model's weights are as its SHA256SUMS says, if it has one."""
    if not (folder / SUMS).is_file():
        return
    try:
        broken = broken_sum(folder)
    except FileNotFoundError as error:
        raise ValueError(f"the model in {folder} is not whole: {error.filename} is missing") from error
    if broken is not None:
        raise ValueError(
            f"the weights in {folder / broken} are damaged (they do not match {SUMS}): save or copy the model again; "
            f"if the change is meant, delete {folder / SUMS}"
        )
