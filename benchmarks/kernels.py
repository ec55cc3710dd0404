"""Which environment variables make this processor compute with other kernels?

    python benchmarks/kernels.py

Runs a fixed set of operations in a fresh process per variable and prints those whose
bits differ from the default. A variable that changes nothing is one that the library
does not read on this processor, or one whose kernel rounds alike. ``make test-kernels``
runs the suite under two sets of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

SETTINGS = (
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "MKL_ENABLE_INSTRUCTIONS=SSE4_2",
    "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "MKL_CBWR=COMPATIBLE",
    "MKL_CBWR=AVX2",
    "ONEDNN_MAX_CPU_ISA=SSE41",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "OPENBLAS_CORETYPE=Nehalem",
    "OPENBLAS_CORETYPE=Haswell",
    "OMP_NUM_THREADS=2",
)


def digests() -> dict[str, str]:
    """Hash the result of each operation on fixed operands."""
    import numpy as np
    import torch
    from torch.nn.functional import conv2d

    random = np.random.default_rng(0)
    found: dict[str, str] = {}

    def note(name: str, value: object) -> None:
        raw = np.ascontiguousarray(value).tobytes()
        found[name] = hashlib.sha256(raw).hexdigest()

    plain = random.normal(size=(67, 129))
    for bits, dtype in ((32, torch.float32), (64, torch.float64)):
        # Drawn by NumPy: torch's own draws depend on the kernel too.
        a = torch.from_numpy(plain).to(dtype)
        gram = a @ a.T
        images = torch.from_numpy(random.normal(size=(4, 16, 33, 33))).to(dtype)
        filters = torch.from_numpy(random.normal(size=(32, 16, 3, 3))).to(dtype)
        note(f"matmul{bits}", gram)
        note(f"sum{bits}", a.sum(0))
        note(f"mean{bits}", a.mean(1))
        note(f"exp{bits}", a.exp())
        note(f"sigmoid{bits}", a.sigmoid())
        note(f"softmax{bits}", a.softmax(1))
        note(f"eigh{bits}", torch.linalg.eigvalsh(gram))
        note(f"conv{bits}", conv2d(images, filters))
    note("randn32", torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    note("numpy matmul", plain @ plain.T)
    note("numpy eigh", np.linalg.eigvalsh(plain @ plain.T))
    note("numpy exp", np.exp(plain))
    return {"": torch.backends.cpu.get_cpu_capability(), **found}


def under(setting: str) -> dict[str, str]:
    """Return the hashes of a fresh process with one variable set."""
    name, _, value = setting.partition("=")
    known = {one.partition("=")[0] for one in SETTINGS}
    clean = {k: v for k, v in os.environ.items() if k not in known}
    environment = {**clean, "OMP_NUM_THREADS": "1", **({name: value} if name else {})}
    command = [sys.executable, __file__, "--digests"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Print one line per variable."""
    if "--digests" in sys.argv:
        print(json.dumps(digests()))
        return
    default = under("")
    print(f"torch computes with {default['']}, {len(default) - 1} operations")
    for setting in SETTINGS:
        found = under(setting)
        changed = [n for n, bits in found.items() if n and bits != default[n]]
        print(f"{setting:32} {found['']:8} {', '.join(changed) or 'no bit changes'}")


if __name__ == "__main__":
    main()
