#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_string_table.sh STRING_TABLE: the example from outside, in 2 MiB.
#
# Exit status: 0 passed, 1 failed, 77 skipped since this machine does not allow userfaultfd.
set -eu
export LC_ALL=C

table=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM

fail() {
	echo "check_string_table: $*" >&2
	sed 's/^/    /' "$dir/out" "$dir/err" >&2
	exit 1
}

# Deadline in seconds for one run; a hang is a failure that says where.
run() {
	status=0
	timeout 100 "$table" "$@" >"$dir/out" 2>"$dir/err" || status=$?
	[ $status -ne 124 ] || fail "no result after 100 s: string_table $*"
}

run --memory 2M --size 1M
if grep -q -e 'Operation not permitted' -e 'Function not implemented' "$dir/err"; then
	sed 's/^/skipped: /' "$dir/err" >&2
	exit 77
fi

# Eight times its memory: it has to be paged, and to come back.
for seed in 1 2; do
	run --memory 2M --seed $seed
	[ $status -eq 0 ] || fail "exit status $status"
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

run --help
[ $status -eq 0 ] && grep -q '^Usage' "$dir/out" || fail "--help: exit status $status"
for bad in --memory=1M --memory=x --size=8Q --size=99999999T --seed=-1 --bogus stray; do
	run "$bad"
	[ $status -eq 2 ] || fail "$bad: exit status $status, not 2"
	[ -s "$dir/err" ] || fail "$bad: refused without a word"
done

# A heap that the limit can not carry: refused, with the reason.
run --memory 2M --size 4G
[ $status -eq 1 ] && grep -q 'does not fit the memory limit' "$dir/err" || fail "4 GiB in 2 MiB: $status"
echo "refusals: as they should be"
