. .gpu/env.sh; SECONDS=0
python3 .gpu/compile_all.py > /tmp/c.txt 2>&1 & c=$!
timeout 90 python3 .gpu/v.py 8B 4 1 base now 2>&1 | grep -v "weights:\|Warn" | tail -14
wait $c; cat /tmp/c.txt | tail -1
kept=tree; if [ "$(cat /tmp/better)" != 1 ]; then cp .gpu/base/* minisgl/kernel/csrc/; kept=base; fi
echo KEPT $kept; python3 .gpu/compile_all.py; echo T $SECONDS
timeout -s INT $((525-SECONDS)) python3 -m minisgl bench gpu --table $OUT/gpu.csv --json $OUT/gpu.json > $OUT/gpu.txt 2>&1; echo rc $?; tail -3 $OUT/gpu.txt
echo T $SECONDS; echo $kept > $OUT/kept.txt
if [ $SECONDS -lt 450 ]; then timeout 80 /usr/local/cuda/bin/compute-sanitizer --tool memcheck --target-processes all python3 -m pytest -o addopts= --strict-markers -p no:cacheprovider -q -m gpu tests/gpu/test_megakernel.py -k "several_chunks" > $OUT/memcheck.txt 2>&1; tail -3 $OUT/memcheck.txt; fi
echo T $SECONDS
