t() { name=$1; shift; timeout -s INT 150 python3 -m pytest -o addopts= --strict-markers -p no:cacheprovider -q -m gpu "$@" > $OUT/$name.txt 2>&1; echo "$name rc $? at $SECONDS: $(tail -1 $OUT/$name.txt)"; }
G=tests/gpu
t mega1 $G/test_megakernel.py -k "real_sizes or any_number or all_forms" & a=$!
t mega2 $G/test_megakernel.py -k "not real_sizes and not any_number and not all_forms" & b=$!
t tokens $G/test_tokens.py & d=$!
wait $a $b $d
grep -h "^FAILED\|^ERROR" $OUT/*.txt | head -20
