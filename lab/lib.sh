# SPDX-License-Identifier: GPL-2.0
# What the scripts of the workshop share. To be sourced, with bash.

set -euo pipefail
shopt -s inherit_errexit extglob

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
build=$top/build
me=${0##*/}

# The result must not depend on whose machine this is: neither on the user's
# git configuration, nor on locale or time zone.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null LC_ALL=C TZ=UTC
# A clone that belongs to the user, handled by root, is not an attack.
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE

# say TEXT: one line about what happens
say() {
	printf '%s: %s\n' "$me" "$*"
}

# die MESSAGE [WHAT-TO-DO [LOG]]: the error, the remedy and where to look
die() {
	printf '%s: error: %s\n' "$me" "$1" >&2
	[[ -z ${2-} ]] || printf '%s: what to do: %s\n' "$me" "$2" >&2
	[[ -z ${3-} ]] || printf '%s: log: %s\n' "$me" "$3" >&2
	exit 1
}

# need_space GIB [DIRECTORY]: stop before the disk is full and not after
need_space() {
	local dir=${2:-$build} free
	mkdir -p "$dir"
	free=$(df -Pk "$dir/" | awk 'NR == 2 { print int($4 / 1048576) }')
	((free >= $1)) || die "$dir needs $1 GiB of free disk, there are $free" \
		"free some, or make build/ a symbolic link to a larger disk"
}

# as_root COMMAND...: directly, or through sudo
as_root() {
	if ((EUID == 0)); then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "neither root nor sudo: run as root: $*" >&2
		return 1
	fi
}

# apt_update: fetch Debian's package lists; the network gets three chances
apt_update() {
	local try
	for try in 1 2 3; do
		as_root apt-get -q -o APT::Update::Error-Mode=any update && return
		sleep $((try * 3))
	done
	return 1
}

# only_one: of two runs that write below build/, the second waits. The scripts
# that a run calls belong to it.
only_one() {
	[[ -z ${GMEM_LOCKED-} ]] || return 0
	export GMEM_LOCKED=1
	mkdir -p "$build"
	exec 9>"$build/lock"
	flock -n 9 || { say "waiting for another run to finish"; flock 9; }
}

# verdict NAME COMPLAINT: a line of TAP, ok where there is nothing to complain of
number=0
verdict() {
	((++number))
	if [[ $2 ]]; then
		echo "not ok $number $1"
		sed 's/^/# /' <<<"$2"
	else
		echo "ok $number $1"
	fi
}

# warnings LOG: those of the compiler, in what lab/kernel has logged
warnings() {
	grep -v '^[.]config:' "$1" | grep -A 5 'warning: '
}

# worktree TREE: the series as a second tree of build/linux, without any change
worktree() {
	git -C "$1" rev-parse -q --verify HEAD >/dev/null 2>&1 || rm -rf "$1"
	git -C "$build/linux" worktree prune
	[[ -d $1 ]] || git -C "$build/linux" worktree add -q --detach "$1"
	git -C "$1" checkout -q --force --detach "$(git -C "$build/linux" rev-parse HEAD)"
}

# The kernel of the VM that runs the selftests of the series takes the TSC for its clock,
# which it does not do of itself where it sees several processors of AMD's; QEMU's have
# one TSC. Only then does KVM give guests a clock that it need not write over and over,
# and one to compare with its own. base/verdicts are without it.
tsc="tsc=reliable"

# batches KERNEL FOLDER NAME [OPTION OF lab/vm...]: what FOLDER/list says, as
# lab/batch has it, in one VM; in more where a test brings one down. Logs, exit
# statuses and splats are in FOLDER then, the runs are NAME-1 and so on.
batches() {
	local dir=$2 left=-1 before total status run=0 name limit command factor=
	: >"$dir/splats"
	# A clock that counts instructions runs ahead whenever the VM waits for the
	# host: there the time of the VM as a whole is what counts.
	[[ " ${*:4} " != *" --icount "* ]] || factor=1000
	while :; do
		before=$left left=0 total=600
		while IFS=$'\t' read -r name limit command; do
			[[ ! -e $dir/$name.status ]] || continue
			left=$((left + 1)) total=$((total + limit + 20))
		done <"$dir/list"
		((left)) || break
		((left != before)) || { say "no test ran: $build/vm/$3-$run"; return 1; }
		status=0 run=$((run + 1))
		"$top/lab/vm" --kernel "$1" --smp 4 "${@:4}" --timeout $total --name "$3-$run" \
			--splats "$dir/splats" -- "$top/lab/batch" "$dir" $factor || status=$?
		if [[ ! -e $dir/running ]]; then
			# 125 has said what it found
			[[ $status == @(0|125) ]] ||
				echo "after the last: the VM ended with status $status" >>"$dir/splats"
			continue
		fi
		# It took the VM down with it, or stood when the time was over.
		name=$(<"$dir/running")
		[[ -e $dir/$name.status ]] || echo "$status 0" >"$dir/$name.status"
		rm "$dir/running"
	done
}
