package streamcmd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The library's log names functions, since programs that import it have no commands of ours. Who runs the command line needs the commands.
func TestAFailedJobNamesTheCommandsForIt(t *testing.T) {
	t.Parallel()
	file, store := filepath.Join(t.TempDir(), "lines"), filepath.Join(t.TempDir(), "jobs.db")
	if err := os.WriteFile(file, []byte("one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, address := serving(t, "--file", "lines="+file)
	if o := levada(t, "stream", "submit", "others", "--store", store, "--target", address, "--id", "unknown-stream"); o.Code != 0 {
		t.Fatal(o)
	}
	o := levada(t, "stream", "work", "--stream", "others", "--print", "--store", store, "--until-done", "-q", "--denied-grace", "1ms")
	for _, want := range []string{"levada stream show", "levada stream retry", "unknown-stream"} {
		if o.Code != 1 || !strings.Contains(o.Stderr, want) {
			t.Errorf("exit code %d, want 1 and %q in %s", o.Code, want, o.Stderr)
		}
	}
}
