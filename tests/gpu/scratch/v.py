"""variants of the megakernel in turn: python3 v.py SHAPE BITS TIMES NAME[=FOLDER]..."""

import gc, shutil, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

R = Path(__file__).resolve().parent
HERE = R.parent / "minisgl/kernel/csrc"
E = {}
exec((R / "edits.py").read_text())


def make(name, folder):
    base, *edits = name.split("+")
    to = Path(folder) / name
    shutil.copytree({"now": HERE}.get(base, R / base), to)
    for e in edits:
        for file, old, new in E[e]:
            path = to / file
            text = path.read_text()
            assert text.count(old) == 1, (name, old, text.count(old))
            path.write_text(text.replace(old, new))
    return to


if __name__ == "__main__":
    shape, bits, times, *names = sys.argv[1:]
    folder = tempfile.mkdtemp()
    places = {n: make(n, folder) for n in names}
    if times == "0":
        sys.exit(print("ok"))
    import torch, tvm_ffi
    from minisgl.kernel import compile as b, megakernel as m
    from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

    Path("/tmp/mods").mkdir(exist_ok=True)
    t = perf_counter()

    def load(place):
        if Path(f"/tmp/mods/{place.name}.so").exists():
            return tvm_ffi.load_module(f"/tmp/mods/{place.name}.so")
        flags = (*b._CUDA_FLAGS, "-gencode=arch=compute_90a,code=sm_90a")
        b._compile(
            (
                "/usr/local/cuda/bin/nvcc",
                *flags,
                f"-I{find_include_path()}",
                f"-I{find_dlpack_include_path()}",
            ),
            place / "megakernel.cu",
            Path(f"/tmp/mods/{place.name}.so"),
        )
        return tvm_ffi.load_module(f"/tmp/mods/{place.name}.so")

    with ThreadPoolExecutor(16) as p:
        modules = dict(zip(places, p.map(load, places.values())))
    print("compiled", perf_counter() - t, flush=True)
    if times == "c":
        sys.exit()
    from minisgl.bench.gpu_shapes import write, SHAPES

    if shape == "8B":
        SHAPES["8B"]["num_hidden_layers"] = 6
    from minisgl.bench import gpu

    try:
        from minisgl.bench.gpu_steps import decode, engine_for
    except ImportError:
        decode, engine_for = gpu.decode, gpu.engine_for
    ck = (
        write(shape, Path(folder) / "ck", four_bits=True)
        if bits == "4"
        else write(shape, Path(folder) / "ck")
    )
    print("written", perf_counter() - t, flush=True)
    engines = {}
    seen = {}
    for n, mod in [(f"{n}.{k}", modules[n]) for k in range(int(times)) for n in modules]:
        m.load_cuda = lambda *a, mod=mod, **k: mod
        e = engine_for(ck, max_running=1, num_pages=200)
        decode(e, 1, 24)
        engines[n] = e
    mks = [o for o in gc.get_objects() if isinstance(o, m.Megakernel)]
    print("made", perf_counter() - t, len(mks), flush=True)
    for r in range(3):
        for n, e in engines.items():
            s = [decode(e, 1, 64, 1000 * r + k) for k in range(2)]
            print(shape, bits, r, n, *(f"{x.wall*1e3:.4f}" for x in s), flush=True)
            seen.setdefault(n.rsplit(".", 1)[0], []).extend(x.wall * 1e3 for x in s)
    from statistics import median

    print("MEDIAN", {n: round(median(x), 4) for n, x in seen.items()}, flush=True)
    if "now" in seen and "base" in seen:
        Path("/tmp/better").write_text(
            "1" if median(seen["now"]) < 0.99 * median(seen["base"]) else "0"
        )
    for n, mod in modules.items():
        if "clock" not in n:
            continue
        e = engines[f"{n}.0"]
        a, z = (torch.zeros(132, 16, dtype=torch.int64, device="cuda") for _ in "az")
        mod["clocks"](a)
        s = decode(e, 1, 64, 9000)
        mod["clocks"](z)
        L = SHAPES[shape]["num_hidden_layers"]
        d = (z - a).double() / 70 / L
        names_of = "attend row.qkv row.o row.gu row.down mul.qkv mul.o mul.gu mul.down out.qkv out.o out.gu out.down wait.normed".split()
        print(
            n,
            {
                k: (int(d[:, i].mean()), int(d[:, i].min()), int(d[:, i].max()))
                for i, k in enumerate(names_of)
            },
            "all",
            int(d[:, :14].sum(1).mean()),
            flush=True,
        )
