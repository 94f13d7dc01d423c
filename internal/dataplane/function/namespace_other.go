//go:build !linux

package function

import (
	"os/exec"
	"syscall"
)

// command prepares a process whose sockets lie in dir. Without mount namespaces the process has to look there by itself.
func command(dir string, argv []string, env func(socketDir string) []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env(dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Enter does nothing on this system; see its twin for Linux.
func Enter() {}

func unprivilegedHint() string {
	return " in its LEVADA_SOCKET_DIR (functions of Numaflow's SDKs listen in /var/run/numaflow unless told otherwise: use an SDK option for the socket, or Linux)"
}
