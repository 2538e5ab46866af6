. .gpu/env.sh; SECONDS=0
python3 .gpu/compile_all.py 2>&1 | tail -1; echo T $SECONDS
t() { name=$1; shift; timeout -s INT 100 python3 -m pytest -o addopts= --strict-markers -p no:cacheprovider -q -m gpu "$@" > $OUT/$name.txt 2>&1; echo "$name rc $? at $SECONDS: $(tail -1 $OUT/$name.txt)"; }
G=tests/gpu
t decode $G/test_kernels.py -k "decode or captured" & a=$!
t tokens $G/test_tokens.py & b=$!
t execution $G/test_execution.py $G/test_profile.py & c=$!
wait $a $b $c; cat $OUT/*.txt > $OUT/tests.txt; rm $OUT/decode.txt $OUT/tokens.txt $OUT/execution.txt
grep -h "^FAILED\|^ERROR" $OUT/tests.txt | head; echo T $SECONDS
timeout -s INT $((504-SECONDS)) python3 -m minisgl bench gpu --table $OUT/gpu.csv --json $OUT/gpu.json > $OUT/gpu.txt 2>&1; echo rc $?; tail -3 $OUT/gpu.txt
echo T $SECONDS
if [ $SECONDS -lt 470 ]; then timeout -s INT 40 python3 -m minisgl bench --timeline $OUT/timeline_gpu.json > $OUT/tl.txt 2>&1; tail -1 $OUT/tl.txt; fi; echo T $SECONDS
