package shard_test

import (
	"testing"

	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/dataplane/shard/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, storetest.Options{Expires: true}, func(*testing.T) shard.Store { return shard.NewMemory() })
}
