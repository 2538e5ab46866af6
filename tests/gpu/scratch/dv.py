"""Decode attention: Triton's and variants of CUDA's, us a layer in a graph. dv.py [check]"""

import shutil, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

R = Path(__file__).resolve().parent
HERE = R.parent / "minisgl/kernel/csrc"
H, C, B3 = "decode.cuh", "decode.cu", "boxes.cuh"
CH = "rows <= 8 ? 2 : rows <= 64 ? 4 : decode::kMostHeads"


def heads(n):
    return [(C, CH, str(n))]


def stages(n):
    return [(H, "kMostStages = 8;", f"kMostStages = {n};"), (C, "stages >= 3", "stages >= 2")]


HINT = [
    (
        B3,
        """"cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];" ::""",
        """"{.reg .b64 p; createpolicy.fractional.L2::evict_first.b64 p, 1.0; cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3, %4}], [%5], p;}" ::""",
    )
]
EARLY = [
    (H, "    let_next_start();\n", ""),
    (
        H,
        "    const int groups = step.kv_heads / step.heads;  // of key heads\n",
        "    let_next_start();\n    const int groups = step.kv_heads / step.heads;  // of key heads\n",
    ),
]


def const(name, old, new):
    return [(H, f"constexpr int {name} = {old};", f"constexpr int {name} = {new};")]


RING = const("kRing", "128 << 10", "192 << 10")
STATIC = const("kFewTiles", "8", "1 << 20")
X2 = [
    (C, "__launch_bounds__(kMostThreads, 1)", "__launch_bounds__(kMostThreads, 2)"),
    (C, "at.end <= shared_limits(device).block", "at.end <= 115000"),
    (C, "processors(device) / (keys", "2 * processors(device) / (keys"),
]
CLOCK = [
    (
        H,
        "namespace decode {\n",
        """namespace decode {
__device__ long long times_of[264 * 8];
__device__ inline void mark(int k) { long long t; asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t)); times_of[blockIdx.x * 8 + k] = t; }
""",
    ),
    (
        H,
        "    const Places at(step.heads, kDim, step.stages, step.rows);\n",
        """    if (threadIdx.x == 0) { mark(0); int id; asm volatile("mov.u32 %0, %smid;" : "=r"(id)); times_of[blockIdx.x * 8 + 7] = id; }
    const Places at(step.heads, kDim, step.stages, step.rows);
""",
    ),
    (
        H,
        "    const int groups = step.kv_heads / step.heads;  // of key heads\n",
        "    if (threadIdx.x == 0) mark(1);\n    const int groups = step.kv_heads / step.heads;  // of key heads\n",
    ),
    (
        H,
        """        wait_for_inputs();
        Arrival* const full = reinterpret_cast<Arrival*>(shared_ + at_.full);""",
        """        wait_for_inputs(); if (threadIdx.x == 0) mark(2);
        Arrival* const full = reinterpret_cast<Arrival*>(shared_ + at_.full);""",
    ),
    (
        H,
        "            tile_ = tiles[stage];\n",
        "            tile_ = tiles[stage]; if (threadIdx.x == 0) { if (seen++ == 0) mark(3); mark(4); }\n",
    ),
    (
        H,
        "        bool begins = true;\n        for (int stage",
        "        bool begins = true; int seen = 0;\n        for (int stage",
    ),
    (
        H,
        "Worker<T, kDim>(rows, at, shared, group * step.heads + warp, warp).run();",
        "Worker<T, kDim>(rows, at, shared, group * step.heads + warp, warp).run(); if (threadIdx.x == 0) mark(5);",
    ),
    (
        C,
        "TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, attend);",
        """void times(TensorView to) { cudaMemcpyFromSymbol(pointer<int64_t>(to), decode::times_of, 264 * 64, 0, cudaMemcpyDefault); }
TVM_FFI_DLL_EXPORT_TYPED_FUNC(times, times);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, attend);""",
    ),
]
H1 = [(C, "rows <= 4 ? 2 : rows <= 64 ? 4 : decode::kMostHeads", "8")]
H4 = [(C, "rows <= 4 ? 2 : rows <= 64 ? 4 : decode::kMostHeads", "4")]
RING3 = [(H, "kRing = 128 << 10", "kRing = 192 << 10")]
E = {"now": [], "h4": H4, "h8": H1, "ring": RING3}
M = {
    n: [
        (
            B3,
            """    TensorMap map;
    const CUresult error =
        encode_map()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2""",
            f"""#define CU_TENSOR_MAP_L2_PROMOTION_L2_256B CU_TENSOR_MAP_L2_PROMOTION_{n}
    TensorMap map;
    const CUresult error =
        encode_map()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2""",
        )
    ]
    for n in ("NONE", "L2_128B")
}
E |= {"m" + n: e for n, e in M.items()}


def make(name, folder):
    to = Path(folder) / name
    shutil.copytree(HERE, to)
    for file, old, new in E[name]:
        text = (to / file).read_text()
        assert text.count(old) == 1, (name, old, text.count(old))
        (to / file).write_text(text.replace(old, new))
    return to


folder = tempfile.mkdtemp()
places = {n: make(n, folder) for n in E}
if "check" in sys.argv:
    sys.exit(print("ok", folder))
import numpy as np, torch, tvm_ffi
from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path
from minisgl.kernel import compile as b
from minisgl.attention.base import DeviceMeta, Meta
from minisgl.attention.cuda import CudaAttention
from minisgl.attention.triton import TritonAttention
from minisgl.executor.kv_pool import KVPool

Path("/tmp/dmods").mkdir(exist_ok=True)


def load(place):
    so = Path(f"/tmp/dmods/{place.name}.so")
    if not so.exists():
        flags = (*b._CUDA_FLAGS, "-gencode=arch=compute_90a,code=sm_90a")
        nv = (
            "/usr/local/cuda/bin/nvcc",
            *flags,
            f"-I{find_include_path()}",
            f"-I{find_dlpack_include_path()}",
        )
        b._compile(nv, place / ("many.cu" if place.name[0] == "m" else "decode.cu"), so)
    return so


with ThreadPoolExecutor(16) as p:
    sos = list(p.map(load, places.values()))
if "compile" in sys.argv:
    sys.exit(print("decode variants compiled"))
modules = {n: tvm_ffi.load_module(str(so)) for n, so in zip(places, sos)}
torch.manual_seed(0)


def case(rows, lengths, heads, kv=8, dim=128, ps=16, order="random"):
    counts = [-(-n // ps) for n in lengths]
    each = (sum(counts) + 1) * ps * kv * dim * 4
    layers = max(2, min(12, int(400e6 // each) + 1))
    device = torch.device("cuda")
    pool = KVPool(layers, sum(counts) + 1, ps, kv, dim, torch.bfloat16, device)
    for x in (*pool.keys, *pool.values):
        x.normal_()
    free = torch.randperm(sum(counts) + 1, device="cuda").int()
    if order == "even":
        free = torch.arange(sum(counts) + 1, device="cuda").int()
    table, taken = torch.zeros(rows, 300, dtype=torch.int32, device="cuda"), 0
    for i, n in enumerate(counts):
        table[i, :n] = free[taken : taken + n]
        taken += n
    ends = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    first = torch.arange(rows + 1, dtype=torch.int32, device="cuda")
    ones = np.ones(rows, np.int64)
    meta = Meta(
        ones,
        ones,
        table,
        torch.zeros(rows, dtype=torch.int64, device="cuda"),
        DeviceMeta(ends, first),
    )
    q = torch.randn(rows, heads, dim, device="cuda").bfloat16()
    bytes_ = sum(lengths) * kv * dim * 4
    outs, graphs = {}, {}
    stream = torch.cuda.Stream()
    kinds = {"triton": lambda: TritonAttention(pool, ())}
    for n, m in modules.items():
        if n[0] == "m":
            continue
        kinds[n] = lambda m=m: CudaAttention(pool, (), m)
    keep = []
    for name, kind in kinds.items():
        made = kind()
        keep.append(made)
        with torch.cuda.stream(stream):
            made.capture(meta, heads)
            made.attend(0, q, q, q)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()
            for k in range(24):
                out = made.attend(k % layers, q, q, q)
            graph.capture_end()
        outs[name], graphs[name] = out, graph
    torch.cuda.synchronize()
    for graph in graphs.values():
        graph.replay()
    torch.cuda.synchronize()
    print(
        rows,
        "mean",
        sum(lengths) // rows,
        "heads",
        heads,
        order,
        ps,
        "at 4.2 TB/s: %.1f us" % (bytes_ / 4.2e6),
    )
    times = {n: [] for n in graphs}
    for _ in range(3):
        for name, graph in graphs.items():
            a, z = (torch.cuda.Event(enable_timing=True) for _ in "az")
            a.record()
            for _ in range(5):
                graph.replay()
            z.record()
            torch.cuda.synchronize()
            times[name].append(a.elapsed_time(z) * 1e3 / 120)
    for n, t in times.items():
        us = sorted(t)[1]
        error = (outs["triton"].float() - outs[n].float()).norm() / outs["triton"].float().norm()
        print(
            "   %-6s %.1f us (%.2f TB/s) error %.1e" % (n, us, bytes_ / us / 1e6, error), flush=True
        )


random = np.random.default_rng(0)


def show_times(m, what):
    t = torch.zeros(264, 8, dtype=torch.int64, device="cuda")
    m["times"](t)
    t = t.cpu().numpy()
    t = t[t[:, 0] > t[:, 0].max() - 1_000_000]
    order = np.argsort(t[:, 7])
    t = t[order]
    z = t[:, 0].min()
    us = (t[:, :6] - z) / 1e3
    for k, n in enumerate(["start", "counted", "inputs", "first", "lasttile", "end"]):
        print(
            "TIMES",
            what,
            n,
            "min %.1f p10 %.1f median %.1f p90 %.1f max %.1f"
            % (us[:, k].min(), *np.percentile(us[:, k], [10, 50, 90]), us[:, k].max()),
        )
    print(
        "TIMES",
        what,
        "ends by sm",
        " ".join("%d:%.0f" % (a, b) for a, b in zip(t[:, 7], us[:, 5])),
        flush=True,
    )


if __name__ == "__main__":
    for rows in (64, 256):
        case(rows, [521] * rows, 16)
    case(128, [521] * 128, 16)
    case(64, [521] * 64, 40)
    for rows in (4, 16, 64, 150):
        case(rows, [int(n) for n in random.integers(300, 1500, rows)], 16)
    case(2, [2000] * 2, 16)
