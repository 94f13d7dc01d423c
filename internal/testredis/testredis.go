//go:build unix

// Package testredis starts Redis servers for tests, as internal/testserver starts other servers: one, a Redis Cluster, or a master with a replica that Sentinels
// watch. They write an append-only file and sync it before each answer, which levada asks of its users. It is apart from testserver so that the libraries' tests,
// which use that, do not depend on a client of Redis.
package testredis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/levada-io/levada/internal/testserver"
)

// Option changes how a server is set up.
type Option func(*node)

type node struct {
	address, clusterAddress string
	settings, dir           string
	user, password          string
	sentinel                bool
}

// Settings adds lines to the server's configuration file; they replace those of the same name.
func Settings(lines string) Option { return func(n *node) { n.settings += lines + "\n" } }

// Dir puts the server's data into dir, for instance a small file system.
func Dir(dir string) Option { return func(n *node) { n.dir = dir } }

// Login puts "user:password" into the URL. The settings must make the server know them.
func Login(user, password string) Option {
	return func(n *node) { n.user, n.password = user, password }
}

// Server returns a Redis server for this test alone.
func Server(t testing.TB, options ...Option) *testserver.Server {
	t.Helper()
	n := &node{}
	for _, o := range options {
		o(n)
	}
	return n.start(t, func() { n.address = testserver.FreeAddress(t) })
}

// start starts the node. address chooses its addresses, again and again until they are free.
func (n *node) start(t testing.TB, address func()) *testserver.Server {
	t.Helper()
	program := testserver.Program(t, "redis-server", "redis-server")
	args := []string{"redis.conf"}
	if n.sentinel {
		args = append(args, "--sentinel")
	}
	return testserver.Start(t, testserver.Spec{
		Name: "Redis", Program: func() (string, error) { return program, nil }, Args: args,
		Prepare: func(dir string) (string, []string, error) {
			address()
			dsn := "redis://" + n.address
			if n.password != "" {
				dsn = "redis://" + n.user + ":" + n.password + "@" + n.address
			}
			return dsn, nil, os.WriteFile(filepath.Join(dir, "redis.conf"), []byte(n.config(dir)), 0o644)
		},
		Ready: func(ctx context.Context, _ string) error { return n.ready(ctx) },
	})
}

func (n *node) ready(ctx context.Context) error {
	c := client(n.address, n.user, n.password)
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := c.Ping(ctx).Err()
	if said := fmt.Sprint(err); strings.Contains(said, "NOAUTH") || strings.Contains(said, "NOPERM") {
		return nil // it answers
	}
	return err
}

func (n *node) config(dir string) string {
	if n.dir != "" {
		dir = n.dir
	}
	config := fmt.Sprintf("bind 127.0.0.1\nport %s\ndir %q\ndaemonize no\nprotected-mode no\n", port(n.address), dir)
	if !n.sentinel {
		config += "save \"\"\nappendonly yes\nappendfsync always\nrepl-diskless-sync-delay 0\n"
	}
	if n.clusterAddress != "" {
		config += fmt.Sprintf("cluster-enabled yes\ncluster-port %s\ncluster-config-file nodes.conf\ncluster-node-timeout 2000\n", port(n.clusterAddress))
	}
	return config + n.settings
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

func client(address, user, password string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: address, Username: user, Password: password, MaxRetries: -1, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// Cluster is Redis servers that share the slots of a Redis Cluster among them.
type Cluster struct {
	t testing.TB
	// Masters may be stopped, killed, frozen and started one by one; each of Replicas follows the master of its index, until that fails.
	Masters, Replicas []*testserver.Server
	addresses         []string
}

// NewCluster returns a cluster for this test alone that serves all slots. With replicas each master has one.
func NewCluster(t testing.TB, masters int, replicas bool, options ...Option) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	size := masters
	if replicas {
		size *= 2
	}
	var buses []string
	for i := range size {
		n := &node{address: testserver.FreeAddress(t), clusterAddress: testserver.FreeAddress(t)}
		for _, o := range options {
			o(n)
		}
		s := n.start(t, func() {})
		c.addresses, buses = append(c.addresses, n.address), append(buses, n.clusterAddress)
		if i < masters {
			c.Masters = append(c.Masters, s)
		} else {
			c.Replicas = append(c.Replicas, s)
		}
	}
	const slots = 16384
	for i, address := range c.addresses {
		client := client(address, "", "")
		if i < masters {
			c.must(client.ClusterAddSlotsRange(t.Context(), i*slots/masters, (i+1)*slots/masters-1).Err())
			c.must(client.Do(t.Context(), "cluster", "set-config-epoch", i+1).Err())
		}
		for j, other := range c.addresses[:i] {
			c.must(client.Do(t.Context(), "cluster", "meet", "127.0.0.1", port(other), port(buses[j])).Err())
		}
		c.must(client.Close())
	}
	c.replicate(masters)
	c.WaitReady()
	return c
}

// replicate makes each replica follow its master, once it knows of it.
func (c *Cluster) replicate(masters int) {
	c.t.Helper()
	for i, address := range c.addresses[masters:] {
		master := client(c.addresses[i], "", "")
		replica := client(address, "", "")
		c.until("a replica does not get its master", func(ctx context.Context) error {
			id, err := master.ClusterMyID(ctx).Result()
			if err != nil {
				return err
			}
			return replica.ClusterReplicate(ctx, id).Err()
		})
		c.must(errors.Join(master.Close(), replica.Close()))
	}
}

// URL has the addresses of all servers.
func (c *Cluster) URL() string {
	return "redis://" + strings.Join(c.addresses, ",")
}

// WaitReady waits until all servers say that the cluster serves every slot, and replicas follow their masters.
func (c *Cluster) WaitReady() {
	c.t.Helper()
	for _, address := range c.addresses {
		client := client(address, "", "")
		c.until("the cluster does not serve all slots", func(ctx context.Context) error {
			info, err := client.ClusterInfo(ctx).Result()
			if err != nil {
				return err
			}
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", len(c.addresses))) {
				return errors.New(info)
			}
			if repl, err := client.Info(ctx, "replication").Result(); err != nil || strings.Contains(repl, "master_link_status:down") {
				return fmt.Errorf("replication: %w %s", err, repl)
			}
			return nil
		})
		c.must(client.Close())
	}
}

// Owner is the index of the server that serves a key: those of Masters, and then those of Replicas.
func (c *Cluster) Owner(key string) (owner int) {
	c.t.Helper()
	c.until("nobody serves the key", func(ctx context.Context) error {
		for i, address := range c.addresses {
			client := client(address, "", "")
			err := client.Get(ctx, key).Err()
			_ = client.Close()
			if err == nil || errors.Is(err, redis.Nil) || strings.Contains(err.Error(), "WRONGTYPE") {
				owner = i
				return nil
			}
		}
		return errors.New("no server")
	})
	return owner
}

// Client returns a client of one server, which is closed with the test.
func (c *Cluster) Client(server int) *redis.Client {
	client := client(c.addresses[server], "", "")
	c.t.Cleanup(func() { _ = client.Close() })
	return client
}

func (c *Cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("test server: %v", err)
	}
}

func (c *Cluster) until(complaint string, do func(context.Context) error) {
	c.t.Helper()
	untilDone(c.t, complaint, do)
}

// untilDone calls do until it succeeds.
func untilDone(t testing.TB, complaint string, do func(context.Context) error) {
	t.Helper()
	for deadline := time.Now().Add(testserver.StartTimeout); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		err := do(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("test server: %s: %v", complaint, err)
		}
	}
}

// Sentinel is a Redis master with a replica, and three Sentinels that make the replica the master when the master is gone.
type Sentinel struct {
	t                     testing.TB
	Servers               []*testserver.Server // the first is the master at the beginning
	Sentinels             []*testserver.Server
	addresses, sentinelAt []string
}

// Master is the name of the master that Sentinels watch.
const Master = "levada-test"

// NewSentinel returns servers for this test alone. The Sentinels know each other and the replica.
func NewSentinel(t testing.TB, options ...Option) *Sentinel {
	t.Helper()
	s := &Sentinel{t: t}
	start := func(n *node) (*testserver.Server, string) {
		server := n.start(t, func() { n.address = testserver.FreeAddress(t) })
		return server, n.address
	}
	for i := range 2 {
		n := &node{}
		for _, o := range options {
			o(n)
		}
		if i > 0 {
			n.settings += "replicaof 127.0.0.1 " + port(s.addresses[0]) + "\n"
		}
		server, address := start(n)
		s.Servers, s.addresses = append(s.Servers, server), append(s.addresses, address)
	}
	for range 3 {
		server, address := start(&node{sentinel: true, settings: fmt.Sprintf(
			"sentinel monitor %s 127.0.0.1 %s 2\nsentinel down-after-milliseconds %s 1000\nsentinel failover-timeout %s 5000\n", Master, port(s.addresses[0]), Master, Master)})
		s.Sentinels, s.sentinelAt = append(s.Sentinels, server), append(s.sentinelAt, address)
	}
	for _, address := range s.sentinelAt {
		client := redis.NewSentinelClient(&redis.Options{Addr: address})
		untilDone(t, "a Sentinel does not know the others", func(ctx context.Context) error {
			master, err := client.Master(ctx, Master).Result()
			if err == nil && (master["num-other-sentinels"] != "2" || master["num-slaves"] != "1") {
				err = fmt.Errorf("%v", master)
			}
			return err
		})
		_ = client.Close()
	}
	return s
}

// URL has the addresses of the Sentinels.
func (s *Sentinel) URL() string {
	return "redis+sentinel://" + strings.Join(s.sentinelAt, ",") + "/" + Master
}

// WaitSynced waits until the replica has all that the master has.
func (s *Sentinel) WaitSynced() {
	s.t.Helper()
	client := client(s.addresses[0], "", "")
	defer func() { _ = client.Close() }()
	untilDone(s.t, "the replica does not follow", func(ctx context.Context) error {
		if _, err := client.Incr(ctx, "synced").Result(); err != nil {
			return err
		}
		n, err := client.Do(ctx, "wait", 1, 1000).Int()
		if err == nil && n < 1 {
			err = errors.New("no replica")
		}
		return err
	})
}
