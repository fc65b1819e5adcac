"""Everything that must hold: `make test`."""

import os
import tempfile
from pathlib import Path

if instructions := os.environ.get("ATEN_CPU_CAPABILITY"):
    # What torch.compile kept was built for this processor's instructions; its key does not hold these.
    cache = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}_{instructions}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
