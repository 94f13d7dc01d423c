package processes

import "syscall"

// endsWithParent has the kernel end a child with this process. It stays in the process group, so that a terminal stops and continues all of them.
func endsWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
