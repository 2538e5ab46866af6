M, D, C = "megakernel.cuh", "device.cuh", "megakernel.cu"
E["act"] = [
    (
        M,
        "return from + (normed ? spread(word, s.hidden) : word);",
        "return from + (of != kO ? spread(word, normed ? s.hidden : 1024) : word);",
    ),
    (
        M,
        "hand_over(to + (grows ? spread(word, s.hidden) : word), two, stamp + (of == kDown));",
        "hand_over(to + (grows ? spread(word, s.hidden) : gated ? spread(word, 1024) : word), two, stamp + (of == kDown));",
    ),
    (C, "active(inner / 2)", "active(mega::spread(static_cast<int>(inner) / 2, 1024))"),
]
E["keys"] = [
    (
        D,
        "// One more has arrived;",
        """__device__ inline void bring(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at) : "memory");
}
// One more has arrived;""",
    ),
    (
        M,
        """#pragma unroll 1
            for (int of = 0; of < kProducts; ++of) {
""",
        """            bring_keys(at.pools()[layer]);
#pragma unroll 1
            for (int of = 0; of < kProducts; ++of) {
""",
    ),
    (
        M,
        "    // This block's tiles times the row: each warp's sums.",
        """
    __device__ void bring_keys(const Pool& pool) const {
        const int piece = threadIdx.x % kWarp % kLanes;
        if (window < 0 || piece % 8 != 0) return;
#pragma unroll
        for (int i = 0; i < kPositions; ++i) {
            const int position = begin + i * kPass + first_position();
            if (position >= stop || position >= end - 1) continue;
            const int64_t where = static_cast<int64_t>(rows[i]) * kLanes + piece;
            bring(static_cast<const uint4*>(pool.keys) + where);
            bring(static_cast<const uint4*>(pool.values) + where);
        }
    }

    // This block's tiles times the row: each warp's sums.""",
    ),
]
E["clock"] = [
    (
        M,
        "enum { kQkv, kO, kGateUp, kDown, kProducts };",
        """enum { kQkv, kO, kGateUp, kDown, kProducts };
__device__ long long clocks_of[132 * 16];""",
    ),
    (
        M,
        """            if (of == kO) attend(at.layers()[layer], at.pools()[layer]);
""".strip(),
        "if (of == kO) { attend(at.layers()[layer], at.pools()[layer]); mark(0); }",
    ),
    (
        M,
        """                row(of, p);
                multiply(p);
                hand_over_results(of, p);""",
        "row(of, p); mark(1 + of); multiply(p); mark(5 + of); hand_over_results(of, p); mark(9 + of);",
    ),
    (
        M,
        "        const Product last = at.products()[kDown];",
        "        last_clock = clock64(); const Product last = at.products()[kDown];",
    ),
    (
        M,
        "            squares = warp_sum(squares);",
        "            mark(13);squares = warp_sum(squares);",
    ),
    (
        M,
        "    __device__ static void meet() { sync_first(kThreads); }",
        """    __device__ static void meet() { sync_first(kThreads); }
    long long last_clock = 0;
    __device__ void mark(int k) {
        if (threadIdx.x == 0) { const long long n = clock64(); clocks_of[blockIdx.x * 16 + k] += n - last_clock; last_clock = n; }
    }""",
    ),
    (
        C,
        "TVM_FFI_DLL_EXPORT_TYPED_FUNC(room, room);",
        """void clocks(TensorView to) {
    cudaMemcpyFromSymbol(pointer<int64_t>(to), mega::clocks_of, 132 * 16 * 8, 0, cudaMemcpyDefault);
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(clocks, clocks);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(room, room);""",
    ),
]

E["chains"] = [
    (M, "int now[2][4] = {};", "int now[2][4] = {}, also[2][4] = {};"),
    (
        M,
        "multiply_add(now[m], left, digits);",
        "multiply_add(i % 2 ? also[m] : now[m], left, digits);",
    ),
    (
        M,
        "            const Part of = parts[",
        """#pragma unroll
            for (int r = 0; r < 8; ++r) now[r / 4][r % 4] += also[r / 4][r % 4];
            const Part of = parts[""",
    ),
]
for k in (0, 2, 8):
    E[f"a{k}"] = [(M, "constexpr int kAhead = 4; ", f"constexpr int kAhead = {k}; ")]
E["noatt"] = [
    (
        M,
        "return from + spread(word, product.inputs);",
        "return from + (of == kO ? word : spread(word, product.inputs));",
    ),
    (
        M,
        "const int word = spread((head * kDim + at_dim) / 2, s.heads * kDim);",
        "const int word = (head * kDim + at_dim) / 2;",
    ),
]
E["early"] = [
    (
        M,
        """        if (normed) {
            const void* const norm = of == kQkv ? weights.attention_norm : weights.mlp_norm;
            for (int i = threadIdx.x; i < pairs / 2; i += kThreads) {
                copy_async(at.norm() + i, static_cast<const uint4*>(norm) + i);
            }
            end_copy_group();
        }
""",
        "",
    ),
    (
        M,
        "        const Layer& weights = at.layers()[layer];\n        const int pairs",
        "        const int pairs",
    ),
    (
        M,
        "                multiply(p);\n",
        """                if (of == kQkv) fetch_norm(at.layers()[layer].mlp_norm);
                if (of == kGateUp && layer + 1 < s.num_layers) fetch_norm(at.layers()[layer + 1].attention_norm);
                multiply(p);
""",
    ),
    (
        M,
        "        const Product last = at.products()[kDown];",
        "        fetch_norm(at.layers()[0].attention_norm); const Product last = at.products()[kDown];",
    ),
    (
        M,
        "    // This block's tiles times the row: each warp's sums.",
        """
    __device__ void fetch_norm(const void* weights) const {
        for (int i = threadIdx.x; i < s.hidden / 8; i += kThreads) {
            copy_async(at.norm() + i, static_cast<const uint4*>(weights) + i);
        }
        end_copy_group();
    }

    // This block's tiles times the row: each warp's sums.""",
    ),
]
for k in (1, 2, 3):
    E[f"f{k}"] = [
        (
            M,
            "            const bool room = next.layer < s.num_layers && is_over(at.freed() + slot, phase);",
            f"""            const int before = issued - {k};
            const bool room = next.layer < s.num_layers && is_over(at.freed() + slot, phase) && (before < 0 || is_over(at.arrivals() + warp * Form::kStages + before % Form::kStages, before / Form::kStages & 1));""",
        ),
        (
            M,
            "                number += kWarps;\n                settle();\n",
            "                number += kWarps; ++issued;\n                settle();\n",
        ),
        (
            M,
            "        int slot = warp * Form::kStages, left = Form::kStages, phase = 1;",
            "        int slot = warp * Form::kStages, left = Form::kStages, phase = 1, issued = 0;",
        ),
    ]
E["p2"] = [(M, "constexpr int kPositions = 3;", "constexpr int kPositions = 2;")]
