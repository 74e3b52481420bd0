# SPDX-License-Identifier: GPL-2.0
# Whether something has been made already from what there is now.

# state TREE FILE... [-- PATTERN...]: a text that changes with the tree, or what of
# it the patterns match, with the files or with the compiler
state() {
	local tree=$1 edits='' files=()
	shift
	while (($#)) && [[ $1 != -- ]]; do
		files+=("$1")
		shift
	done
	if [[ ! -e $tree/.git ]]; then
		# what is only unpacked is its package's
		cat "$tree.version"
	else
		if (($#)); then
			git -C "$tree" ls-files -s "$@" | sha256sum
		else
			git -C "$tree" rev-parse 'HEAD^{tree}'
		fi
		# what has no commit yet is known by its contents
		edits=$(git -C "$tree" status --porcelain "$@")
	fi
	[[ -z $edits ]] || {
		echo "$edits"
		git -C "$tree" diff HEAD "$@"
		git -C "$tree" ls-files -z --others --exclude-standard "$@" | (cd "$tree" && xargs -0r cat)
	} | sha256sum
	cat "${files[@]}" | sha256sum
	gcc --version | sed -n 1p
}
