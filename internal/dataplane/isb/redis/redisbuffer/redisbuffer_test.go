//go:build unix

package redisbuffer_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/buffertest"
	"github.com/levada-io/levada/internal/dataplane/isb/redis/redisbuffer"
	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/testredis"
	"github.com/levada-io/levada/internal/testserver"
)

func TestMain(m *testing.M) {
	// The client library tries once a second to reach a server that is gone, and notices only then that it was closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

const name = "levada_ns_pl_vertex_0"

// keyPrefix begins the names of a partition's keys.
const keyPrefix = "levada:{" + name + "}:0:"

func TestConformance(t *testing.T) {
	buffertest.Run(t, func(t *testing.T) buffertest.Harness {
		s := testredis.Server(t)
		return harness(t, s.DSN(), name, func(*testing.T) { s.Restart(testserver.Killed) })
	})
}

// Keys that are used together are in one slot: otherwise a cluster refuses the scripts. The cases share a cluster, but for those that kill a server of it.
func TestConformanceOnCluster(t *testing.T) {
	shared := testredis.NewCluster(t, 3, false)
	var partitions atomic.Int32
	buffertest.Run(t, func(t *testing.T) buffertest.Harness {
		if !strings.Contains(t.Name(), "killed") {
			return harness(t, shared.URL(), fmt.Sprintf("levada_ns_pl_vertex_%d", partitions.Add(1)), nil)
		}
		c := testredis.NewCluster(t, 3, false)
		return harness(t, c.URL(), name, func(t *testing.T) {
			c.Masters[c.Owner(keyPrefix+"log")].Restart(testserver.Killed)
			c.WaitReady()
		})
	})
}

func harness(t *testing.T, url, partition string, restart func(*testing.T)) buffertest.Harness {
	link := dial(t, url)
	return buffertest.Harness{
		Open:    func(t *testing.T) buffer.Driver { return open(t, link, redisbuffer.Config{Name: partition}) },
		Restart: restart,
		ForgetIDs: func(t *testing.T) {
			for _, ids := range []string{"ids:0", "ids:1"} {
				if err := link.Client.Del(t.Context(), "levada:{"+partition+"}:0:"+ids).Err(); err != nil {
					t.Fatal(err)
				}
			}
		},
	}
}

func open(t *testing.T, link *redislink.Link, cfg redisbuffer.Config) buffer.Driver {
	t.Helper()
	cfg.Name = cmp.Or(cfg.Name, name)
	d, err := redislink.Retry(bounded(t), link, "the buffer", func(ctx context.Context) (buffer.Driver, error) { return redisbuffer.Open(ctx, link, cfg) })
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func dial(t *testing.T, url string) *redislink.Link {
	t.Helper()
	return dialLogged(t, url, slog.New(slog.DiscardHandler))
}

func dialLogged(t *testing.T, url string, log *slog.Logger) *redislink.Link {
	t.Helper()
	address, err := redislink.ParseAddress(url)
	if err != nil {
		t.Fatal(err)
	}
	link, err := redislink.Dial(bounded(t), redislink.Config{Address: address, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := link.Close(); err != nil {
			t.Error(err)
		}
	})
	return link
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
