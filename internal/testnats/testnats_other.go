//go:build !unix

package testnats

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/testserver"
)

// Option changes nothing.
type Option func()

// Store changes nothing.
func Store(string) Option { return nil }

// Settings changes nothing.
func Settings(string) Option { return nil }

// JetStream changes nothing.
func JetStream(string) Option { return nil }

// Login changes nothing.
func Login(string) Option { return nil }

// Server skips the test.
func Server(t testing.TB, _ ...Option) *testserver.Server {
	t.Helper()
	return testserver.Start(t, testserver.Spec{})
}

// Connect skips the test.
func Connect(t testing.TB, _ string) jetstream.JetStream {
	t.Helper()
	testserver.Start(t, testserver.Spec{})
	return nil
}

// Cluster is never there.
type Cluster struct{ Servers []*testserver.Server }

// NewCluster skips the test.
func NewCluster(t testing.TB, _ int, _ ...Option) *Cluster {
	t.Helper()
	testserver.Start(t, testserver.Spec{})
	return nil
}

func (*Cluster) URL() string                     { return "" }
func (*Cluster) Store(int) string                { return "" }
func (*Cluster) Connect() jetstream.JetStream    { return nil }
func (*Cluster) WaitReady()                      {}
func (*Cluster) Leader(string) int               { return 0 }
func (*Cluster) StepDown(string, func(int) bool) {}
