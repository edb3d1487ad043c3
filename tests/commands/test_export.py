"""`echo-ska export`."""

from __future__ import annotations


def test_a_model_is_exported_and_generates(run, refused, model_folder, tmp_path):
    folder = tmp_path / "exported"
    result = run("export", model_folder, folder)
    assert result.exit_code == 0, result.output
    assert "trust_remote_code=True" in result.stdout
    assert (folder / "modeling_echo.py").is_file()
    asked = ("--prompt", "Hello", "--temperature=0", "--max-new-tokens=5")
    assert run("generate", folder, *asked).stdout == run("generate", model_folder, *asked).stdout
    refused("is not empty", "export", model_folder, folder)
    refused("There is no folder", "export", tmp_path / "absent", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_empty_folder_is_filled_or_left_empty(run, model_folder, tmp_path, files_up_to, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with files_up_to((model_folder / "model.safetensors").stat().st_size - 1):
        assert run("export", model_folder, ".").exit_code == 1
    assert not list(tmp_path.iterdir())
    result = run("export", model_folder, ".")
    assert result.exit_code == 0, result.output
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert weights == (model_folder / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_nothing(run, model_folder, tmp_path, files_up_to):
    folder = tmp_path / "exported"
    with files_up_to((model_folder / "model.safetensors").stat().st_size - 1):
        result = run("export", model_folder, folder)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"The model {folder} could not be written (")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
