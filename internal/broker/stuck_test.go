package broker

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestBrokerThatDoesNotRecoverIsStuck: a probe that says that the process is alive kept it from being restarted. A full disk is no reason for that: the next process
// would find the same.
func TestBrokerThatDoesNotRecoverIsStuck(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{}
		b.room.dir = dir
		b.room.at = time.Now().Add(time.Hour) // the disk has room
		b.noteFailure(true)
		if err := b.Stuck(); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Minute)
		b.noteFailure(true)
		if b.Stuck() == nil {
			t.Error("not stuck after two minutes")
		}
		b.room.full = true
		b.noteFailure(true)
		if err := b.Stuck(); err != nil {
			t.Errorf("a full disk: %v", err)
		}
		b.room.full = false
		b.noteFailure(true)
		time.Sleep(time.Second)
		b.noteFailure(false)
		time.Sleep(2 * time.Minute)
		if err := b.Stuck(); err != nil {
			t.Errorf("it has recovered: %v", err)
		}
	})
}
