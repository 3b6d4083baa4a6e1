#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_snapshot_writer.sh SNAPSHOT_WRITER: that every dump is one instant, and that a torn one is found.
# shellcheck source=tests/check_lib.sh
. "${0%/*}/check_lib.sh"

writer=$1

for bad in --size=12x --size=0 --size=4097 --size=99999999G --memory=1M --seconds=-1 --seconds=x \
	--out=/nowhere --bogus stray; do
	run 2 "$writer" "$bad"
	says 'help'
done
run 0 "$writer" --help
says '^Usage: '
echo "usage works"

first "$writer" --size=16M --memory=4M --seconds=3 --out="$dir"
says '^PASS: '
[ "$(stat -c %s "$dir/snapshot-1")" -eq 16777216 ] || fail "snapshot-1 is not the whole table"
cmp -s "$dir/snapshot-1" "$dir/snapshot-2" && fail "two snapshots are the same: nobody wrote"
rm "$dir"/snapshot-*
echo "16 MiB in 4 MiB: each dump is one instant"

run 0 "$writer" --size=1M --memory=8M --seconds=2
says '^PASS: '
echo "also where everything is in memory"

run 1 "$writer" --size=16M --memory=4M --seconds=1 --live
says '^FAIL: '
echo "a dump without a snapshot is found out"
