//go:build unix

package testserver

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Program returns the path of a program that tests start themselves, as a proxy; debian is the package that has it. What is said of servers
// without their program is so here, too.
func Program(t testing.TB, name, debian string) string {
	t.Helper()
	k := &kind{name: name, install: debian, find: finder(name)}
	path, err := k.find()
	if err != nil {
		t.Logf("%s is missing: Debian's package %s is installed now if this is Debian and the user is root", name, debian)
		if err = install(debian); err == nil {
			path, err = k.find()
		}
	}
	require(t, k, err)
	return path
}

// finder finds a program in PATH, or in /usr/sbin, which is not in the PATH of everybody.
func finder(name string) func() (string, error) {
	return func() (string, error) {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
		path := filepath.Join("/usr/sbin", name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		return "", errMissing
	}
}
