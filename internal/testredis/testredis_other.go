//go:build !unix

package testredis

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/testserver"
)

// Option changes nothing.
type Option func()

// Settings changes nothing.
func Settings(string) Option { return nil }

// Dir changes nothing.
func Dir(string) Option { return nil }

// Login changes nothing.
func Login(string, string) Option { return nil }

// Server skips the test.
func Server(t testing.TB, _ ...Option) *testserver.Server {
	t.Helper()
	return testserver.Start(t, testserver.Spec{})
}

// Cluster is never there.
type Cluster struct{ Masters, Replicas []*testserver.Server }

// NewCluster skips the test.
func NewCluster(t testing.TB, _ int, _ bool, _ ...Option) *Cluster {
	t.Helper()
	testserver.Start(t, testserver.Spec{})
	return nil
}

func (*Cluster) URL() string              { return "" }
func (*Cluster) WaitReady()               {}
func (*Cluster) Owner(string) int         { return 0 }
func (*Cluster) Client(int) *redis.Client { return nil }

// Master is the name of the master that Sentinels watch.
const Master = "levada-test"

// Sentinel is never there.
type Sentinel struct{ Servers, Sentinels []*testserver.Server }

// NewSentinel skips the test.
func NewSentinel(t testing.TB, _ ...Option) *Sentinel {
	t.Helper()
	testserver.Start(t, testserver.Spec{})
	return nil
}

func (*Sentinel) URL() string { return "" }
func (*Sentinel) WaitSynced() {}
