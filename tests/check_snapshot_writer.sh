#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_snapshot_writer.sh SNAPSHOT_WRITER: that every dump is one instant, and that a torn one is found.
#
# Exit status: 0 passed, 1 failed, 77 skipped since this machine does not allow userfaultfd.
set -eu
export LC_ALL=C

writer=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM

fail() {
	echo "check_snapshot_writer: $*" >&2
	for f in out err; do
		[ ! -s "$dir/$f" ] || sed "s/^/    $f: /" "$dir/$f" >&2
	done
	exit 1
}

# run STATUS ARG...: with a deadline; its output in $dir/out and $dir/err.
run() {
	want=$1
	shift
	status=0
	timeout 100 "$writer" "$@" >"$dir/out" 2>"$dir/err" </dev/null || status=$?
	[ $status -ne 124 ] || fail "no result after 100 s: $*"
	if grep -q -e 'Operation not permitted' -e 'Function not implemented' "$dir/err"; then
		sed 's/^/skipped: /' "$dir/err" >&2
		exit 77
	fi
	[ $status -eq "$want" ] || fail "exit status $status, not $want: $*"
}

says() {
	grep -q -e "$1" "$dir/out" "$dir/err" || fail "no '$1' in the output"
}

for bad in --size=12x --size=0 --size=4097 --size=99999999G --memory=1M --seconds=-1 --seconds=x \
	--out=/nowhere --bogus stray; do
	run 2 "$bad"
	says 'help'
done
run 0 --help
says '^Usage: '
echo "usage works"

run 0 --size=16M --memory=4M --seconds=3 --out="$dir"
says '^PASS: '
[ "$(stat -c %s "$dir/snapshot-1")" -eq 16777216 ] || fail "snapshot-1 is not the whole table"
cmp -s "$dir/snapshot-1" "$dir/snapshot-2" && fail "two snapshots are the same: nobody wrote"
rm "$dir"/snapshot-*
echo "16 MiB in 4 MiB: each dump is one instant"

run 0 --size=1M --memory=8M --seconds=2
says '^PASS: '
echo "also where everything is in memory"

run 1 --size=16M --memory=4M --seconds=1 --live
says '^FAIL: '
echo "a dump without a snapshot is found out"
