. .gpu/env.sh; SECONDS=0; python3 .gpu/compile_all.py 2>&1 | tail -2; echo compiled $SECONDS
t() { name=$1; shift; timeout -s INT 240 python3 -m pytest -o addopts= --strict-markers -p no:cacheprovider -q -m gpu "$@" > $OUT/$name.txt 2>&1; echo "$name rc $? at $SECONDS: $(tail -1 $OUT/$name.txt)"; }
G=tests/gpu
t mega1 $G/test_megakernel.py -k "real_sizes or any_number or all_forms" & a=$!
t mega2 $G/test_megakernel.py -k "not real_sizes and not any_number and not all_forms" & b=$!
t kernels $G/test_kernels.py $G/test_many.py $G/test_marlin.py & c=$!
t tokens $G/test_tokens.py & d=$!
t execution $G/test_execution.py & e=$!
t bench $G/test_bench.py $G/test_profile.py & f=$!
wait $a $b $c $d $e $f
grep -h "^FAILED\|^ERROR" $OUT/*.txt | head -20
