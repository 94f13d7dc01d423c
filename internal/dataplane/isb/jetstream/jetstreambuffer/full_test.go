package jetstreambuffer_test

import (
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/testnats"
)

// TestFullAccountRecoversOnceBlocksAreDone fills an account up to its limit. To make room the state must be saved, which needs room: without a reserve
// nothing was ever removed again.
func TestFullAccountRecoversOnceBlocksAreDone(t *testing.T) {
	s := testnats.Server(t, testnats.Settings(`
accounts { A { jetstream: { max_mem: 1M, max_file: 3M }, users: [ { user: u, password: p } ] } }`), testnats.Login("u:p"))
	p, _, err := openAt(t, s.DSN(), 1, buffer.Options{TrimEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	// The first block that is done makes the reserve.
	if err := put(within(t), p, 1, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := take(within(t), p, 1); err != nil {
		t.Fatal(err)
	}
	until(t, "the reserve is made", func() bool {
		js := testnats.Connect(t, s.DSN())
		defer js.Conn().Close()
		kv, err := js.KeyValue(within(t), "test_STATE")
		if err != nil {
			return false
		}
		_, err = kv.Get(within(t), "reserve")
		return err == nil
	})
	const blocks = 1500 // 4.5 MB
	wrote := make(chan error, 1)
	go func() { wrote <- put(within(t), p, 2, blocks) }()
	// It is full when nothing more is stored.
	before := -1
	until(t, "the account is full", func() bool {
		now := p.Pending()
		full := now == before && now > 500
		before = now
		<-time.After(300 * time.Millisecond)
		return full
	})
	ids, err := take(within(t), p, blocks-1)
	if err != nil {
		t.Fatal(err)
	}
	ascending(t, ids, 2)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
