//go:build linux || darwin || freebsd

package broker

import "golang.org/x/sys/unix"

// diskSpace is what is free for us in the file system of a directory, and its size.
func diskSpace(dir string) (free, total uint64, ok bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, false
	}
	return uint64(st.Bavail) * uint64(st.Bsize), uint64(st.Blocks) * uint64(st.Bsize), true
}
