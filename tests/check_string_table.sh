#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_string_table.sh STRING_TABLE: the example from outside, in 2 MiB.
# shellcheck source=tests/check_lib.sh
. "${0%/*}/check_lib.sh"

table=$1

run any "$table" --memory 2M --size 1M
skip_unless_allowed

# Eight times its memory: it has to be paged, and to come back.
for seed in 1 2; do
	run 0 "$table" --memory 2M --seed $seed
	[ "$(grep -c '^looked up .* 0 wrong;' "$dir/out")" -eq 2 ] || fail "strings are wrong"
	grep -q '^all as it should be$' "$dir/out" || fail "not all is as it should be"
	grep -q '^emptied  *0 blocks left' "$dir/out" || fail "blocks are left"
	written=$(sed -n 's/^paged .* read, \([0-9]*\)\..* written$/\1/p' "$dir/out")
	[ "${written:-0}" -ge 8 ] || fail "no more than ${written:-0} MiB were swapped out"
	cat "$dir/out"
done

# Other strings than with another seed, and enough of them.
strings=$(sed -n 's/^filled  *\([0-9]*\) strings.*/\1/p' "$dir/out")
[ "${strings:-0}" -gt 10000 ] || fail "only ${strings:-no} strings"

run 0 "$table" --help
grep -q '^Usage' "$dir/out" || fail "--help does not say its usage"
for bad in --memory=1M --memory=x --size=8Q --size=99999999T --seed=-1 --bogus stray; do
	run 2 "$table" "$bad"
	[ -s "$dir/err" ] || fail "$bad: refused without a word"
done

# A heap that the limit can not carry: refused, with the reason.
run 1 "$table" --memory 2M --size 4G
grep -q 'does not fit the memory limit' "$dir/err" || fail "4 GiB in 2 MiB: no reason given"
echo "refusals: as they should be"
