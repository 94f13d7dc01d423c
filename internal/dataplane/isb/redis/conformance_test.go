//go:build unix

package redis_test

import (
	"context"
	"fmt"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/isbtest"
	"github.com/levada-io/levada/internal/dataplane/isb/redis"
	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/testredis"
	"github.com/levada-io/levada/internal/testserver"
)

func TestMain(m *testing.M) {
	// The client library tries once a second to reach a server that is gone, and notices only then that it was closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

func TestConformance(t *testing.T) {
	isbtest.Run(t, func(t *testing.T) isbtest.Harness {
		s := testredis.Server(t)
		return harness(t, s.DSN(), func(*testing.T) { s.Restart(testserver.Killed) })
	})
}

// Keys that are used together are in one slot: otherwise a cluster refuses the scripts. Cases take a cluster that no other one uses, and leave it empty.
func TestConformanceOnCluster(t *testing.T) {
	const clusters = 2
	free := make(chan *testredis.Cluster, clusters)
	for range clusters {
		free <- testredis.NewCluster(t, 3, false)
	}
	isbtest.Run(t, func(t *testing.T) isbtest.Harness {
		c := <-free
		t.Cleanup(func() { free <- c })
		t.Cleanup(func() {
			for i := range c.Masters {
				if err := c.Client(i).FlushAll(context.WithoutCancel(t.Context())).Err(); err != nil {
					t.Error(err)
				}
			}
		})
		return harness(t, c.URL(), func(*testing.T) {
			for _, m := range c.Masters {
				m.Restart(testserver.Killed)
			}
			c.WaitReady()
		})
	})
}

func harness(t *testing.T, url string, restart func(*testing.T)) isbtest.Harness {
	link := dial(t, url)
	return isbtest.Harness{
		Connect: func(t *testing.T) isb.Service { return connect(t, url) },
		Restart: restart,
		Lose: func(t *testing.T, stream string) {
			for _, key := range keysOf(t, link.Client, "levada:{"+stream+"}:*") {
				if err := link.Client.Del(t.Context(), key).Err(); err != nil {
					t.Fatal(err)
				}
			}
		},
		ForgetIDs: func(t *testing.T) {
			for _, key := range keysOf(t, link.Client, "levada:*:ids:*") {
				if err := link.Client.Del(t.Context(), key).Err(); err != nil {
					t.Fatal(err)
				}
			}
		},
	}
}

// keysOf are the keys of all servers that match a pattern.
func keysOf(t *testing.T, client goredis.UniversalClient, pattern string) (keys []string) {
	t.Helper()
	clients := []goredis.Cmdable{client}
	if c, ok := client.(*goredis.ClusterClient); ok {
		clients = nil
		for n := range 3 {
			master, err := c.MasterForKey(t.Context(), keyOfServer(t, c, n))
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, master)
		}
	}
	for _, c := range clients {
		found, err := c.Keys(t.Context(), pattern).Result()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, found...)
	}
	return keys
}

// keyOfServer is a key in the n-th third of the slots.
func keyOfServer(t *testing.T, c *goredis.ClusterClient, n int) string {
	t.Helper()
	for i := 0; ; i++ {
		key := fmt.Sprint(i)
		slot, err := c.ClusterKeySlot(t.Context(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		if int(slot)*3/16384 == n && int(slot)*3%16384 != 0 {
			return key
		}
	}
}

func address(t *testing.T, url string) redislink.Address {
	t.Helper()
	a, err := redislink.ParseAddress(url)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func connect(t *testing.T, url string) *redis.Service {
	t.Helper()
	s, err := redis.Connect(t.Context(), redis.Config{Link: redislink.Config{Address: address(t, url)}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dial(t *testing.T, url string) *redislink.Link {
	t.Helper()
	link, err := redislink.Dial(t.Context(), redislink.Config{Address: address(t, url)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.Close() })
	return link
}
