# SPDX-License-Identifier: GPL-2.0
# Whether something has been made already from what there is now.

# state TREE FILE...: a text that changes with the tree, the files or the compiler
state() {
	local edits
	git -C "$1" rev-parse 'HEAD^{tree}'
	# what has no commit yet is known by its contents
	edits=$(git -C "$1" status --porcelain)
	[[ -z $edits ]] || { echo "$edits"; git -C "$1" diff HEAD; cat_untracked "$1"; } | sha256sum
	cat "${@:2}" | sha256sum
	gcc --version | sed -n 1p
}

cat_untracked() {
	git -C "$1" ls-files -z --others --exclude-standard | (cd "$1" && xargs -0r cat)
}
