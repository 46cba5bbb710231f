"""Marks of tests that need something which not every system has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
