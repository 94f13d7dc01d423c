package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const orderedManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: order}
spec:
  ordered: {enabled: true}
  limits: {readBatchSize: 50}
  vertices:
    - name: in
      limits: {rateLimit: {max: 5000}} # so that it lasts as long as the killing
      source: {file: {path: in.txt}}
    - name: fragile
      udf: {container: {command: [../bin/functions/poison]}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: fragile}
    - {from: fragile, to: out}
`

// TestOrderSurvives kills an ordered pipeline, whose function dies of some messages, again and again: what comes out is in the order of what went in, without
// the messages that were dead-lettered, and nothing is there twice.
func TestOrderSurvives(t *testing.T) {
	const lines, kills = 12_000, 4
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	e := &example{filepath.Join(root, "order"), "order.yaml"}
	var in strings.Builder
	var want []string
	for i := range lines {
		switch {
		case i%1_999 == 1_000:
			fmt.Fprintf(&in, "%d crash\n", i)
		case i%1_999 == 1_500:
			fmt.Fprintf(&in, "%d panic\n", i)
		default:
			fmt.Fprintf(&in, "%d\n", i)
			want = append(want, fmt.Sprint(i))
		}
	}
	if err := os.Mkdir(e.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{e.name: orderedManifest, "in.txt": in.String()} {
		if err := os.WriteFile(filepath.Join(e.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(bin, filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	written := func() int {
		b, _ := os.ReadFile(filepath.Join(e.dir, "out.txt"))
		return strings.Count(string(b), "\n")
	}
	for kill := range kills {
		r := e.start(t, "--quiet")
		// Somewhere in its share of the lines.
		r.until(t, func() bool { return written() > (kill+1)*lines/(kills+2) })
		time.Sleep(time.Duration(kill*7) * time.Millisecond)
		if err := r.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-r.ended
		r.over = true
	}
	e.run(t, "--quiet", "--allow-dead-letters")
	e.holds(t, "out.txt", want...)
}
