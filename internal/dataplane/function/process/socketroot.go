package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// NewSocketRoot makes a directory for Config.SocketRoot, and removes those of processes that are gone. Remove it at the end.
func NewSocketRoot() (string, error) {
	base := os.TempDir()
	old, _ := filepath.Glob(filepath.Join(base, "levada-*-*"))
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "levada-"), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir)
		}
	}
	return os.MkdirTemp(base, fmt.Sprintf("levada-%d-", os.Getpid()))
}
