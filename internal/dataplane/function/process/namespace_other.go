//go:build !linux

package process

import (
	"fmt"
	"os/exec"
	"syscall"
)

// CanMount reports whether functions can have volumes, and /var/run/numaflow each for itself.
func CanMount() bool { return false }

// command prepares a process whose sockets lie in dir. Without mount namespaces the process has to look there by itself.
func command(cfg *Config, dir string, argv []string, env func(socketDir string) []string) (*exec.Cmd, error) {
	if len(cfg.Mounts) > 0 {
		return nil, fmt.Errorf("%w: it has volume mounts%s", ErrStart, privilegeHint())
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env(dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: cfg.User.credential()}
	return cmd, nil
}

// Enter does nothing on this system; see its twin for Linux.
func Enter() {}

func whereToListen() string { return " in its LEVADA_SOCKET_DIR" + privilegeHint() }

func privilegeHint() string {
	return ". Functions of Numaflow's SDKs listen in /var/run/numaflow, and volumes need a mount namespace: both need Linux, or an SDK option for the socket"
}
