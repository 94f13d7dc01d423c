//go:build unix

package testserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// policy keeps the installation from starting the services of the packages.
const (
	policyFile = "/usr/sbin/policy-rc.d"
	policy     = "#!/bin/sh\nexit 101\n"
)

// install installs a Debian package, or returns an errMissing if that is not for us to do.
func install(name string) error {
	apt, err := exec.LookPath("apt-get")
	if _, stat := os.Stat("/etc/debian_version"); err != nil || stat != nil || os.Getuid() != 0 {
		return errMissing
	}
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "levada-test-install.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("%s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(policyFile); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(policyFile, []byte(policy), 0o755); err != nil {
			return err
		}
		defer func() { _ = os.Remove(policyFile) }()
	}
	var said []byte
	for _, args := range [][]string{
		{"install", "-y", "--no-install-recommends", name}, // which does nothing if another process was first
		{"update"},
		{"install", "-y", "--no-install-recommends", name},
	} {
		cmd := exec.Command(apt, append([]string{"-q"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		said, err = cmd.CombinedOutput()
		if err == nil && args[0] == "install" {
			return nil
		}
	}
	return fmt.Errorf("%w, and apt-get install %s failed: %v\n%s", errMissing, name, err, said)
}
