//go:build unix

package redisbuffer_test

import (
	"errors"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb/redis/redisbuffer"
	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/testredis"
)

// register is a driver whose saved state is compared.
type register interface {
	buffer.Driver
	buffer.StateRegister
}

func openRegister(t *testing.T, link *redislink.Link) register {
	t.Helper()
	d, ok := open(t, link, redisbuffer.Config{}).(register)
	if !ok {
		t.Fatal("the driver is no StateRegister")
	}
	return d
}

// replace replaces the state that the driver reads.
func replace(t *testing.T, d register, with string) uint64 {
	t.Helper()
	_, revision, err := d.ReadState(bounded(t))
	if err == nil {
		revision, err = d.ReplaceState(bounded(t), []byte(with), revision)
	}
	if err != nil {
		t.Fatalf("replace the state with %q: %v", with, err)
	}
	return revision
}

func savedState(t *testing.T, d register) string {
	t.Helper()
	state, _, err := d.ReadState(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(state)
}

// lose puts a copy of the keys in their place when it is called, as a master does that lacks what was written since.
func lose(t *testing.T, link *redislink.Link, keys ...string) func() {
	t.Helper()
	copies := map[string]string{}
	for _, key := range keys {
		if dump, err := link.Client.Dump(bounded(t), keyPrefix+key).Result(); err == nil {
			copies[key] = dump
		}
	}
	return func() {
		t.Helper()
		for _, key := range keys {
			if err := link.Client.Del(bounded(t), keyPrefix+key).Err(); err != nil {
				t.Fatal(err)
			}
			if copies[key] == "" {
				continue
			}
			if err := link.Client.Restore(bounded(t), keyPrefix+key, 0, copies[key]).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A master that failed over gives the revisions that it lost once more. A process that knows one of them must not replace the state that another one has written under it: it would
// take the partition back to where it was.
func TestRevisionThatIsGivenTwiceReplacesNothing(t *testing.T) {
	link := dial(t, testredis.Server(t).DSN())
	first, second, third := openRegister(t, link), openRegister(t, link), openRegister(t, link)
	replace(t, first, "first")
	fail := lose(t, link, "state", "meta")
	known := replace(t, second, "second, which is lost")
	fail()
	replace(t, third, "third")
	if _, err := second.ReplaceState(bounded(t), []byte("second again"), known); !errors.Is(err, buffer.ErrReplaced) {
		t.Errorf("replace a state that is lost: %v, want %v", err, buffer.ErrReplaced)
	}
	if err := second.Trim(bounded(t), 1); err == nil {
		t.Error("a process whose claim is lost removes blocks")
	}
	if got := savedState(t, first); got != "third" {
		t.Errorf("the state is %q", got)
	}
}

// An owner whose last saves are lost sees the older state under a later revision, and saves over it; otherwise nothing would be saved until the process ends.
func TestOwnerSavesOverAnOlderStateOfItsOwn(t *testing.T) {
	link := dial(t, testredis.Server(t).DSN())
	for what, keys := range map[string][]string{"some": {"state"}, "all": {"state", "meta"}} {
		d := openRegister(t, link)
		fail := lose(t, link, "state", "meta")
		if what == "some" {
			replace(t, d, "one")
			fail = lose(t, link, keys...)
		}
		known := replace(t, d, "two")
		fail()
		if _, err := d.ReplaceState(bounded(t), []byte("three"), known); !errors.Is(err, buffer.ErrReplaced) {
			t.Errorf("%s is lost: replace what is not there: %v", what, err)
		}
		_, revision, err := d.ReadState(bounded(t))
		if err != nil || revision <= known {
			t.Fatalf("%s is lost: the older state has revision %d after %d, %v", what, revision, known, err)
		}
		if _, err := d.ReplaceState(bounded(t), []byte("three"), revision); err != nil {
			t.Errorf("%s is lost: save over the older state: %v", what, err)
		}
		if got := savedState(t, openRegister(t, link)); got != "three" {
			t.Errorf("%s is lost: the state is %q", what, got)
		}
		if err := d.Trim(bounded(t), 1); err != nil {
			t.Errorf("%s is lost: trim: %v", what, err)
		}
	}
}

// A start that is slow must not take the partition from the one that has begun after it, at whatever step it goes on.
func TestStartThatWasReplacedTakesNothing(t *testing.T) {
	link := dial(t, testredis.Server(t).DSN())
	slow, successor := openRegister(t, link), openRegister(t, link)
	submit(t, slow, "a", []byte("data"))
	replace(t, slow, "slow")
	replace(t, successor, "successor")
	if err := slow.Resume(bounded(t), 0); err != nil { // reading does no harm
		t.Error(err)
	}
	if err := slow.Trim(bounded(t), 2); err == nil {
		t.Error("a start that was replaced removes blocks")
	}
	if err := slow.SaveDamage(bounded(t), []byte("damage")); err == nil {
		t.Error("a start that was replaced notes damage")
	}
	if err := successor.Trim(bounded(t), 2); err != nil {
		t.Errorf("its successor cannot remove: %v", err)
	}
}
