"""What tests need of this machine to compile."""

from __future__ import annotations

import shutil

import pytest

HAS_CPP_COMPILER = shutil.which("g++") is not None or shutil.which("clang++") is not None
needs_cpp_compiler = pytest.mark.skipif(not HAS_CPP_COMPILER, reason="torch.compile needs a C++ compiler")
