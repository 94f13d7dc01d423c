package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A run is given a function that the test starts, after the run and again after it was killed, and delivers everything.
func TestRunAttachesToAFunctionThatIsStartedElsewhere(t *testing.T) {
	e := ends(t, "nothing-of-this-name", strings.Repeat("a\n", 2000))
	dir, err := os.MkdirTemp("", "attach") // a short path, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	serve := func() *exec.Cmd {
		cmd := exec.Command(filepath.Join(e.dir, poison))
		cmd.Env = append(os.Environ(), "LEVADA_SOCKET_DIR="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd
	}
	r := e.start(t, "--function", "middle=unix:"+dir)
	r.until(t, func() bool { return strings.Contains(r.stderr.String(), "there is no mapper-server-info") })
	first := serve()
	r.until(t, func() bool { b, _ := os.ReadFile(filepath.Join(e.dir, "out.txt")); return len(b) > 0 })
	_ = first.Process.Kill()
	_ = first.Wait()
	serve()
	r.wait(t)
	if got := strings.Count(e.read(t, "out.txt"), "a\n"); got != 2000 {
		t.Errorf("%d lines were delivered, want 2000", got)
	}
}
