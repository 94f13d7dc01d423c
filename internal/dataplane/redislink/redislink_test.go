//go:build unix

package redislink_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/testredis"
	"github.com/levada-io/levada/internal/testserver"
)

func TestMain(m *testing.M) {
	// The client library tries once a second to reach a server that is gone, and notices only then that it was closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct{ url, hosts, user, password, master, wrong string }{
		{url: "redis://h", hosts: "h:6379"},
		{url: "redis://h:1,[::1]:2,k", hosts: "h:1 [::1]:2 k:6379"},
		{url: "rediss://joe:p%40ss%2fw@h:1/3", hosts: "h:1", user: "joe", password: "p@ss/w"},
		{url: "redis://:only@h", hosts: "h:6379", password: "only"},
		{url: "redis+sentinel://a,b:1/mymaster/2?sentinel-password=x", hosts: "a:26379 b:1", master: "mymaster"},
		{url: "redis+sentinel://a,b", wrong: "the name of the master is missing"},
		{url: "nats://h", wrong: "scheme nats is not known"},
		{url: "h:6379", wrong: "give redis://"},
		{url: "redis://", wrong: "no host and port"},
		{url: "redis://h:99999", wrong: "no host and port"},
		{url: "redis://h/x", wrong: `database "x" is not a number`},
		{url: "redis://h?db=1", wrong: `parameter "db" is not known`},
		{url: "redis://joe:s3cret@h/x", wrong: "is not a number"},
	} {
		a, err := redislink.ParseAddress(c.url)
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: %v, want %q", c.url, err, c.wrong)
			}
			continue
		}
		if err != nil || strings.Join(a.Hosts, " ") != c.hosts || a.Username != c.user || a.Password != c.password || a.Master != c.master || (a.TLS != nil) != strings.HasPrefix(c.url, "rediss") {
			t.Errorf("%s: %+v, %v", c.url, a, err)
		}
	}
}

func dial(t *testing.T, url string, log *slog.Logger) (*redislink.Link, error) {
	t.Helper()
	a, err := redislink.ParseAddress(url)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	link, err := redislink.Dial(ctx, redislink.Config{Address: a, Logger: log})
	if err == nil {
		t.Cleanup(func() { _ = link.Close() })
		_, err = link.Check(ctx)
	}
	return link, err
}

// A server that cannot keep buffers is refused with one line that says what to do.
func TestUnfitServersAreRefused(t *testing.T) {
	plain := testredis.Server(t)
	evicting := testredis.Server(t, testredis.Settings("maxmemory 64mb\nmaxmemory-policy allkeys-lru"))
	replica := testredis.Server(t, testredis.Settings("replicaof 127.0.0.1 1"))
	locked := testredis.Server(t, testredis.Settings("user default off\nuser joe on >s3cret ~other:* +@all"))
	sentinel := testredis.NewSentinel(t)
	for _, c := range []struct{ url, want string }{
		{evicting.DSN(), "set maxmemory-policy noeviction"},
		{replica.DSN(), "is a replica of 127.0.0.1:1: give the address of the master"},
		{sentinel.Sentinels[0].DSN(), "is a Sentinel: give redis+sentinel://"},
		{locked.DSN(), "asks for a password"},
		{strings.Replace(locked.DSN(), "//", "//joe:wr0ng@", 1), "user or password are wrong"},
		{plain.DSN() + ",127.0.0.1:1", "belongs to no Redis Cluster"},
		{plain.DSN() + "/77", "database of the URL does not exist"},
	} {
		began := time.Now()
		_, err := dial(t, c.url, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("%s: %v, want %q", c.url, err, c.want)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: refused after %v, as if it could go away", c.url, took)
		}
	}
}

// What a server does not promise is said in one line for each risk, and a server that promises all gives none.
func TestRisksAreLogged(t *testing.T) {
	for _, c := range []struct{ settings, want string }{
		{"", ""},
		{"appendonly no", "appendonly is off"},
		{"appendfsync everysec", "up to two seconds"},
		{"appendfsync no", "appendfsync is no"},
		{"maxmemory-policy allkeys-lru", "maxmemory-policy is allkeys-lru"},
		{"rename-command CONFIG \"\"", "cannot be asked"},
	} {
		var log bytes.Buffer
		s := testredis.Server(t, testredis.Settings(c.settings))
		if _, err := dial(t, s.DSN(), slog.New(slog.NewTextHandler(&log, nil))); err != nil {
			t.Errorf("%s: %v", c.settings, err)
		}
		if got := log.String(); !strings.Contains(got, c.want) || strings.Count(got, "\n") != min(len(c.want), 1) {
			t.Errorf("%q: logged %q, want %q", c.settings, got, c.want)
		}
	}
	var log bytes.Buffer
	if _, err := dial(t, testredis.NewSentinel(t).URL(), slog.New(slog.NewTextHandler(&log, nil))); err != nil || !strings.Contains(log.String(), "replication is asynchronous") {
		t.Errorf("%v, logged %q", err, log.String())
	}
}

// A password that was changed is read again for each new connection.
func TestPasswordCanBeChanged(t *testing.T) {
	s := testredis.Server(t, testredis.Settings("requirepass one"))
	a, err := redislink.ParseAddress(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	var password atomic.Value
	password.Store("one")
	link, err := redislink.Dial(t.Context(), redislink.Config{Address: a, Credentials: func() (string, string, error) { return "", password.Load().(string), nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = link.Close() }()
	if err := link.Client.ConfigSet(t.Context(), "requirepass", "two").Err(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	password.Store("two")
	s.Start() // with the password of its file again
	if err := link.Client.Ping(t.Context()).Err(); !errors.Is(redislink.Explain(err), redislink.ErrDenied) {
		t.Errorf("with the wrong password: %v", err)
	}
	password.Store("one")
	if err := link.Client.Ping(t.Context()).Err(); err != nil {
		t.Errorf("with the right password: %v", err)
	}
}

// A server with too many connections is waited for.
func TestServerWithoutConnectionsLeftIsWaitedFor(t *testing.T) {
	s := testredis.Server(t, testredis.Settings("maxclients 1"))
	first, err := dial(t, s.DSN(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var log testserver.Tail
	result := make(chan error, 1)
	go func() {
		_, err := dial(t, s.DSN(), slog.New(slog.NewTextHandler(&log, nil)))
		result <- err
	}()
	for deadline := time.Now().Add(time.Minute); log.String() == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is logged while the server has no connections left")
		}
	}
	if err := first.Client.ConfigSet(t.Context(), "maxclients", "100").Err(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 { // the server may have cut the connection before its answer was read
		t.Errorf("logged %q", log.String())
	}
}
