import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `small_models`


def pytest_configure(config):
    usual = ("slow", "accelerate_tests", "torch_compile_test", "torch_export_test")
    for name in (*usual, *(f"flash_attn_{n}test" for n in ("", "3_", "4_"))):
        config.addinivalue_line("markers", f"{name}: of Hugging Face's own tests")
