package redisbuffer_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb/redis/redisbuffer"
	"github.com/levada-io/levada/internal/testredis"
	"github.com/levada-io/levada/internal/testserver"
)

// A server whose disk is full answers MISCONF, and goes on when there is room: so do we.
func TestServerWithAFullDiskRecoversByItself(t *testing.T) {
	dir := testserver.SmallDisk(t, "4m")
	s := testredis.Server(t, testredis.Dir(dir), testredis.Settings("appendfsync everysec"))
	link := dial(t, s.DSN())
	d := open(t, link, redisbuffer.Config{})
	data := make([]byte, 256<<10)
	ctx := bounded(t)
	var err error
	for i := 0; err == nil; i++ {
		err = trySubmit(t, d, fmt.Sprint(i), data)
		if ctx.Err() != nil {
			t.Fatal("the disk is never full")
		}
	}
	if !errors.Is(err, buffer.ErrFull) || !strings.Contains(err.Error(), "free disk space") {
		t.Fatalf("with a full disk: %v", err)
	}
	// The server itself truncates what it has written in part; an older file of it is what an operator would remove. Here the disk grows.
	testserver.GrowDisk(t, dir, "64m")
	submit(t, d, "more", data)
}
