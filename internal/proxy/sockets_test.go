package proxy

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A listener is closed more than once: when it drains, and when a later undrain or reload fails. The file at its path may be that of the listener opened since, and
// have the inode number of the first one's: file systems give the number of a removed file to the next. Removing it left a proxy that nobody can connect to.
func TestClosingAUnixSocketAgainKeepsTheFileOfTheNextOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.sock")
	open := func() *unixSocket {
		t.Helper()
		l, err := listenUnix(path, 0o600, false)
		if err != nil {
			t.Fatal(err)
		}
		return l.(*unixSocket)
	}
	first := open()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Fatalf("the file of a closed listener is still there (error %v)", err)
	}
	second := open()
	defer func() { _ = second.Close() }()
	first.file = second.file // as when the number is given again, which is up to the file system
	_ = first.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the socket of the second listener is gone: %v", err)
	}
	_ = c.Close()
}
