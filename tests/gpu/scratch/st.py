import sys, tempfile

sys.argv = ["dv"] + sys.argv[1:]
sys.path.insert(0, ".gpu")
import dv, torch
from pathlib import Path
from statistics import median
from time import perf_counter
import minisgl.attention.cuda as ac, minisgl.attention.triton as at, minisgl.attention.triton_kernels as tk
from minisgl.bench.gpu import forget
from minisgl.bench.gpu_steps import engine_for, decode, kernels_of
from minisgl.bench.gpu_shapes import write
from minisgl.bench.work import equal
from minisgl.core import SamplingParams

shape, rounds, sizes, names = (
    sys.argv[1],
    int(sys.argv[2]),
    [int(x) for x in sys.argv[3].split(",")],
    sys.argv[4:],
)
if shape == "8B":
    from minisgl.bench.gpu_shapes import SHAPES

    SHAPES["8B"]["num_hidden_layers"] = 6
t0 = perf_counter()
ck = write(shape, Path(tempfile.mkdtemp()) / shape)
engines = {}
for n in names:
    if n.startswith("triton"):
        kind = "fa3,triton"
        import minisgl.attention as ma

        if n == "tritonE":
            import triE
        ma.triton_kernels = triE if n == "tritonE" else tk
    else:
        kind = "fa3,cuda"
        own, _, many = n.partition("+")
        ac.load_cuda = lambda *a, n=own, **k: dv.modules[n]
        import minisgl.kernel.many as km

        km.products_on.cache_clear()
        real = km.__dict__.setdefault("_real", km.load_cuda)
        km.load_cuda = (lambda *a, n=many, **k: dv.modules[n]) if many else real
    engines[n] = engine_for(ck, num_pages=max(sizes) * 36, attention=kind)
    for rows in sizes:
        decode(engines[n], rows, 16)
print("made", perf_counter() - t0, flush=True)
took = {}
for r in range(rounds):
    for n, e in engines.items():
        for rows in sizes:
            took.setdefault((rows, n), []).append(decode(e, rows, 40, 1000 * r).wall * 1e3)
for rows in sizes:
    print("STEP", shape, rows, {n: round(median(took[rows, n]), 4) for n in engines}, flush=True)
for n, e in engines.items():
    if n.startswith("clock"):
        for rows in sizes:
            for asked in equal(3 + rows, rows, 480, 60, 10_000).requests:
                e.add(asked.prompt, SamplingParams(max_tokens=asked.num_tokens, ignore_eos=True))
            e.run(until=lambda record: all(row.length == 1 for row in record.batch.rows))
            e.run(max_steps=20)
            torch.cuda.synchronize()
            dv.show_times(dv.modules[n], f"step {rows} {n}")
            e.run()
print("T", perf_counter() - t0, flush=True)
