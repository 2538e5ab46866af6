import sys
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from minisgl.kernel import compile as b

t = perf_counter()
with ThreadPoolExecutor(6) as p:
    list(
        p.map(
            lambda s: b.load_cuda((9, 0), source=s),
            ["cuda.cu", "marlin.cu", "megakernel.cu", "many.cu", "decode.cu"],
        )
    )
print("compiled", perf_counter() - t)
