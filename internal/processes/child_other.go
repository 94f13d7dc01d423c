//go:build !linux

package processes

import "syscall"

// endsWithParent is nothing here: a child notices by its pipe that this process has ended.
func endsWithParent() *syscall.SysProcAttr { return nil }
