"""pytest, run by the Python that has vLLM, with what the tests need beside it from another one's packages."""

import os
import sys

sys.path.append(os.environ["PACKAGES_BESIDE"])

import pytest

sys.exit(pytest.main(sys.argv[1:]))
