"""Makes the fakes and what these tests share importable."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (str(HERE), str(HERE.parent / "fakes")):
    if folder not in sys.path:
        sys.path.insert(0, folder)
