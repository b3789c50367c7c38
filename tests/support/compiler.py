"""Tests of compiled kernels, on a machine that can compile them."""

import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++: training.compile cannot be tested here"
)
