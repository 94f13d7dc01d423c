package testserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// FreeAddress returns an address of the loopback interface, host:port, for a server that the test starts. No other call returns it while this process lives, in
// this process or in another one.
func FreeAddress(t testing.TB) string {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	return address(port)
}

// reserved holds the lock files of the ports that this process has given out. They stay open until it ends.
var reserved struct {
	sync.Mutex
	files []*os.File
}

// freePort returns a port at which nothing listens and that no other call has returned. Listening once and closing again is not enough: two calls could then return
// the same port before the first server has started. A lock on a file for each port, held until the process ends, keeps them apart.
//
// Ports are below those that the system gives to clients: otherwise a client that tries to reach a stopped server could be given the server's own port, would
// then talk to itself and keep the server from starting again.
func freePort() (int, error) {
	dir := filepath.Join(os.TempDir(), "levada-test-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return 0, err
	}
	reserved.Lock()
	defer reserved.Unlock()
	for range 400 {
		port := 12000 + rand.IntN(20000)
		file, err := lockPort(dir, port)
		if err != nil {
			return 0, err
		}
		if file == nil {
			continue
		}
		l, err := net.Listen("tcp", address(port))
		if err != nil {
			_ = file.Close()
			continue
		}
		reserved.files = append(reserved.files, file)
		return port, l.Close()
	}
	return 0, errors.New("no free port between 12000 and 32000 on 127.0.0.1")
}

// lockPort returns nil if the port is reserved already.
func lockPort(dir string, port int) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(port)), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, file.Close()
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock of %s: %w", file.Name(), err)
	}
	return file, nil
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
