"""name -> list of (old, new) in megakernel.cuh / .cu; prints ms per step of each in turn."""

import shutil, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent / "minisgl/kernel/csrc"
NOCOPY = ("constexpr int kCopies = 4;", "constexpr int kCopies = 1;")
NOSPREAD = ("return word / 4 * 16 + word % 4;", "return word;")
ACT = [
    (
        "return from + (normed ? spread(word) : word);",
        "return from + (of != kO ? spread(word) : word);",
    ),
    (
        "hand_over(to + (first + output) / 2, two, stamp);",
        "hand_over(to + (gated ? spread((first + output) / 2) : (first + output) / 2), two, stamp);",
    ),
    ("cu", "active(inner / 2)", "active(mega::spread(static_cast<int>(inner) / 2))"),
]
V = {
    "new": [],
    "seq": [NOCOPY, NOSPREAD],
    "nospread": [NOSPREAD],
    "nocopy": [NOCOPY],
    "act": ACT,
    "c8": [("constexpr int kCopies = 4;", "constexpr int kCopies = 8;")],
    "old": None,
}


def make(name, folder):
    to = Path(folder) / name
    if V[name] is None:
        shutil.copytree(HERE.parent.parent.parent / ".gpu/old", to)
        return to
    shutil.copytree(HERE, to)
    for c in V[name]:
        file, old, new = c if len(c) == 3 else ("mega", *c)
        path = to / {"mega": "megakernel.cuh", "cu": "megakernel.cu", "dev": "device.cuh"}[file]
        text = path.read_text()
        assert text.count(old) == 1, (name, old, text.count(old))
        path.write_text(text.replace(old, new))
    return to


if __name__ == "__main__":
    folder = tempfile.mkdtemp()
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else list(V)
    shape, bits = (sys.argv[2:4] + ["0.6B", ""])[:2] if len(sys.argv) > 2 else ("0.6B", "")
    places = {n: make(n, folder) for n in names}
    if "--check" in sys.argv:
        sys.exit(print("ok"))
    import torch
    from minisgl.kernel import compile as b, megakernel as m
    from time import perf_counter

    t = perf_counter()

    def load(place):
        import tvm_ffi, os
        from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

        flags = (*b._CUDA_FLAGS, "-gencode=arch=compute_90a,code=sm_90a")
        out = place / "m.so"
        b._compile(
            (
                "/usr/local/cuda/bin/nvcc",
                *flags,
                f"-I{find_include_path()}",
                f"-I{find_dlpack_include_path()}",
            ),
            place / "megakernel.cu",
            out,
        )
        return tvm_ffi.load_module(str(out))

    with ThreadPoolExecutor(16) as p:
        modules = dict(zip(places, p.map(load, places.values())))
    print("compiled", perf_counter() - t, flush=True)
    from minisgl.bench.gpu_shapes import write
    from minisgl.bench import gpu

    ck = (
        write(shape, Path(folder) / "ck", four_bits=True)
        if bits
        else write(shape, Path(folder) / "ck")
    )
    print("written", perf_counter() - t, flush=True)
    engines = {}
    times = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    for n, mod in [(f"{n}.{k}", modules[n]) for k in range(times) for n in modules]:
        m.load_cuda = lambda *a, mod=mod, **k: mod
        e = gpu.engine_for(ck, max_running=1, num_pages=200)
        gpu.decode(e, 1, 24)
        engines[n] = e
    print("made", perf_counter() - t, flush=True)
    import gc

    mks = [o for o in gc.get_objects() if isinstance(o, m.Megakernel)]
    print(len(mks), [hex(o._words.data_ptr()) for o in mks])
    for r in range(3):
        for n, e in engines.items():
            s = [gpu.decode(e, 1, 64, 1000 * r + k) for k in range(2)]
            print(r, n, *(f"{x.wall*1e3:.4f}" for x in s), flush=True)
