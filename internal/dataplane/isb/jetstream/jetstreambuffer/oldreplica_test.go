package jetstreambuffer_test

import (
	"os"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

// TestAReplicaFromAnOlderCopyCatchesUp: one server comes back with its store as it was before, and leads the stream. The blocks that it had not are there.
func TestAReplicaFromAnOlderCopyCatchesUp(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	p, _, err := openAt(t, c.URL(), 3, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 60
	if err := put(within(t), p, 1, blocks); err != nil {
		t.Fatal(err)
	}
	victim := (c.Leader(stream) + 1) % 3
	c.Servers[victim].Stop(testserver.Fast)
	older := t.TempDir()
	if err := os.CopyFS(older, os.DirFS(c.Store(victim))); err != nil {
		t.Fatal(err)
	}
	c.Servers[victim].Start()
	if err := put(within(t), p, blocks+1, 2*blocks); err != nil {
		t.Fatal(err)
	}
	ids, err := take(within(t), p, 10)
	if err != nil {
		t.Fatal(err)
	}
	ascending(t, ids, 1)
	c.Servers[victim].Stop(testserver.Killed)
	if err := os.RemoveAll(c.Store(victim)); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(c.Store(victim), os.DirFS(older)); err != nil {
		t.Fatal(err)
	}
	c.Servers[victim].Start()
	c.StepDown(stream, func(leader int) bool { return leader == victim })
	if ids, err = take(within(t), p, 2*blocks-10); err != nil {
		t.Fatal(err)
	}
	ascending(t, ids, 11)
	if err := put(within(t), p, 2*blocks+1, 2*blocks+10); err != nil {
		t.Fatal(err)
	}
	if ids, err = take(within(t), p, 10); err != nil {
		t.Fatal(err)
	}
	ascending(t, ids, 2*blocks+1)
}
