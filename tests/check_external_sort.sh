#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_external_sort.sh EXTERNAL_SORT [MIB]: sort real text in a few MiB, compare with coreutils.
#
# The text is what Debian packages put on every machine (licences, documentation, package file
# lists, perl), repeated to MIB MiB (default 40), and shuffled by line, always in the same order.
# Generated text would be easier, but has no long common prefixes, no empty lines by the thousand and
# no lines of every length; paths and licences do.
# shellcheck source=tests/check_lib.sh
. "${0%/*}/check_lib.sh"

sort_bin=$1
mib=${2:-40}
deadline=150

printf 'b\na\n' >"$dir/tiny"
first "$sort_bin" "$dir/tiny"

# The text.  Two files, the second of which does not end with a newline.
find /usr/share/common-licenses /usr/share/doc /usr/share/perl /var/lib/dpkg/info \
	-type f ! -name '*.gz' ! -name '*.png' ! -name '*.svg' 2>/dev/null |
	sort | tr '\n' '\0' | xargs -0 cat 2>/dev/null | tr -d '\000' |
	head -c $((mib * 524288)) >"$dir/real" || true
[ -s "$dir/real" ] || fail "this machine has no text to sort"
echo >>"$dir/real"
: >"$dir/text"
while [ "$(wc -c <"$dir/text")" -lt $((mib * 1048576)) ]; do
	cat "$dir/real" >>"$dir/text"
done
awk 'BEGIN { srand(20) } { print int(rand() * 1000000000), $0 }' "$dir/text" |
	sort -s -n -k1,1 | cut -d' ' -f2- | head -c $((mib * 1048576)) >"$dir/shuffled" || true
rm "$dir/text" "$dir/real"
head -n 5000 "$dir/shuffled" >"$dir/one"
tail -n +5001 "$dir/shuffled" >"$dir/two"
rm "$dir/shuffled"
printf 'no newline at the end' >>"$dir/two"
sort "$dir/one" "$dir/two" >"$dir/sorted"
sort -u "$dir/one" "$dir/two" >"$dir/unique"

# AddressSanitizer's shadow of what is swapped out stays in memory: then only the answer counts.
sanitized=false
! grep -q __asan_init "$sort_bin" || sanitized=true

# compare WHAT EXPECTED: the last run's output, and its peak as the kernel counted it.  Half of the text
# is far more than budget and program, and far less than a pager without a budget would take.
compare() {
	[ $status -eq 0 ] || fail "$1: exit status $status"
	cmp "$dir/out" "$2" >&2 || fail "$1: differs from coreutils"
	peak=$(sed -n 's/.*peak resident \([0-9]*\)\..*/\1/p' "$dir/err")
	[ -n "$peak" ] || fail "$1: said nothing of its peak"
	[ "$3" = any ] || $sanitized || [ "$peak" -lt $((mib / 2)) ] || fail "$1: $peak MiB were resident"
	echo "$1: same as coreutils"
	sed 's/^/    /' "$dir/err"
}

run any "$sort_bin" --count --memory 8M "$dir/one" "$dir/two"
compare "$mib MiB of text in 8 MiB" "$dir/sorted" budget
run any "$sort_bin" --count --unique --memory 4M "$dir/one" "$dir/two"
compare "$mib MiB of text in 4 MiB, unique" "$dir/unique" budget
run any "$sort_bin" --count --inline --memory 8M "$dir/one" "$dir/two"
compare "$mib MiB of text in 8 MiB, faults served inline" "$dir/sorted" budget
run any "$sort_bin" --count --in-memory-of-kernel "$dir/one" "$dir/two"
compare "$mib MiB of text in plain memory" "$dir/sorted" any

# What has edges: no lines, empty lines, NUL bytes, prefixes of one another.
: >"$dir/empty"
printf 'a\000b\na\na\000\n\n\nzz\nzzzzzzzz\nzzzzzzzzz\nzzzzzzzz\000\n\377\n\200x' >"$dir/edges"
for files in "$dir/empty" "$dir/edges" "$dir/empty $dir/edges $dir/tiny $dir/edges"; do
	for unique in '' -u; do
		# shellcheck disable=SC2086 # words on purpose
		run any "$sort_bin" --count $unique --memory 2M $files
		# shellcheck disable=SC2086
		sort $unique $files >"$dir/expected"
		compare "edges $unique" "$dir/expected" any >"$dir/log"
	done
done

# What must be refused.
for bad in '--memory=1M' '--memory=x' '--memory=8Q' '--bogus' "$dir" "$dir/absent"; do
	run any "$sort_bin" "$bad" "$dir/tiny"
	[ $status -eq 2 ] || fail "$bad: exit status $status, not 2"
	[ -s "$dir/err" ] || fail "$bad: refused without a word"
done
echo "edges and refusals: as they should be"
